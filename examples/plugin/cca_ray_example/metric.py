"""A metric: how far the mean feature of the samples is from that of real images."""

from dataclasses import dataclass

import numpy as np

from cca_ray.evaluation.features import FeatureArrays
from cca_ray.evaluation.metric import Context, Metric


@dataclass(frozen=True)
class Sum:
    """Of the features of some images: their number, and their sum [D] in float64."""

    images: int
    total: np.ndarray


class MeanDistance(Metric[Sum]):
    name = "mean_distance"  # in search spaces and files
    label = "mean feature distance"  # in tables and figures
    lower_is_better = True
    needs = frozenset({"pooled"})  # of what a feature network may provide

    def state_of(self, features: FeatureArrays, index: np.ndarray, context: Context) -> Sum:
        return Sum(len(features.pooled), features.pooled.sum(0, dtype=np.float64))

    def merge(self, first: Sum, second: Sum) -> Sum:
        return Sum(first.images + second.images, first.total + second.total)

    def value(self, state: Sum, context: Context) -> float:
        return float(np.linalg.norm(state.total / state.images - context.reference.mean))
