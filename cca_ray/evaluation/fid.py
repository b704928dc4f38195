"""Fréchet distance of the features' moments (Heusel et al. 2017): FID of the pooled features, sFID of the spatial ones.

Everything is summed in float64.
"""

import numpy as np

from cca_ray.evaluation.features import FeatureArrays
from cca_ray.evaluation.metric import Context, Metric
from cca_ray.evaluation.reference import Moments, Reference

State = Moments | list[np.ndarray]  # the features themselves, [n, D] each, where they are few


def frechet_distance(sample: Moments, reference: Reference) -> float:
    """|mu - mu_r|² + tr(S + S_r - 2 (S S_r)^½).

    tr (S S_r)^½ is the sum of the roots of the eigenvalues of Lᵀ S L, which is symmetric (L Lᵀ = S_r).
    """
    delta = sample.mean - reference.mean
    inner = reference.factor.T @ sample.covariance @ reference.factor
    trace_root = np.sqrt(np.linalg.eigvalsh(inner).clip(0)).sum()
    return float(delta @ delta + np.trace(sample.covariance) + np.trace(reference.covariance) - 2 * trace_root)


def frechet_distance_few(features: np.ndarray, reference: Reference) -> float:
    """The same from features [N, D] with N < D, by the N x N Gram matrix: smaller, and exact at low rank.

    With S = Xᵀ X / (N - 1), the eigenvalues of Lᵀ S L other than 0 are those of X S_r Xᵀ / (N - 1).
    """
    x = np.asarray(features, dtype=np.float64)
    mean = x.mean(0)
    x = (x - mean) / np.sqrt(len(x) - 1)
    projected = x @ reference.factor
    trace_root = np.sqrt(np.linalg.eigvalsh(projected @ projected.T).clip(0)).sum()
    delta = mean - reference.mean
    return float(delta @ delta + np.square(x).sum() + np.trace(reference.covariance) - 2 * trace_root)


class FrechetDistance(Metric[State]):
    """Keeps the features of few images: fewer than there are features, their inner products are smaller, and exact."""

    name, label = "fid", "FID"

    def state_of(self, features: FeatureArrays, index: np.ndarray, context: Context) -> State:
        few = context.samples < len(context.reference.mean)
        return [features.pooled] if few else Moments.of(features.pooled)

    def merge(self, first: State, second: State) -> State:
        if isinstance(first, Moments):
            assert isinstance(second, Moments)
            return first.merge(second)
        assert isinstance(second, list)
        return first + second

    def value(self, state: State, context: Context) -> float:
        if isinstance(state, Moments):
            return frechet_distance(state, context.reference)
        return frechet_distance_few(np.concatenate(state), context.reference)


class SpatialFrechetDistance(Metric[Moments]):
    """Nash et al. 2021, with the features that the ADM evaluator takes."""

    name, label = "sfid", "sFID"
    needs = frozenset({"spatial", "reference_spatial"})

    def state_of(self, features: FeatureArrays, index: np.ndarray, context: Context) -> Moments:
        assert features.spatial is not None
        return Moments.of(features.spatial)

    def merge(self, first: Moments, second: Moments) -> Moments:
        return first.merge(second)

    def value(self, state: Moments, context: Context) -> float:
        assert context.reference.spatial is not None
        return frechet_distance(state, context.reference.spatial)


FID, SFID = FrechetDistance(), SpatialFrechetDistance()
