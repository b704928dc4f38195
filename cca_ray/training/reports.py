"""How a trial's reports travel through Ray, which flattens and copies mappings: each as one line of JSON."""

from collections.abc import Mapping
from typing import Any

from cca_ray.contracts import Attempt, Contract, TrialReport

REPORT, FAILURE = "report", "failure"  # the keys of what Ray carries


class TrialFailure(Contract):
    """Why a trial cannot go on. `stuck`: by no fault of its own; the study stops, and the trial stays open."""

    reason: str
    stuck: bool = False
    attempt: Attempt | None = None  # what it had taken until then


def to_ray(report: TrialReport | TrialFailure) -> dict[str, str]:
    """For `ray.tune.report` and `ray.train.report`."""
    return {REPORT if isinstance(report, TrialReport) else FAILURE: report.model_dump_json()}


def from_ray(result: Mapping[str, Any]) -> TrialReport | TrialFailure:
    """What `to_ray` was given; Ray has added keys of its own."""
    if FAILURE in result:
        return TrialFailure.model_validate_json(result[FAILURE])
    return TrialReport.model_validate_json(result[REPORT])
