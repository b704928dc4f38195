"""What a search asks for its next settings: the interface of samplers, and Optuna's.

A sampler is a pure function of the trials so far and a seed, so that a study that was killed goes on as if it had not
been: Optuna's storage is the only memory.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial

Distribution = FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Earlier:
    """The search of a smaller size of the family, or of an earlier study.

    `doublings`: of the parameters, from it to the one at work; another study is further away.
    """

    trials: Sequence[FrozenTrial]
    rungs: tuple[float, ...]
    doublings: float


@dataclass(frozen=True)
class Question:
    """All that a proposal depends on.

    trials: of this search, in their order. metrics: that are minimized, as costs. rungs: shares of a whole trial, the
    last 1. number: of the trial that is asked for. seed: another one for every proposal. random_trials: as
    `search.random_trials` says.
    """

    trials: Sequence[FrozenTrial]
    space: Mapping[str, Distribution]
    metrics: tuple[str, ...]
    rungs: tuple[float, ...]
    number: int
    seed: int
    random_trials: int | None = None
    earlier: Sequence[Earlier] = ()


class Sampler(Protocol):
    """What plugs in as `search.sampler`."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...
    def propose(self, question: Question) -> Mapping[str, float]:
        """Settings for the next trial: a value for every name of the space, within it. The same ones for the same."""


def drawn(sampler: optuna.samplers.BaseSampler, question: Question) -> dict[str, float]:
    """What one of Optuna's samplers would propose after these trials."""
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(question.metrics)
    twin = optuna.create_study(directions=directions, sampler=sampler)
    twin.add_trials(question.trials)
    return twin.ask(dict(question.space)).params


@dataclass(frozen=True)
class TpeSampler:
    """Optuna's; of several metrics it searches the front."""

    name: str = "tpe"
    kind: str = "sampler"

    def propose(self, question: Question) -> Mapping[str, float]:
        at_first = 6 if question.random_trials is None else question.random_trials
        sampler = optuna.samplers.TPESampler(seed=question.seed, n_startup_trials=at_first, constant_liar=True)
        return drawn(sampler, question)


@dataclass(frozen=True)
class RandomSampler:
    """Evenly over the space, whatever the trials came to."""

    name: str = "random"
    kind: str = "sampler"

    def propose(self, question: Question) -> Mapping[str, float]:
        return drawn(optuna.samplers.RandomSampler(seed=question.seed), question)


TPE, RANDOM = TpeSampler(), RandomSampler()
