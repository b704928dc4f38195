"""How a study stands at a moment, by the ledger; and the file that says so."""

from pathlib import Path

import optuna
import pytest

from cca_ray.inputs import find_space
from cca_ray.search.ledger import Ledger, open_arms
from cca_ray.space_file import load_config
from cca_ray.terminal.snapshot import STATUS, DriverStatus, Standing, read_driver_status, standing_of
from cca_ray.tracking.tracker import Tracker
from tests.search.test_ledger import DIGESTS, at_rung

GRID = str(Path(__file__))


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    config = load_config(find_space("digits_s"), ["control.learning_rates=[1e-3]", "search.trials=3"])
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "test", tmp_path / "artifacts")
    return Ledger(config, open_arms(config, "study", storage, DIGESTS), tracker, "study", lambda line: None)


def complete(ledger: Ledger, name: str, fid: float, inception_score: float = 2.0) -> None:
    assert ledger.propose(name)
    ledger.record(name, {**at_rung(10, 10, fid, inception_score), "grid": GRID})
    ledger.finish(name)


def test_a_trial_at_work_is_shown_with_its_last_report(ledger: Ledger):
    ledger.propose("a")
    (begun,) = standing_of(ledger).at_work
    assert (begun.arm, begun.number, begun.step, begun.total, begun.fid) == ("control", 0, 0, 0, None)
    assert begun.seconds_left is None
    ledger.record("a", {**at_rung(5, 10, 7.5), "grid": GRID})
    (trial,) = standing_of(ledger).at_work
    assert (trial.step, trial.total, trial.images_per_second, trial.fid) == (5, 10, 10.0, 7.5)
    assert trial.seconds_left == pytest.approx(15)  # as long again as the first half took
    assert trial.left(trial.reported + 4) == pytest.approx(11)


def test_the_best_is_that_of_the_search(ledger: Ledger):
    complete(ledger, "control", 1.0)
    assert standing_of(ledger).best is None
    complete(ledger, "a", 5.0)
    complete(ledger, "b", 4.0)
    best = standing_of(ledger).best
    assert best is not None
    assert (best.number, best.fid) == (1, 4.0)


def test_what_is_left_is_trials_as_long_as_those_before_and_the_final_comparison(ledger: Ledger):
    assert standing_of(ledger).seconds_left is None
    complete(ledger, "control", 5.0)
    complete(ledger, "a", 5.0)
    standing = standing_of(ledger)
    assert (standing.planned, standing.ended, standing.phase) == (4, {"COMPLETE": 2}, "search")
    assert standing.seconds_left == pytest.approx(2 * 30 + ledger.final_seconds())
    for name in ("b", "c"):
        complete(ledger, name, 5.0)
    assert standing_of(ledger).phase == "final comparison"


def test_between_two_trials_only_those_at_work_are_looked_at_again(ledger: Ledger):
    ledger.propose("a")
    before = standing_of(ledger)
    ledger.record("a", {**at_rung(5, 10, 7.5), "grid": GRID})
    now = standing_of(ledger, before)
    assert now.at_work[0].step == 5
    assert now == standing_of(ledger).model_copy(update={"at": before.at})


def test_every_change_is_shown(ledger: Ledger):
    seen: list[Standing] = []

    def show(ledger: Ledger) -> bool:
        seen.append(standing_of(ledger))
        return False

    ledger.show = show
    complete(ledger, "control", 5.0)
    assert [(len(s.at_work), s.ended) for s in seen] == [(1, {}), (1, {}), (0, {"COMPLETE": 1})]


def test_lines_do_not_tell_of_steps_that_are_shown(ledger: Ledger):
    lines: list[str] = []
    ledger.say, ledger.show = lines.append, lambda ledger: True
    beat = {key: value for key, value in at_rung(5, 10, 7.5).items() if key != "fid"}
    ledger.propose("a")
    ledger.record("a", beat)
    assert lines == []
    ledger.show = lambda ledger: False
    ledger.record("a", beat)
    assert lines == ["digits_s  control 1/1  lr=1.0e-03  step 5/10"]


def test_the_file_reads_as_it_was_written_and_a_torn_one_as_none(ledger: Ledger, tmp_path: Path):
    assert read_driver_status(tmp_path) is None
    ledger.propose("a")
    written = DriverStatus.of_this_process("study", ("digits_s",), tmp_path / "log.txt").model_copy(
        update={"standings": (standing_of(ledger),), "cluster": {"CPU": (1.0, 2.0)}}
    )
    written.write(tmp_path)
    assert read_driver_status(tmp_path) == written
    (tmp_path / STATUS).write_text((tmp_path / STATUS).read_text()[:100])
    assert read_driver_status(tmp_path) is None
