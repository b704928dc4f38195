"""What the search of one size may use, and whether it allows a trial more: pure functions of plain numbers."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from cca_ray.config import StudyConfig
from cca_ray.contracts import RungScore
from cca_ray.search.blocks import few_samples


@dataclass(frozen=True)
class Limits:
    """What the search of one size may use; what replicates and the final comparison need is kept back from it."""

    seconds: float = math.inf  # of wall time, from `started` on
    device_seconds: float = math.inf  # of all its trials, over all runs of the command
    replicates: int = 0  # finalists that are still to be trained again, each like a trial, after the search
    started: float = field(default_factory=time.monotonic)

    @property
    def bound(self) -> bool:
        return not (math.isinf(self.seconds) and math.isinf(self.device_seconds))


@dataclass(frozen=True)
class Used:
    """What the trials of a size have used so far. Device seconds are those of all workers, on cards of any type."""

    device_seconds: float  # of all trials but those that run
    running: tuple[float, ...]  # device seconds of each trial that runs
    completed: tuple[tuple[float, float], ...]  # seconds and device seconds of each completed trial


def mean_trial(used: Used) -> tuple[float, float]:
    """Seconds and device seconds of a completed trial; none of both before there is one."""
    seconds, device_seconds = zip(*(used.completed or ((0.0, 0.0),)), strict=True)
    return float(np.mean(seconds)), float(np.mean(device_seconds))


def kept_back(limits: Limits, used: Used, final: float, devices: float, at_once: int) -> tuple[float, float]:
    """Seconds and device seconds of the replicates, so many at a time, and of the final comparison.

    `final`: seconds of the comparison, on so many `devices`.
    """
    seconds, device_seconds = mean_trial(used)
    rounds = math.ceil(limits.replicates / at_once)
    return rounds * seconds + final, limits.replicates * device_seconds + devices * final


def affordable(limits: Limits, now: float, used: Used, kept: tuple[float, float]) -> bool:
    """Whether a trial more can be expected to end, and leave what is kept back untouched.

    A trial is expected to take as much as the mean completed one. `now`: by the clock of `Limits.started`. `kept`:
    seconds and device seconds.
    """
    seconds, device_seconds = mean_trial(used)
    begun = sum(max(device_seconds, so_far) for so_far in used.running)
    wall = now - limits.started + seconds + kept[0]
    in_all = used.device_seconds + begun + device_seconds + kept[1]
    return wall <= limits.seconds and in_all <= limits.device_seconds


def final_samples(config: StudyConfig) -> tuple[int, int]:
    """How many images the final comparison scores at most: no finalist and no scale is surely behind.

    Without guidance, and with it.
    """
    score, each = config.score, 1 + config.search.replicates  # models of a setting
    to_choose = len(config.control.learning_rates) + score.blocks * score.finalists * each
    shown = score.blocks * (2 + each) + (score.finalists - 1) * each  # base, control, winner; the other finalists
    scales, few = len(score.guidance_scales + score.winner_guidance_scales), few_samples(config) or 0
    guided = scales + score.blocks * (1 + bool(score.winner_guidance_scales))
    return score.samples * (to_choose + shown), score.samples * guided + few * scales


def final_seconds(config: StudyConfig, rungs: Sequence[RungScore]) -> float:
    """What the final comparison should take, from the time that these scores at rungs took; guided ones take twice."""
    if not rungs:
        return 0.0
    plain, guided = final_samples(config)
    return (plain + 2 * guided) * sum(rung.scoring_seconds for rung in rungs) / sum(rung.samples for rung in rungs)
