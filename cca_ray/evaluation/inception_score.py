"""Inception score: how sure a classifier is of each image, and how many classes it finds (Salimans et al. 2016)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cca_ray.evaluation.features import FeatureArrays
from cca_ray.evaluation.metric import Context, Metric

BLOCK = 5000  # images a block, as in the ADM evaluator
State = list[dict[int, "Divergence"]]


@dataclass(frozen=True)
class Divergence:
    """Of one block of images: count, summed p(y | x) [K], summed p log p; float64."""

    n: int
    p: np.ndarray
    p_log_p: float

    @staticmethod
    def of(probabilities: np.ndarray) -> "Divergence":
        """probabilities [N, K]."""
        p = np.asarray(probabilities, dtype=np.float64).clip(1e-30)
        return Divergence(len(p), p.sum(0), float((p * np.log(p)).sum()))

    def merge(self, other: "Divergence") -> "Divergence":
        return Divergence(self.n + other.n, self.p + other.p, self.p_log_p + other.p_log_p)

    @property
    def score(self) -> float:
        """exp of the mean divergence between p(y | x) and p(y)."""
        marginal = self.p / self.n
        return float(np.exp(self.p_log_p / self.n - (marginal * np.log(marginal)).sum()))


def divergences(probabilities: np.ndarray, index: np.ndarray, block: int = BLOCK) -> dict[int, Divergence]:
    """By block, of images with these indices: probabilities [N, K], index [N]."""
    return {int(b): Divergence.of(probabilities[index // block == b]) for b in np.unique(index // block)}


def inception_score(parts: Iterable[Mapping[int, Divergence]]) -> float:
    """The mean over the blocks, each merged from its parts. Blocks must mix the classes: permute a file that does not.

    Source: the ADM evaluator, after Salimans et al. 2016.
    """
    blocks: dict[int, Divergence] = {}
    for part in parts:
        for block, divergence in part.items():
            blocks[block] = blocks[block].merge(divergence) if block in blocks else divergence
    return float(np.mean([divergence.score for divergence in blocks.values()]))


class InceptionScore(Metric[State]):
    """Keeps the parts as they are: summed in their order at the end, they give the same whoever merged them."""

    name, label = "inception_score", "inception score"
    lower_is_better = False
    needs = frozenset({"probabilities"})

    def state_of(self, features: FeatureArrays, index: np.ndarray, context: Context) -> State:
        assert features.probabilities is not None
        return [divergences(features.probabilities, index)]

    def merge(self, first: State, second: State) -> State:
        return first + second

    def value(self, state: State, context: Context) -> float:
        return inception_score(state)


INCEPTION_SCORE = InceptionScore()
