"""Which model is better, by how much, and what cannot be told apart: terminal, report and MLflow all ask here.

Of the final comparison by its headline metric; better is what the metric says is better.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from cca_ray.contracts import Finalist, MetricInfo, Role, Score, SizeSummary

WORDS = {1: "better than", 0: "not distinguishable from", -1: "worse than"}  # of `compared`


def compared(size: SizeSummary, other: Role) -> int:
    """The tuned model beside another: 1 if better, -1 if worse, 0 if the 95 % interval of their difference holds 0.

    Of version 0.1.0 there are no differences: then 0 if they are no further apart than their spread.
    """
    if found := size.differences.get(other):
        sign = 0 if found.low <= 0 <= found.high else int(math.copysign(1, found.value))
        return -sign if size.headline.lower_is_better else sign
    gain = size.headline.cost(size.value(other)) - size.headline.cost(size.value("tuned"))
    spread = math.hypot(size.std("tuned") or 0.0, size.std(other) or 0.0)
    return 0 if abs(gain) <= spread else int(math.copysign(1, gain))


def difference(size: SizeSummary, other: Role) -> str:
    """`-2.36 (95 %: -3.10 to -1.62)`, tuned minus other; empty of version 0.1.0."""
    found = size.differences.get(other)
    return f"{found.value:+.2f} (95 %: {found.low:+.2f} to {found.high:+.2f})" if found else ""


def noise(sizes: Sequence[SizeSummary]) -> str:
    """Which sources of noise a ± and an interval cover."""
    models = {size.winner.models for size in sizes}
    spread = "± is the spread of one block of fresh noise"
    if max(models, default=1) > 1:
        seeds = f"{min(models)} training seeds" if len(models) == 1 else "several training seeds"
        return (
            f"{spread}, and for what was tuned that between {seeds}; intervals cover both. One base stands behind each "
            "size"
        )
    return (
        f"{spread}: sampling alone. One base and one training seed stand behind each size; --replicates 2 adds the "
        "noise of training"
    )


def ratio(size: SizeSummary, other: Role) -> float:
    """The tuned model's value, in multiples of another's."""
    return size.value("tuned") / size.value(other)


def with_spread(value: float, std: float | None) -> str:
    """`16.17 ± 0.20`."""
    return f"{value:.2f}" if std is None else f"{value:.2f} ± {std:.2f}"


def scored(size: SizeSummary, role: Role, metric: MetricInfo | None = None) -> str:
    """How a model did, by the headline unless another metric is given."""
    return with_spread(size.value(role, metric), size.std(role, metric))


def ties(size: SizeSummary) -> tuple[Finalist, ...]:
    """The other finalists that cannot be told from the winner."""
    return tuple(f for f in size.finalists if f.tied and f.trial != size.winner.trial)


def best_of(scores: Mapping[int, Score], metric: MetricInfo) -> int | None:
    """The number of the trial with the best score, of equal ones the first; None of no trials."""
    return min(scores, key=lambda number: (metric.cost(scores[number].values[metric.name]), number), default=None)


def front(points: np.ndarray) -> np.ndarray:
    """Which of these points [N, M] no other beats in every coordinate or equals in some and beats in the rest: [N]."""
    no_worse = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    return np.logical_not((no_worse & better).any(0))


def verdict(size: SizeSummary) -> str:
    """The outcome in one sentence."""
    apart = difference(size, "guided")
    return (
        f"{size.size}: {WORDS[compared(size, 'guided')]} the guided base, at half its cost: {size.headline.label} "
        f"{size.value('tuned'):.2f} after {size.objective_label}, without guidance, is {ratio(size, 'guided'):.2f} × "
        f"the guided base{f', {apart}' * bool(apart)}, and {ratio(size, 'control'):.2f} × the control"
    )


def verdict_in_words(size: SizeSummary) -> str:
    """The same for who does not know the ratios' meaning."""
    return (
        f"after {size.objective_label}, {size.size} samples without guidance at {size.headline.label} "
        f"{scored(size, 'tuned')}: {WORDS[compared(size, 'guided')]} the guided base ({size.value('guided'):.2f}), at "
        f"half its sampling cost, and {WORDS[compared(size, 'control')]} plain fine-tuning with the same budget "
        f"({size.value('control'):.2f})"
    )
