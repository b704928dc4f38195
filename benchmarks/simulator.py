"""Whole studies in milliseconds: landscapes whose truth is known, with the noise of real scores, and trials on them.

A landscape says what FID a trial with these settings comes to in expectation, after any part of its training. It is a
table of real trials (`landscape`), smoothed, or analytic. Analytic ones have what the digits and the paper show: a
tilted valley in (λ, learning rate), a level far from it that hardly differs from the base's, a cliff where the steps
are too large, and an optimum that moves with progress and with the model's size.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol
from zlib import crc32

import numpy as np
from scipy.interpolate import RBFInterpolator

from benchmarks.landscape import Row

NAMES = ("lambda", "learning_rate")
GROUPS = 10  # of the jackknife
FINE = 121  # values an axis in the search for the true best
WINDOW = (2.0, 1.2)  # decades that a study searches: not all of a table, so that its middle is nothing special
SMOOTHING = 0.02  # of a table: so much that residuals are noise (thin-plate splines)
PERSISTS = 0.75  # share of a training's luck that stays from rung to rung; an assumption


@dataclass(frozen=True)
class Noise:
    """Of scores, in shares of the FID. `common`: correlation of the sampling noise of two trials."""

    sampling: float
    training: float
    common: float

    def times(self, factor: float) -> "Noise":
        return replace(self, sampling=factor * self.sampling, training=factor * self.training)


class Landscape(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str:
        """Of its sizes a smaller one is known to a larger one."""

    @property
    def noise(self) -> Noise:
        """At the last rung."""

    @property
    def bounds(self) -> np.ndarray:
        """log10 of the settings [2, 2]: low and high of each, within which it is known."""

    @property
    def doublings(self) -> float:
        """Of the model's parameters, against the smallest size's."""

    def fid(self, x: np.ndarray, at: float) -> np.ndarray:
        """Expected [N] at log10 of the settings [N, 2] after this share of the training."""


@dataclass(frozen=True)
class Analytic:
    """A tilted valley with a cliff. Widths are in decades, of what doubles a small excess."""

    name: str
    best: tuple[float, float]  # log10 of the best settings
    widths: tuple[float, float]
    floor: float  # the best FID
    depth: float  # log of the base's FID against it
    tilt: float = 0.6  # radians: a larger λ wants a smaller rate
    cliff: float = 0.5  # decades from the best to the cliff, along the rate
    noise: Noise = Noise(0.015, 0.015, 0.3)
    doublings: float = 0.0

    @property
    def family(self) -> str:
        return self.name.rpartition("-")[0]

    @property
    def bounds(self) -> np.ndarray:
        around = np.array([[-2.0, 2.0], [-1.2, 1.2]])
        return around + np.array(self.best)[:, None]

    def fid(self, x: np.ndarray, at: float) -> np.ndarray:
        a, b = (x - np.array(self.best)).T
        b = b + 0.6 * np.log10(at)  # half the steps are like a smaller rate
        p = (np.cos(self.tilt) * b + np.sin(self.tilt) * a) / self.widths[1]
        q = (np.cos(self.tilt) * a - np.sin(self.tilt) * b) / self.widths[0]
        valley = self.depth * (1 - np.exp(-np.log(2) * 0.1 * (p**2 + q**2) / self.depth))
        cliff = 0.15 * np.logaddexp(0, (b + 0.3 * a - self.cliff) / 0.05)
        first_worse = 0.1 * np.maximum(a, 0) * (1 - at)  # a large λ, which comes into its own late
        return self.floor * np.exp(valley + cliff + first_worse + 0.08 * -np.log2(at))


def family(name: str, drift: tuple[float, float], **shape: object) -> list[Analytic]:
    """Three sizes, whose best settings drift by this much from one to the next."""
    first = Analytic(name=f"{name}-1", **shape)  # type: ignore[arg-type]
    sizes = []
    for k in range(3):
        moved = (first.best[0] + k * drift[0], first.best[1] + k * drift[1])
        sizes.append(replace(first, name=f"{name}-{k + 1}", best=moved, floor=first.floor * 0.6**k, doublings=1.5 * k))
    return sizes


FAMILIES = {
    "wide": family("wide", (0.25, -0.12), best=(2.5, -5.0), widths=(0.6, 0.3), floor=7.0, depth=1.5),
    "narrow": family("narrow", (0.2, -0.1), best=(1.8, -4.7), widths=(0.35, 0.18), floor=4.0, depth=1.2, cliff=0.3),
    "noisy": family(
        "noisy", (0.25, -0.12), best=(0.5, -2.4), widths=(0.5, 0.25), floor=10.0, depth=1.4, cliff=0.4,
        noise=Noise(0.08, 0.03, 0.3),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Tabulated:
    """One size of a table of real trials: log FID, smoothed over (λ, rate) at every rung, and linear between rungs.

    All rows have one β and one `null_ratio`: what these change is no noise.
    """

    name: str
    family: str
    rows: tuple[Row, ...]
    doublings: float = 0.0

    @staticmethod
    def of(rows: Sequence[Row], smallest: int) -> "Tabulated":
        """A size's rows, of which those of another β or `null_ratio` than most have are left out.

        `smallest`: the parameters of the smallest size of the table.
        """
        ((most, _),) = Counter(row.settings[2:] for row in rows).most_common(1)
        own = tuple(row for row in rows if row.settings[2:] == most)
        return Tabulated(own[0].space, own[0].family, own, float(np.log2(own[0].parameters / smallest)))

    @cached_property
    def bounds(self) -> np.ndarray:
        x = self.places(self.rows)
        return np.array([x.min(0), x.max(0)]).T

    @staticmethod
    def places(rows: Sequence[Row]) -> np.ndarray:
        return np.log10([row.settings[:2] for row in rows])

    def shares(self, x: np.ndarray) -> np.ndarray:
        return (x - self.bounds[:, 0]) / (self.bounds[:, 1] - self.bounds[:, 0])

    @cached_property
    def rungs(self) -> dict[float, Callable[[np.ndarray], np.ndarray]]:
        """log FID by the settings in shares of the table, at every rung; what diverged counts as twice the worst."""
        found: dict[float, Callable[[np.ndarray], np.ndarray]] = {}
        for at in sorted({row.at for row in self.rows}):
            rows = [row for row in self.rows if row.at == at]
            fid = np.array([row.fid for row in rows])
            fid[~np.isfinite(fid)] = 2 * fid[np.isfinite(fid)].max()
            found[at] = RBFInterpolator(self.shares(self.places(rows)), np.log(fid), smoothing=SMOOTHING)
        return found

    def fid(self, x: np.ndarray, at: float) -> np.ndarray:
        ats = list(self.rungs)
        upper = next((i for i, known in enumerate(ats) if known >= at), len(ats) - 1)
        lower = max(0, upper - (ats[upper] > at))
        share = 0.0 if lower == upper else np.log(at / ats[lower]) / np.log(ats[upper] / ats[lower])
        within = self.shares(x)
        return np.exp((1 - share) * self.rungs[ats[lower]](within) + share * self.rungs[ats[upper]](within))

    @cached_property
    def noise(self) -> Noise:
        """As measured: the jackknife's, what of the residuals is more than that, and what two trials share."""
        last = [row for row in self.rows if row.at == 1 and np.isfinite(row.fid)]
        sampling = float(np.median([row.error / row.fid for row in last]))
        residuals = np.log([row.fid for row in last]) - self.rungs[1.0](self.shares(self.places(last)))
        moves = np.array([np.array(row.without) - np.mean(row.without) for row in last])
        pairs = np.corrcoef(moves)
        common = float(np.clip(np.mean(pairs[np.triu_indices(len(pairs), 1)]), 0.0, 0.95))
        own = sampling**2 * (1 - common)
        training = float(np.sqrt(max(np.var(residuals) - own, 0.01**2)))
        return Noise(sampling, training, common)


@dataclass(frozen=True)
class Known:
    """The study of a smaller size, which is done: its trials, and how many doublings smaller it is.

    As in a study, its best settings are tried first, whichever way to search then goes on.
    """

    trials: Sequence["Trial"]
    doublings: float

    @property
    def best(self) -> Mapping[str, float]:
        found = best_observed(self.trials)
        assert found is not None
        return found.params


@dataclass(frozen=True)
class Task:
    """What one simulated study searches: a landscape in a window of its own, and how its trials fare."""

    landscape: Landscape
    low: np.ndarray  # log10 of the settings [2]
    high: np.ndarray
    noise: Noise
    seed: int
    fails: bool = False  # every eighth trial
    known: Known | None = None

    @staticmethod
    def of(landscape: Landscape, study: int, louder: float = 1.0, fails: bool = False) -> "Task":
        """The window's place is drawn, so that the best point lies anywhere in it but at its very edge.

        The seed is of this study on this landscape: on another, a study of the same number has another luck.
        """
        seed = crc32(f"{landscape.name} {study}".encode()) >> 2
        rng = np.random.default_rng([seed, 1])
        low, high = landscape.bounds.T
        width = np.minimum(WINDOW, 0.85 * (high - low))
        best = best_in(landscape, low, high)[0]
        first = np.clip(best - rng.uniform(0.1, 0.9, 2) * width, low, high - width)
        return Task(landscape, first, first + width, landscape.noise.times(louder), seed, fails)

    @cached_property
    def best(self) -> float:
        """The true FID of the best settings in the window."""
        return best_in(self.landscape, self.low, self.high)[1]

    def regret(self, params: Mapping[str, float]) -> float:
        """How far the true FID of these settings is above the best, as a share."""
        return float(self.landscape.fid(point(params)[None], 1.0)[0] / self.best - 1)


def best_in(landscape: Landscape, low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, float]:
    axes = [np.linspace(a, b, FINE) for a, b in zip(low, high, strict=True)]
    x = np.stack(np.meshgrid(*axes), -1).reshape(-1, 2)
    fid = landscape.fid(x, 1.0)
    return x[fid.argmin()], float(fid.min())


def point(params: Mapping[str, float]) -> np.ndarray:
    return np.log10([params[name] for name in NAMES])


@dataclass
class Trial:
    """One that was begun. `scores`: value and jackknife at every rung that it has passed."""

    number: int
    params: Mapping[str, float]
    scores: list[tuple[float, np.ndarray]]
    state: str = "running"  # then complete, stopped or failed


class Way(Protocol):
    """A way to search: what is tried next, and what goes on at a rung. `trials`: all so far, in order."""

    @property
    def rungs(self) -> tuple[float, ...]:
        """Shares of a trial where it is scored; the last is 1."""

    def propose(self, trials: Sequence[Trial]) -> Mapping[str, float]: ...
    def goes_on(self, trials: Sequence[Trial], trial: Trial) -> bool:
        """At a rung before the last, whose score the trial already has."""

    def ended(self, trial: Trial) -> None: ...
    def incumbent(self, trials: Sequence[Trial]) -> Trial | None:
        """What it would answer now."""


def best_observed(trials: Sequence[Trial]) -> Trial | None:
    """Of the completed trials the one with the best last score, as the final comparison takes its finalists."""
    done = [trial for trial in trials if trial.state == "complete"]
    return min(done, key=lambda trial: trial.scores[-1][0], default=None)


class Scorer:
    """Gives trials their scores: the truth, the luck of a training, and the noise of sampling."""

    def __init__(self, task: Task):
        self.task = task

    def rng(self, *of: int) -> np.random.Generator:
        return np.random.default_rng([self.task.seed, 2, *of])

    def score(self, trial: Trial, rung: int, at: float) -> tuple[float, np.ndarray]:
        """Value and jackknife. Every trial of a study has its own luck, whichever way to search it belongs to."""
        noise, key = self.task.noise, round(1000 * at)
        sampling = noise.sampling * (1.0 if at == 1 else 2**0.5)  # from half as many images
        mean = float(self.task.landscape.fid(point(trial.params)[None], at)[0])
        luck, own = self.rng(trial.number, 0).normal(), self.rng(trial.number, key)
        training = noise.training * (PERSISTS**0.5 * luck + (1 - PERSISTS) ** 0.5 * own.normal())
        # What each group of images changes; of a common part, all trials at this rung have the same.
        shared = self.rng(10**6, key).normal(size=GROUPS)
        moves = noise.common**0.5 * shared + (1 - noise.common) ** 0.5 * own.normal(size=GROUPS)
        value = mean * (1 + training + sampling * moves.sum() / GROUPS**0.5)
        return value, value - mean * sampling * GROUPS**0.5 * (moves - moves.mean()) / (GROUPS - 1)


def simulate(
    task: Task, way: Way, at_once: int, budget: float, trials: list[Trial] | None = None
) -> Iterator[tuple[float, float]]:
    """(cost, regret of the incumbent) whenever a trial has come to a rung, until the budget is used up.

    Cost is in full trials. All trials train equally fast. `trials`: an empty list, to which they are added.
    """
    trials = [] if trials is None else trials
    scorer, rungs = Scorer(task), way.rungs
    due: list[tuple[float, int, int]] = []  # when, which trial, which rung

    def begin(now: float) -> None:
        trial = Trial(len(trials), dict(way.propose(trials)), [])
        trials.append(trial)
        heapq.heappush(due, (now + rungs[0], trial.number, 0))

    for _ in range(at_once):
        begin(0.0)
    while due:
        now, number, rung = heapq.heappop(due)
        if now * at_once > budget + 1e-9:
            return
        trial = trials[number]
        if task.fails and number % 8 == 7 and rungs[rung] >= 0.5:
            trial.state = "failed"
        else:
            trial.scores.append(scorer.score(trial, rung, rungs[rung]))
            if rung == len(rungs) - 1:
                trial.state = "complete"
            elif way.goes_on(trials, trial):
                heapq.heappush(due, (now + rungs[rung + 1] - rungs[rung], number, rung + 1))
            else:
                trial.state = "stopped"
        if trial.state != "running":
            way.ended(trial)
            begin(now)
        found = way.incumbent(trials)
        yield now * at_once, task.regret(found.params) if found else np.inf
