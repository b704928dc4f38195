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
    """What the search of one size may use; what the final comparison needs is kept back from it."""

    seconds: float = math.inf  # of wall time, from `started` on
    device_seconds: float = math.inf  # of all its trials, over all runs of the command
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


def affordable(limits: Limits, now: float, used: Used, final: float, devices: float) -> bool:
    """Whether a trial more can be expected to end, and leave what the final comparison needs untouched.

    A trial is expected to take as much as the mean completed one. `now`: by the clock of `Limits.started`. `final`:
    seconds of the final comparison, on so many `devices`.
    """
    completed = used.completed or ((0.0, 0.0),)
    seconds, device_seconds = (float(np.mean(column)) for column in zip(*completed, strict=True))
    begun = sum(max(device_seconds, so_far) for so_far in used.running)
    wall = now - limits.started + seconds + final
    in_all = used.device_seconds + begun + device_seconds + devices * final
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
