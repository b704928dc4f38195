"""What Optuna's storage keeps of a trial, read as contracts. Light on imports: `status` and `report` read by it."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

import optuna
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cca_ray.contracts import Attempt, RungScore

ArmName = Literal["search", "control", "replicate"]
ENDED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
ENDED_NAMES = tuple(state.name for state in ENDED)
STORAGE_ERRORS = (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError)
KEEP_S = 5.0  # how often what runs is written down as far as it has come, for a driver that is killed
METRICS = "metrics"  # the attribute of a search that keeps what is measured; version 0.1.0 kept none
PARAMETERS = "parameters"  # of those of a search: how many its model has; earlier versions kept them in summaries alone
ATTEMPTS = "attempts"  # the attribute of a trial that keeps what each of its attempts took
RUNG = "rung "  # begins the names of the attributes that keep a trial's scores, one a rung
DECISION = "after rung "  # of those that keep what was decided there; written before the score: none lacks it
RULE = "rule at rungs"  # of a trial that another rule than `surely_worse` decided about: its name
Decision = Literal["goes on", "stops", "ends"]


def rung_scores(trial: FrozenTrial) -> tuple[RungScore, ...]:
    """Its scores, in the order of the rungs."""
    names = sorted((name for name in trial.user_attrs if name.startswith(RUNG)), key=lambda name: int(name.split()[1]))
    return tuple(RungScore.model_validate(trial.user_attrs[name]) for name in names)


def decision_at_last_rung(trial: FrozenTrial) -> Decision | None:
    """Of those that it has passed; None before the first, and of a trial that an earlier version scored."""
    decision: Decision | None = trial.user_attrs.get(f"{DECISION}{len(rung_scores(trial)) - 1}")
    return decision


def with_score(trials: Sequence[FrozenTrial], number: int, rung: int, score: RungScore) -> list[FrozenTrial]:
    """All trials of a study, as they are once the one of this number has this score too."""
    scored = copy.copy(trials[number])
    scored.user_attrs = {**scored.user_attrs, f"{RUNG}{rung}": score.model_dump()}
    return [*trials[:number], scored, *trials[number + 1 :]]


def end_of(trial: FrozenTrial) -> tuple[str, str]:
    """State, as MLflow shall show it, and reason."""
    state = "INTERRUPTED" if trial.state == TrialState.RUNNING else trial.state.name
    return state, trial.user_attrs.get("reason", "")


def attempts_of(trial: FrozenTrial) -> dict[str, Attempt]:
    """Its attempts that are known of, by id. All that earlier versions kept is one without an id."""
    kept = trial.user_attrs
    if ATTEMPTS in kept:
        return {found.id: found for found in map(Attempt.model_validate, kept[ATTEMPTS])}
    before = Attempt(id="", seconds=seconds_of(trial), device_seconds=device_seconds_of(trial))
    return {"": before} if before.seconds else {}


def seconds_of(trial: FrozenTrial) -> float:
    """That it took, over all its attempts; of one that runs, or whose driver was killed, as last written down."""
    seconds: float = trial.user_attrs.get("seconds", 0.0)
    return seconds


def device_seconds_of(trial: FrozenTrial) -> dict[str, float]:
    """The same of all its workers, by type of card."""
    seconds: dict[str, float] = trial.user_attrs.get("device_seconds", {})
    return seconds


def added(some: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Device seconds of several, by type of card."""
    used: dict[str, float] = {}
    for device_seconds in some:
        for card, seconds in device_seconds.items():
            used[card] = used.get(card, 0.0) + seconds
    return used


def used_device_seconds(trials: Iterable[FrozenTrial]) -> dict[str, float]:
    """Of all attempts at all these trials, by type of card."""
    return added(map(device_seconds_of, trials))


def readable(params: Mapping[str, float]) -> str:
    """`λ=3.1 lr=2.0e-03 ...`, as people speak of trials."""
    short = {"lambda": "λ", "learning_rate": "lr"}
    return " ".join(
        f"{short.get(name, name)}={value:.1e}" if name == "learning_rate" else f"{short.get(name, name)}={value:.3g}"
        for name, value in params.items()
    )
