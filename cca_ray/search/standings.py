"""How models did on common blocks of fresh noise: which wins, what ties with it, how far two are apart.

Pure functions of scores; `fresh_scores` makes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from cca_ray.contracts import Difference, MetricInfo, ModelScore, Score
from cca_ray.evaluation.estimate import Estimate
from cca_ray.evaluation.jackknife import jackknife_error

SURELY = 0.01  # with a lower chance to be as good as the best, a setting is out


@dataclass(frozen=True)
class Contender:
    """A model in the final comparison: a trial's, or the base."""

    key: str  # names the model among all of the study: the trial's, or the size's base
    checkpoint: str | None = None
    guidance_scale: float = 1.0
    params: tuple[tuple[str, float], ...] = ()
    images: int = 0  # that training took, by which settings are cheap or dear
    number: int = -1


@dataclass(frozen=True)
class Standing:
    """How a finalist did on several blocks of fresh noise, with all models that were trained with its settings.

    By metric: values [R, B] of R models and B blocks; without [R, B, G]: the same without each group of the jackknife.
    `images`: the first of the first model on the first block.
    """

    contender: Contender
    values: dict[str, np.ndarray]
    without: dict[str, np.ndarray]
    images: np.ndarray

    @staticmethod
    def of(contender: Contender, scores: Sequence[Sequence[Score]], images: np.ndarray) -> "Standing":
        """scores: of every model, on every block."""
        names = list(scores[0][0].values)
        values = {name: np.array([[score.values[name] for score in row] for row in scores]) for name in names}
        without = {name: np.array([[score.without[name] for score in row] for row in scores]) for name in names}
        return Standing(contender, values, without, images)

    def mean(self, metric: str) -> float:
        return float(self.values[metric].mean())

    def std(self, metric: str) -> float | None:
        """Of one block by the jackknife, or, where models of several training seeds were scored, of one model.

        None of one model where there are too few images for groups, or the metric has none.

        A few blocks' own spread would be a poor estimate of it: from three it is wrong by half as often as not.
        """
        values = self.values[metric]
        if len(values) > 1:
            return float(values.mean(1).std(ddof=1))
        if self.without[metric].shape[-1] < 2:
            return None
        return float(np.sqrt(np.mean([jackknife_error(without) ** 2 for without in self.without[metric][0]])))

    def unbiased(self) -> "Standing":
        """What many images should give: that there are few adds to a FID, and the jackknife tells how much."""
        values = dict(self.values)
        for name, without in self.without.items():
            if (groups := without.shape[-1]) > 1:
                values[name] = groups * values[name] - (groups - 1) * without.mean(-1)
        return replace(self, values=values)

    def beside(self, other: "Standing", metric: str) -> Estimate:
        """The difference of the means, self - other, on the same blocks of noise.

        Its variance is that of sampling, by the jackknife, which has groups enough where blocks are few. Where models
        of several training seeds were scored, that of training is added; what sampling does to each of them, or pair,
        alone is part of their spread, and is not counted twice. Models stand beside those of the same seeds; where one
        has fewer models than the other, for some failed, each has a spread of its own.
        """
        ours, theirs = self.without[metric], other.without[metric]
        of_ours, of_theirs = self.values[metric].mean(1), other.values[metric].mean(1)
        _, blocks, groups = ours.shape
        sampling, freedom = variance_of_mean(ours.mean(0) - theirs.mean(0)), blocks * (groups - 1)
        if len(theirs) in (1, len(ours)):
            spreads = [(of_ours - of_theirs, ours - theirs)]
            value = float(spreads[0][0].mean())
        else:
            spreads, value = [(of_ours, ours), (of_theirs, theirs)], float(of_ours.mean() - of_theirs.mean())
        parts = list[tuple[float, int]]()
        for by_model, without in spreads:
            if (models := len(by_model)) > 1:
                own = float(np.mean([variance_of_mean(model - without.mean(0)) for model in without])) / (models - 1)
                sampling = max(0.0, sampling - own)
                parts.append((float(by_model.var(ddof=1)) / models, models - 1))
        return Estimate.of(value, [(sampling, freedom), *parts])

    def score(self) -> ModelScore:
        """For the summary: means over the blocks, the spread of one."""
        return ModelScore(
            values={name: self.mean(name) for name in self.values},
            std={name: std for name in self.values if (std := self.std(name)) is not None},
            guidance_scale=self.contender.guidance_scale,
        )


def variance_of_mean(without: np.ndarray) -> float:
    """Of the mean over blocks, whose values without each group are given: without [B, G]."""
    return float(np.square([jackknife_error(block) for block in without]).sum()) / len(without) ** 2


def contested(standings: Sequence[Standing], metric: MetricInfo) -> list[Standing]:
    """Those that may still win, by what is known: the others are surely behind the best.

    With too few images for an error, that is all of them.
    """

    def may_win(standing: Standing) -> bool:
        found = standing.beside(best, metric.name)
        behind = found if metric.lower_is_better else found.negative()
        return not found.freedom or behind.probability_not_above(0.0) > SURELY

    best = min(standings, key=lambda s: metric.cost(s.mean(metric.name)))
    return [s for s in standings if s is best or may_win(s)]


def winner_of(standings: Sequence[Standing], metric: MetricInfo) -> tuple[Standing, list[Standing]]:
    """The winner, and all that cannot be told from the best; of these the cheapest wins, then the better mean."""

    def cost(standing: Standing) -> float:
        return metric.cost(standing.mean(metric.name))

    best = min(standings, key=lambda s: (cost(s), s.contender.number))
    tied = [s for s in standings if s is best or cost(s) - cost(best) <= 2 * s.beside(best, metric.name).error]
    return min(tied, key=lambda s: (s.contender.images, cost(s), s.contender.number)), tied


def surely_better(ours: Standing, theirs: Standing, metric: MetricInfo) -> bool:
    """By the 95 % interval of their difference; by the means alone where there are too few images for one."""
    found = difference(ours, theirs, metric)
    if found is None:
        return metric.cost(ours.mean(metric.name)) < metric.cost(theirs.mean(metric.name))
    return found.high < 0 if metric.lower_is_better else found.low > 0


def difference(ours: Standing, theirs: Standing, metric: MetricInfo) -> Difference | None:
    """None where there are too few images for an error."""
    found = ours.beside(theirs, metric.name)
    if not found.freedom:
        return None
    low, high = found.interval()
    better = found if metric.lower_is_better else found.negative()
    return Difference(value=found.value, low=low, high=high, at_least_as_good=better.probability_not_above(0.0))
