"""How a study stands at a moment, by the ledger."""

from pathlib import Path

import optuna
import pytest

from cca_ray.inputs import find_space
from cca_ray.search.arms import open_arms
from cca_ray.search.ledger import Ledger
from cca_ray.space_file import load_config
from cca_ray.terminal.snapshot import SizeSnapshot
from cca_ray.terminal.snapshot_of import snapshot_of
from cca_ray.tracking.tracker import Tracker
from tests.search.ledgers import DIGESTS, Told, at_rung, heartbeat, new_ledger


@pytest.fixture
def told(tmp_path: Path) -> Told:
    config = load_config(find_space("digits_s"), ["control.learning_rates=[1e-3]", "search.trials=3"])
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "test", tmp_path / "artifacts")
    return new_ledger(config, storage, tracker)


@pytest.fixture
def ledger(told: Told) -> Ledger:
    return told.ledger


def complete(ledger: Ledger, name: str, fid: float, inception_score: float = 2.0) -> None:
    assert ledger.propose(name)
    ledger.record(name, at_rung(10, 10, fid, inception_score))
    ledger.finish(name)


def test_a_trial_at_work_is_shown_with_its_last_report(ledger: Ledger):
    ledger.propose("a")
    (begun,) = snapshot_of(ledger).at_work
    assert (begun.arm, begun.number, begun.step, begun.total, begun.values) == ("control", 0, 0, 0, {})
    assert begun.seconds_left is None
    ledger.record("a", at_rung(5, 10, 7.5))
    (trial,) = snapshot_of(ledger).at_work
    assert (trial.step, trial.total, trial.images_per_second, trial.values["fid"]) == (5, 10, 10.0, 7.5)
    assert trial.seconds_left == pytest.approx(15)  # as long again as the first half took
    assert trial.left(trial.reported + 4) == pytest.approx(11)


def test_the_best_is_that_of_the_search(ledger: Ledger):
    complete(ledger, "control", 1.0)
    assert snapshot_of(ledger).best is None
    complete(ledger, "a", 5.0)
    complete(ledger, "b", 4.0)
    best = snapshot_of(ledger).best
    assert best is not None
    assert (best.arm, best.number, best.values["fid"]) == ("search", 1, 4.0)
    after = snapshot_of(Ledger(ledger.config, [ledger.arms[0]])).best  # further rates of the control
    assert after is not None
    assert (after.arm, after.values["fid"]) == ("control", 1.0)


def test_what_is_left_is_trials_as_long_as_those_before_and_the_final_comparison(ledger: Ledger):
    assert snapshot_of(ledger).seconds_left is None
    complete(ledger, "control", 5.0)
    complete(ledger, "a", 5.0)
    snapshot = snapshot_of(ledger)
    assert (snapshot.planned, snapshot.ended, snapshot.phase) == (4, {"COMPLETE": 2}, "search")
    assert snapshot.seconds_left == pytest.approx(2 * 30 + ledger.final_seconds())
    for name in ("b", "c"):
        complete(ledger, name, 5.0)
    assert snapshot_of(ledger).phase == "final comparison"


def test_from_a_few_trials_on_it_is_told_what_another_should_bring():
    config = load_config(find_space("digits_s"), ["control.learning_rates=[1e-3]", "control.widen=0"])
    ledger = Ledger(config, open_arms(config, "study", optuna.storages.InMemoryStorage(), DIGESTS))
    complete(ledger, "control", 5.0)
    for number in range(config.search.grace_trials):
        assert snapshot_of(ledger).prospect is None
        complete(ledger, f"{number}", 5.0 - 0.5 * number)
    prospect = snapshot_of(ledger).prospect
    assert prospect is not None
    assert 0 < prospect.chance < 1


def test_between_two_trials_only_those_at_work_are_looked_at_again(ledger: Ledger):
    ledger.propose("a")
    before = snapshot_of(ledger)
    ledger.record("a", at_rung(5, 10, 7.5))
    now = snapshot_of(ledger, before)
    assert now.at_work[0].step == 5
    assert now == snapshot_of(ledger).model_copy(update={"at": before.at})


def test_every_change_is_shown(told: Told):
    seen: list[SizeSnapshot] = []

    def show(ledger: Ledger) -> bool:
        seen.append(snapshot_of(ledger))
        return False

    told.view.show = show
    complete(told.ledger, "control", 5.0)
    assert [(len(s.at_work), s.ended) for s in seen] == [(1, {}), (1, {}), (0, {"COMPLETE": 1})]


def test_lines_do_not_tell_of_steps_that_are_shown(told: Told):
    told.view.show = lambda ledger: True
    told.ledger.propose("a")
    told.ledger.record("a", heartbeat(5, 10))
    assert told.lines == []
    told.view.show = lambda ledger: False
    told.ledger.record("a", heartbeat(5, 10))
    assert told.lines == ["digits_s  control #0  lr=1.0e-03  step 5/10"]
