"""Where a trial stands in each figure, in the figure's own coordinates: what is drawn, and what can be pointed at.

A trial is a path; its last point is the trial itself. It is empty where the figure does not show the trial.
"""

import math

import numpy as np

from cca_ray.contracts import MetricInfo
from cca_ray.reporting.results import SizeResults, TrialRow
from cca_ray.reporting.settings import Bounds
from cca_ray.reporting.style import STEEP, at_least_above

Place = tuple[float, float]
TOP = math.inf  # the upper edge: where trials stand that failed before they had a score


def is_scored(size: SizeResults, t: TrialRow) -> bool:
    """A completed trial of the search whose score is a number."""
    return t.arm == "search" and t.state == "COMPLETE" and math.isfinite(t.last(size.metric))


def scored(size: SizeResults) -> list[TrialRow]:
    return [t for t in size.trials if is_scored(size, t)]


def in_landscape(size: SizeResults, t: TrialRow) -> list[Place]:
    """Over the first two of what was searched; where there is but one, its score above that."""
    names = list(size.space)
    if not set(names) <= set(t.params):  # one may have been killed before it had all
        return []
    if t.state == "COMPLETE" and not is_scored(size, t):
        return []
    if len(names) > 1:
        return [(t.params[names[0]], t.params[names[1]])] if t.rungs or t.state in ("FAIL", "RUNNING") else []
    y = TOP if t.state == "FAIL" else t.last(size.metric)
    return [] if math.isnan(y) or t.state == "RUNNING" else [(t.params[names[0]], y)]


def in_history(size: SizeResults, t: TrialRow) -> list[Place]:
    """Above its number, from the first rung to the last."""
    if t.state == "FAIL":
        return [(t.number, TOP)]
    return finite([(t.number, rung.values[size.metric.name]) for rung in t.rungs])


def in_rungs(size: SizeResults, t: TrialRow) -> list[Place]:
    return finite([(rung.step, rung.values[size.metric.name]) for rung in t.rungs])


def of_trade_off(size: SizeResults) -> tuple[MetricInfo, ...]:
    """The two metrics whose trade-off is drawn: the first that were searched, or else that were measured."""
    two = tuple(dict.fromkeys([*size.searched, *size.metrics]))[:2]
    return tuple(metric for metric in size.metrics if metric in two)


def in_trade_off(size: SizeResults, t: TrialRow) -> list[Place]:
    across, up = of_trade_off(size)
    return finite([(t.last(across), t.last(up))]) if is_scored(size, t) else []


def bounds_of_scores(size: SizeResults) -> Bounds:
    """Of the last axis of parallel coordinates. The worst tenth lies at its end."""
    scores = [t.last(size.metric) for t in scored(size)]
    low, high = min(scores), max(scores)
    if size.metric.lower_is_better:
        high = float(np.quantile(scores, 0.9))
    else:
        low = float(np.quantile(scores, 0.1))
    return Bounds(low=low, high=at_least_above(low, high), log=0 < STEEP * low < high)


def in_parallel(size: SizeResults, t: TrialRow) -> list[Place]:
    """Over all that was searched, to its score: better is higher."""
    if not is_scored(size, t):
        return []
    at = height(bounds_of_scores(size), t.last(size.metric))
    heights = [height(bounds, t.params[name]) for name, bounds in size.space.items()]
    return list(enumerate([*heights, 1 - at if size.metric.lower_is_better else at]))


def finite(places: list[Place]) -> list[Place]:
    return [place for place in places if all(map(math.isfinite, place))]


def height(bounds: Bounds, value: float) -> float:
    """Where on an axis of these bounds, from 0 to 1."""
    inside = min(max(value, bounds.low), bounds.high)  # one that is left out may be 0, of which there is no logarithm
    value, low, high = (math.log(v) if bounds.log else v for v in (inside, bounds.low, bounds.high))
    return (value - low) / (high - low)
