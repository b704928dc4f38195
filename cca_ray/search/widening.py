"""Whether what was chosen lies at an end of what was tried, and what to try beyond it: pure functions.

The baselines widen by themselves, for a baseline at the end of its grid is weaker than it could be. The ranges of the
search do not, for that would be another search: there a setting says how to look further.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import ValidationError

from cca_ray.config import MOST_GUIDANCE, MOST_WIDENING, Range, StudyConfig
from cca_ray.contracts import Edge

NEAR = 0.05  # of a range, on its own scale: what lies nearer to an end than this lies at it
FURTHER = 3  # values more that a grid may be widened by, where it has been widened as far as it might


def next_rate(costs: Mapping[float, float], given: Sequence[float], most: int) -> float | None:
    """The learning rate to try next: one step beyond the end at which the best lies; None if the best lies inside.

    Below all, where all failed: rates that are too high make trainings fail. `costs`: by rate, less is better,
    infinite of one that failed. `most`: rates beyond the given ones. One rate alone is someone's choice, not a grid.
    """
    if len(given) < 2 or not costs or len(costs) - len(given) >= most:
        return None
    rates, (low, second, *_), (*_, last, high) = sorted(costs), sorted(given), sorted(given)
    best = min(rates, key=lambda rate: (costs[rate], rate))
    beyond = {rates[0]: rates[0] * low / second, rates[-1]: rates[-1] * high / last}
    return float(f"{beyond[best]:.3g}") if best in beyond else None


def next_scale(costs: Mapping[float, float], given: Sequence[float], most: int) -> float | None:
    """The same of guidance scales, of which only the largest is an end: below them all lies 1, which is no guidance."""
    if len(given) < 2 or not costs or len(costs) - len(given) >= most:
        return None
    scales, (*_, last, high) = sorted(costs), sorted(given)
    if min(scales, key=lambda scale: (costs[scale], scale)) != scales[-1]:
        return None
    scale = 1 + (scales[-1] - 1) * (high - 1) / (last - 1)
    return float(f"{scale:.3g}") if scale <= MOST_GUIDANCE else None


def edges_of_search(config: StudyConfig, params: Mapping[str, float]) -> tuple[Edge, ...]:
    """Of the winner's settings those at an end of their range, each with the setting that widens it.

    An end beyond which there is nothing, such as a dropout of 0, is none.
    """
    found = []
    for name, bounds in config.search.space.items():
        low, high, value = (
            math.log(v) if bounds.log else v for v in (bounds.low, bounds.high, params.get(name, bounds.low))
        )
        at = (value - low) / (high - low)
        if name not in params or NEAR < at < 1 - NEAR:
            continue
        end: Literal["low", "high"] = "low" if at <= NEAR else "high"
        further = further_end(bounds, end, config.train.is_whole(name))
        if allowed(config, name, further):
            setting = f"search.space.{name}.{end}={further:g}"
            edge = Edge(of=name, value=params[name], low=bounds.low, high=bounds.high, end=end, setting=setting)
            found.append(edge)
    return tuple(found)


def further_end(bounds: Range, end: Literal["low", "high"], whole: bool) -> float:
    """The range again half as long beyond this end, in two digits where that is beyond it."""
    low, high = (math.log(v) if bounds.log else v for v in (bounds.low, bounds.high))
    exact = low - (high - low) / 2 if end == "low" else high + (high - low) / 2
    exact = math.exp(exact) if bounds.log else exact
    if whole:
        return math.floor(exact) if end == "low" else math.ceil(exact)
    short = float(f"{exact:.2g}")
    return short if (short < bounds.low if end == "low" else short > bounds.high) else exact


def allowed(config: StudyConfig, name: str, value: float) -> bool:
    """Whether a range may go so far."""
    if config.search.space[name].log and value <= 0:
        return False
    try:
        config.train_with({name: value})
    except ValidationError:
        return False
    return True


def edge_of_control(
    config: StudyConfig, chosen: float, costs: Mapping[float, float], given: Sequence[float], *, beats_base: bool
) -> tuple[Edge, ...]:
    """The control's learning rate, where it is the smallest or largest of those that were tried.

    `beats_base`: whether the control is surely better than the base, which is what ever smaller rates come to: a
    smallest rate that is not has nothing below it that the table does not show.
    """
    if len(given) < 2 or min(costs) < chosen < max(costs):
        return ()
    end: Literal["low", "high"] = "low" if chosen == min(costs) else "high"
    if end == "low" and not beats_base:
        return ()
    further = next_rate(costs, given, len(costs))  # as if it might go on
    setting = f"control.widen={min(config.control.widen + FURTHER, MOST_WIDENING)}"
    if further is None or (further < chosen) != (end == "low"):  # chosen by the fresh noise, and not by the rungs
        rates = sorted(costs)
        step = rates[1] / rates[0] if end == "low" else rates[-1] / rates[-2]
        more = float(f"{chosen / step if end == 'low' else chosen * step:.3g}")
        setting = f"control.learning_rates=[{','.join(f'{rate:g}' for rate in sorted([*rates, more]))}]"
    return (Edge(of="control_learning_rate", value=chosen, low=min(costs), high=max(costs), end=end, setting=setting),)


def edge_of_guidance(config: StudyConfig, chosen: float, tried: Sequence[float]) -> tuple[Edge, ...]:
    """The guidance scale of the base, where it is the largest of those that were tried."""
    if len(tried) < 2 or chosen < max(tried) or chosen >= MOST_GUIDANCE:
        return ()
    setting = f"score.widen_guidance={min(config.score.widen_guidance + FURTHER, MOST_WIDENING)}"
    return (Edge(of="guidance_scale", value=chosen, low=min(tried), high=max(tried), end="high", setting=setting),)
