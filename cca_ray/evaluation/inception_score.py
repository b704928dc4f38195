"""Stands in for the metric of this name."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Facts:
    kind: str
    name: str
    label: str
    lower_is_better: bool


INCEPTION_SCORE = Facts("metric", "inception_score", "inception score", False)
