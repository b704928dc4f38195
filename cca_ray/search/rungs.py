"""Which trials go on at a rung: a pure function of the scores there so far."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cca_ray.config import StudyConfig
from cca_ray.contracts import RungScore
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.registry import METRICS


def cost(metric: str, value: float) -> float:
    """A score so that less is better."""
    return value if METRICS.get(metric).lower_is_better else -value


def best_value(metric: str, scores: Sequence[RungScore]) -> float:
    return min((score.values[metric] for score in scores), key=lambda value: cost(metric, value))


@dataclass(frozen=True)
class Mark:
    """A trial's costs at a rung by the metrics that are searched, [M]; less is better.

    `without` [M, G]: the same without each group of the jackknife.
    """

    costs: np.ndarray
    without: np.ndarray

    @staticmethod
    def of(score: RungScore, metrics: Sequence[str]) -> "Mark":
        """By these metrics, each with its jackknife."""
        without = [[cost(name, value) for value in score.without[name]] for name in metrics]
        return Mark(np.array([cost(name, score.values[name]) for name in metrics]), np.array(without))

    def surely_better(self, other: "Mark") -> bool:
        """No worse in any metric, and in one better by more than two standard errors of the difference.

        All trials are scored on the same noise, so the error of a difference is that of paired samples: as far as the
        noise made them alike, which it does less where another card drew them in bfloat16.
        """
        errors = [jackknife_error(differences) for differences in self.without - other.without]
        ahead = other.costs - self.costs
        return bool((ahead >= 0).all() and (ahead > 2 * np.array(errors)).any())


def goes_on(mark: Mark, others: Sequence[Mark], keep: float, grace: int) -> bool:
    """The rule at a rung: among the best share `keep` of all scored there so far, or not to be told from them.

    Asynchronous successive halving's (Li et al. 2020), but a trial stops only if enough others are surely better.
    The first `grace` trials always go on: a rule on fewer would stop good trials by luck.
    """
    count = len(others) + 1
    return count <= grace or sum(other.surely_better(mark) for other in others) < math.ceil(count * keep)


def share_kept(config: StudyConfig, rung: int) -> float:
    """Of the trials at the rung of this number, how many go on."""
    keep = config.rungs[min(rung, len(config.rungs) - 1)].keep
    return config.search.keep if keep is None else keep
