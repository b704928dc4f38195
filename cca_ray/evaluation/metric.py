"""The face of a metric: what it keeps of the images' features, and the number that follows from it.

A metric is three pure functions.  `state_of` a batch of features; `merge` of two states; `value` of a state.  Every
worker keeps one state for each group of the jackknife.  The states of a group are merged in the order of the images,
and the groups in theirs, so that no value depends on who scored which images.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any, Generic, Literal, TypeVar

import numpy as np
import torch

from cca_ray.evaluation.features import FeatureArrays, Provided
from cca_ray.evaluation.reference import Reference
from cca_ray.registry import METRICS

Need = Provided | Literal["reference_features", "reference_spatial"]
S = TypeVar("S")

REASONS: dict[Need, str] = {
    "pooled": "the feature network gives no pooled features",
    "spatial": "the feature network gives no spatial features",
    "probabilities": "the feature network gives no class probabilities",
    "reference_features": "score.reference holds no features of real images: make it again with "
    "python -m cca_ray.prepare --reference, or, if it is of a small base, delete it",
    "reference_spatial": "score.reference has no mu_s and sigma_s",
}


Sums = Sequence[Callable[[], float]]  # to be worked out, each by itself


def one_by_one(sums: Sums) -> list[float]:
    return [work_out() for work_out in sums]


@dataclass(frozen=True)
class Context:
    """What a metric knows besides the features of the images."""

    reference: Reference
    samples: int  # images in all
    device: torch.device  # where large sums may be made
    each: Callable[[Sums], list[float]] = one_by_one  # works sums out, and tells every worker: all of them must ask


class Metric(ABC, Generic[S]):
    """A number that says how good the images of a model are. `S` is its state: it is pickled, and never changed.

    `needs`: what the feature network and the reference must provide. Where one of these is missing, or where there are
    not even `fewest` images, the metric is absent.
    """

    kind = "metric"
    name: str  # in search spaces, files and tables
    label: str  # in figures and sentences
    lower_is_better: bool = True
    needs: frozenset[Need] = frozenset({"pooled"})
    fewest: int = 2

    @abstractmethod
    def state_of(self, features: FeatureArrays, index: np.ndarray, context: Context) -> S:
        """Of some images: their features, and their indices [N] among all."""

    @abstractmethod
    def merge(self, first: S, second: S) -> S:
        """The state of the images of both."""

    @abstractmethod
    def value(self, state: S, context: Context) -> float:
        """The metric of all images in a state."""

    def merged(self, states: Iterable[S | None]) -> S | None:
        """In order; None stands for no images."""
        found = [state for state in states if state is not None]
        return reduce(self.merge, found) if found else None

    def with_jackknife(self, groups: Sequence[S], context: Context) -> tuple[float, tuple[float, ...]]:
        """The value of all groups together, and the values without each: of a single group it is the same value.

        A metric may do this at less cost.
        """

        def together(some: Sequence[S]) -> float:
            return self.value(reduce(self.merge, some), context)

        if len(groups) == 1:
            return (whole := together(groups)), (whole,)
        others = ([*groups[:g], *groups[g + 1 :]] for g in range(len(groups)))
        whole, *without = context.each([partial(together, some) for some in (groups, *others)])
        return whole, tuple(without)


class FeatureMetric(Metric[list[np.ndarray]]):
    """A metric of all pooled features at once: they are its state, [n, D] each."""

    def state_of(self, features: FeatureArrays, index: np.ndarray, context: Context) -> list[np.ndarray]:
        return [features.pooled]

    def merge(self, first: list[np.ndarray], second: list[np.ndarray]) -> list[np.ndarray]:
        return first + second


AnyMetric = Metric[Any]  # whose state nothing but itself looks into


def metric_named(name: str) -> AnyMetric:
    """ValueError if there is none of this name, or if it is no metric."""
    metric = METRICS.get(name)
    if not isinstance(metric, Metric):
        raise ValueError(f"metric {name!r}: is not a cca_ray.evaluation.metric.Metric")
    return metric


def obstacle(metric: AnyMetric, provided: frozenset[Provided], reference: Reference, images: int) -> str:
    """Why a metric cannot be had of so many images; empty if it can."""
    there: set[Need] = {*provided}
    if reference.features is not None:
        there.add("reference_features")
    if reference.spatial is not None:
        there.add("reference_spatial")
    if missing := sorted(metric.needs - there):
        return REASONS[missing[0]]
    return f"it needs {metric.fewest} images, not {images}" if images < metric.fewest else ""
