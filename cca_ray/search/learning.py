"""What a search learns from earlier studies: kept in its own storage at its start, where nothing changes it any more.

Each size's search has at most one such Optuna study beside it. It holds the earlier trials in this search's own terms:
its settings, its metrics, and the scores of their rungs.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cca_ray.contracts import Contract
from cca_ray.search.records import ENDED, RUNG, rung_scores
from cca_ray.search.rungs import Mark
from cca_ray.search.samplers import Distribution, Earlier

LEARNT = "learnt"  # ends the study's name; its attribute of this name says what is in it, and that it is whole
LESSON = "lesson"  # the attribute of a trial there: the number of the size that it is of
# How many doublings of the parameters another study is like, beside those of its size: its data, schedule or protocol
# may be others. With fewer, an optimum that moved is found late; with more, one that stayed is.
AWAY = 4.0


@dataclass(frozen=True)
class Lesson:
    """The search of a size of an earlier study, as it stands. `study`: as `search.learn_from` names it.

    `parameters`: of its model; 0: as many as that of who learns. `rungs`: shares of a whole trial. `best`: the settings
    that it found best. `trials`: those that are `usable`.
    """

    study: str
    size: str
    parameters: int
    rungs: tuple[float, ...]
    best: Mapping[str, float]
    trials: Sequence[FrozenTrial]


Lessons = Callable[[], Sequence[Lesson]]  # what there is to be learnt now


def no_lessons() -> Sequence[Lesson]:
    return ()


class LearntSize(Contract):
    """What is kept of a lesson, beside its `trials`, which are counted here."""

    study: str
    size: str
    parameters: int
    rungs: tuple[float, ...]
    best: dict[str, int | float]
    trials: int

    @staticmethod
    def of(lesson: Lesson) -> "LearntSize":
        return LearntSize(
            study=lesson.study,
            size=lesson.size,
            parameters=lesson.parameters,
            rungs=lesson.rungs,
            best=dict(lesson.best),
            trials=len(lesson.trials),
        )

    def __str__(self) -> str:
        return f"{self.size} of {self.study} ({self.trials} trial{'s' * (self.trials > 1)})"


class Learnt(Contract):
    """What a search has learnt at its start. `named`: what `search.learn_from` was then."""

    named: tuple[str, ...] = ()
    sizes: tuple[LearntSize, ...] = ()

    @staticmethod
    def of(attributes: Mapping[str, Any]) -> "Learnt":
        """From those of the study that keeps it; nothing if it is not whole."""
        return Learnt.model_validate(attributes.get(LEARNT, {}))

    def __str__(self) -> str:
        return ", ".join(map(str, self.sizes)) or "nothing"

    def told(self, named: Sequence[str]) -> str:
        """What a study says of it whose `search.learn_from` is `named` now; nothing if there is nothing to say."""
        if tuple(named) != self.named:
            now = ", ".join(named) or "empty"
            return f"search.learn_from is {now} now, but this search began with what it learnt from {self}; see --fresh"
        return f"learnt from {self}" if named else ""


def usable(trial: FrozenTrial, space: Mapping[str, Distribution], metrics: Sequence[str]) -> bool:
    """Whether a trial of another search tells something of ours: it has ended, with scores by our metrics."""
    return (
        trial.state in ENDED
        and trial.params.keys() >= space.keys()
        and not any(values.log and trial.params[name] <= 0 for name, values in space.items())
        and bool(scores := rung_scores(trial))
        and all(name in score.without and math.isfinite(score.values[name]) for score in scores for name in metrics)
    )


def as_ours(trial: FrozenTrial, lesson: int, space: Mapping[str, Distribution], metrics: Sequence[str]) -> FrozenTrial:
    """A trial that is usable, with the settings that we search and the costs that we minimize."""
    whole = {name: isinstance(values, IntDistribution) for name, values in space.items()}
    params = {name: round(trial.params[name]) if whole[name] else float(trial.params[name]) for name in space}
    costs = Mark.of(rung_scores(trial)[-1], metrics).costs
    kept = {name: value for name, value in trial.user_attrs.items() if name.startswith(RUNG)}
    return create_trial(
        state=trial.state,
        params=params,
        distributions={name: holding(values, params[name]) for name, values in space.items()},
        values=costs.tolist() if trial.state == TrialState.COMPLETE else None,
        user_attrs={**kept, LESSON: lesson},
    )


def holding(values: Distribution, value: float) -> Distribution:
    """The same, as far as this value: others searched elsewhere."""
    low, high = min(values.low, value), max(values.high, value)
    return type(values)(low, high, log=values.log)  # type: ignore[arg-type]  # of whole numbers they are whole


def learn(
    storage: optuna.storages.BaseStorage,
    name: str,
    named: Sequence[str],
    lessons: Lessons,
    space: Mapping[str, Distribution],
    metrics: Sequence[str],
) -> Learnt:
    """Keep what there is to be learnt for the search `name`, which has not begun.

    If that was done before, it stays; if it was cut short, or was of other studies, it is done anew.
    """
    name = f"{name}/{LEARNT}"
    there = name in optuna.get_all_study_names(storage)
    if there:
        attributes = optuna.load_study(study_name=name, storage=storage).user_attrs
        if LEARNT in attributes and (kept := Learnt.of(attributes)).named == tuple(named):
            return kept
    found = list(lessons()) if named else []
    if there:
        optuna.delete_study(study_name=name, storage=storage)
    if not named:
        return Learnt()
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(metrics)
    study = optuna.create_study(storage=storage, study_name=name, directions=directions)
    for number, lesson in enumerate(found):
        study.add_trials(as_ours(trial, number, space, metrics) for trial in lesson.trials)
    learnt = Learnt(named=tuple(named), sizes=tuple(map(LearntSize.of, found)))
    study.set_user_attr(LEARNT, learnt.model_dump(mode="json"))
    return learnt


def learnt_by(storage: optuna.storages.BaseStorage, name: str) -> Learnt:
    """What the search `name` learnt when it began."""
    if f"{name}/{LEARNT}" not in optuna.get_all_study_names(storage):
        return Learnt()
    return Learnt.of(optuna.load_study(study_name=f"{name}/{LEARNT}", storage=storage).user_attrs)


def doublings(size: LearntSize, parameters: int) -> float:
    """Of the parameters, from its model to one of so many."""
    return math.log2(parameters / size.parameters) if size.parameters else 0.0


def nearest_first(sizes: Iterable[LearntSize], parameters: int) -> list[LearntSize]:
    """By how many times larger or smaller they are than a model of so many parameters."""
    return sorted(sizes, key=lambda size: abs(doublings(size, parameters)))


def earlier_of(storage: optuna.storages.BaseStorage, name: str, learnt: Learnt, parameters: int) -> tuple[Earlier, ...]:
    """What samplers are told of it, for a model of so many parameters."""
    if not learnt.sizes:
        return ()
    trials = optuna.load_study(study_name=f"{name}/{LEARNT}", storage=storage).get_trials(deepcopy=False)
    return tuple(
        Earlier(
            [trial for trial in trials if trial.user_attrs[LESSON] == number],
            size.rungs,
            AWAY + abs(doublings(size, parameters)),
        )
        for number, size in enumerate(learnt.sizes)
    )
