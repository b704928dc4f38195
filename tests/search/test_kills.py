"""A driver that is killed after any of its writes ends with the same trials; real Optuna storage, no Ray."""

import sqlite3
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.pool import StaticPool

from cca_ray.config import StudyConfig
from cca_ray.contracts import Attempt
from cca_ray.search.arms import open_arms
from cca_ray.search.ledger import Ledger
from cca_ray.search.records import DECISION, RUNG, end_of
from cca_ray.training.reports import TrialFailure
from tests.conftest import MakeStudy
from tests.search.ledgers import DIGESTS, at_rung

STEPS = 10


class Storage(optuna.storages.RDBStorage):
    """An SQLite database in memory, with this content. Tells of each attribute of a trial that it has written."""

    def __init__(self, content: bytes = b"", wrote: Callable[[str], None] = lambda attribute: None):
        self.wrote, self.connection = wrote, sqlite3.connect(":memory:", check_same_thread=False)
        if content:
            self.connection.deserialize(content)
        engine = {"creator": lambda: self.connection, "poolclass": StaticPool}
        super().__init__("sqlite://", engine_kwargs=engine)

    def set_trial_user_attr(self, trial_id: int, key: str, value: Any) -> None:
        super().set_trial_user_attr(trial_id, key, value)
        self.wrote(key)


def fid(params: Mapping[str, float], step: int) -> float:
    """Best at λ = 2, lr = 2e-3; at the first rung it is a little worse."""
    away = np.log(params.get("lambda", 2.0) / 2), np.log(params["learning_rate"] / 2e-3)
    return float(5 + away[0] ** 2 + away[1] ** 2 + 0.2 * (step < STEPS))


def drive(config: StudyConfig, storage: Storage) -> Ledger:
    """All that is left of the study. A trial that is taken up has its checkpoint: it reports again what it had."""
    ledger, number = Ledger(config, open_arms(config, "study", storage, DIGESTS)), 0
    while (info := ledger.propose(f"{number}")) is not None:
        for step in (STEPS // 2, STEPS):
            report = at_rung(step, STEPS, fid(info.params, step), spread=0.01)
            attempt = Attempt(id="a", seconds=float(step), device_seconds={"CPU": float(step)})
            if not ledger.record(f"{number}", report.model_copy(update={"attempt": attempt})):
                break
        ledger.finish(f"{number}")
        number += 1
    assert ledger.done()
    return ledger


def outcome(ledger: Ledger) -> list[tuple[object, ...]]:
    """All that is kept of each trial."""
    return [
        (arm.name, t.number, t.state.name, t.params, t.values, t.intermediate_values, t.user_attrs)
        for arm in ledger.arms for t in arm.study.get_trials()
    ]  # fmt: skip


def config_of(make_config: MakeStudy, **search: Any) -> StudyConfig:
    points = [{"lambda": 2.0, "learning_rate": 2e-3}, {"lambda": 20.0, "learning_rate": 2e-3}]
    space = {"lambda": {"low": 0.2, "high": 20}, "learning_rate": {"low": 2e-4, "high": 2e-2}}
    given = {"trials": 4, "grace_trials": 1, "keep": 0.3, "space": space, "first_points": points, "max_concurrent": 1}
    return make_config(search={**given, **search})


def copies_at(config: StudyConfig, begins: tuple[str, ...]) -> tuple[Ledger, dict[str, bytes]]:
    """The undisturbed study, and its database as it was after each write of an attribute whose name begins so."""
    copies: dict[str, bytes] = {}

    def keep(attribute: str) -> None:
        if attribute.startswith(begins):
            copies[f"write {len(copies)}, {attribute}"] = storage.connection.serialize()

    storage = Storage(wrote=keep)
    return drive(config, storage), copies


@pytest.mark.parametrize("rules", [{}, {"rungs": "posterior", "sampler": "gp"}], ids=["surely_worse", "posterior"])
def test_a_driver_that_is_killed_about_a_decision_keeps_it(make_config: MakeStudy, rules: dict[str, str]):
    """Between decision, score, reason and state, of trials that stop at a rung and of those that come to their end."""
    config = config_of(make_config, **rules)
    undisturbed, copies = copies_at(config, (DECISION, RUNG, "reason"))
    expected = outcome(undisturbed)
    assert {trial.state for trial in undisturbed.arms[1].ended()} == {TrialState.COMPLETE, TrialState.PRUNED}
    assert len(copies) > 12
    for write, content in copies.items():
        assert outcome(drive(config, Storage(content))) == expected, write


@pytest.mark.parametrize("rungs", ["surely_worse", "posterior"])
@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_one_trial_at_a_time_a_study_is_the_same_again(make_config: MakeStudy, sampler: str, rungs: str):
    """From its start; killed when a trial has just begun, at some of them; and finished, with nothing left to write."""
    config = config_of(make_config, sampler=sampler, rungs=rungs, trials=5)
    undisturbed, copies = copies_at(config, ("key",))
    expected = outcome(undisturbed)
    assert len(copies) == len(expected) == 6
    for write, content in {"nothing": b"", **dict([*copies.items()][3::2])}.items():
        assert outcome(drive(config, Storage(content))) == expected, write
    storage = undisturbed.arms[0].storage
    assert isinstance(storage, Storage)
    written = list[str]()
    assert outcome(drive(config, Storage(storage.connection.serialize(), written.append))) == expected
    assert not written


@pytest.mark.parametrize("step", [STEPS // 2, STEPS])
def test_no_trial_ends_by_a_score_that_could_not_be_written(make_config: MakeStudy, step: int):
    """Neither stopped at a rung nor completed, though the database can be written again by then."""
    storage, config = Storage(), config_of(make_config, first_points=[], trials=2)
    ledger = Ledger(config, open_arms(config, "study", storage, DIGESTS))
    for name, cost in {"control": 5.0, "good": 3.0, "bad": 9.0}.items():
        assert ledger.propose(name) is not None
        assert name == "bad" or ledger.record(name, at_rung(STEPS // 2, STEPS, cost))
        storage.connection.execute(f"PRAGMA query_only = {int(name == 'bad')}")
        assert ledger.record(name, at_rung(step, STEPS, cost))
        storage.connection.execute("PRAGMA query_only = 0")
        assert name == "bad" or ledger.record(name, at_rung(STEPS, STEPS, cost))
        ledger.finish(name)
    assert ledger.stuck == "attempt to write a readonly database"
    assert [t.state for t in ledger.arms[1].study.trials] == [TrialState.COMPLETE, TrialState.RUNNING]


def test_the_reason_of_a_state_that_was_not_written_is_gone_when_the_trial_goes_on(make_config: MakeStudy):
    """A trial fails, its driver is killed before the state is written, and then the trial comes to its end."""
    copies: dict[str, bytes] = {}

    def keep(attribute: str) -> None:
        copies[attribute] = storage.connection.serialize()

    storage, config = Storage(wrote=keep), config_of(make_config, trials=1)
    ledger = Ledger(config, open_arms(config, "study", storage, DIGESTS))
    assert ledger.propose("a") is not None
    assert ledger.record("a", TrialFailure(reason="OSError: a disk that is mended by now"))
    ledger.finish("a")
    (trial,) = drive(config, Storage(copies["reason"])).arms[0].ended()
    assert end_of(trial) == ("COMPLETE", "")
