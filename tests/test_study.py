"""The sizes of a study: one after another, or side by side in one process; what they teach, and what they may use."""

import json
import math
import signal
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from cca_ray.cluster.stopping import Stop
from cca_ray.contracts import SizeSummary
from cca_ray.errors import ConfigError
from cca_ray.inputs import SPACES, find_space
from cca_ray.search.accounts import COUNTED, TERMS, Terms
from cca_ray.search.budget import Limits
from cca_ray.search.mlflow_pages import experiment_of
from cca_ray.search.size_study import SizeResult
from cca_ray.space_file import load_config
from cca_ray.status import look
from cca_ray.study import Budget, Sizes, Study, UsedBefore, smaller_sizes, too_many_at_once, used_before
from cca_ray.terminal.console import Console
from cca_ray.terminal.snapshot import DriverStatus
from cca_ray.terminal.window import Window
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.small_base import BaseFiles
from tests.commands import EXPERIMENT, start, write_space
from tests.processes import wait_until
from tests.studies import make_study, summary_of


def test_what_a_size_found_is_tried_first_by_the_next_of_its_family_the_last_first():
    sizes = [
        summary_of(family=family, params={"lambda": value})
        for family, value in (("llamagen", 1.0), ("var", 2.0), ("llamagen", 3.0))
    ]
    assert [size.best for size in smaller_sizes(sizes, "llamagen")] == [{"lambda": 3.0}, {"lambda": 1.0}]


def test_what_one_size_leaves_of_the_budget_goes_to_the_next():
    now = time.monotonic()
    first = Budget(30, 6, now).share(UsedBefore(), "s", 3, False)
    last = Budget(30, 6, now - 300).share(UsedBefore(0.0, {"s": 0.75, "m": 0.25}), "l", 1, False)
    assert first.seconds == pytest.approx(600, abs=1)
    assert last.seconds == pytest.approx(1500, abs=1)
    assert (first.device_seconds, last.device_seconds) == (7200, 18000)
    unbounded = Budget().share(UsedBefore(), "s", 3, False)
    assert (unbounded.seconds, unbounded.device_seconds) == (math.inf, math.inf)


def test_sizes_side_by_side_have_the_same_time_and_part_the_hours():
    limits = Budget(30, 6).share(UsedBefore(), "s", 3, True)
    assert limits.seconds == pytest.approx(1800, abs=1)
    assert limits.device_seconds == 7200


def test_a_budget_is_what_all_runs_may_use_and_a_size_has_what_it_used_itself_on_top():
    used = UsedBefore(600, {"s": 0.5, "m": 1.5})
    limits = Budget(30, 6).share(used, "m", 2, False)
    assert limits.seconds == pytest.approx((30 * 60 - 600) / 2, abs=1)
    assert limits.device_seconds == pytest.approx(3600 * ((6 - 2) / 2 + 1.5))


def test_what_earlier_runs_used_is_read_from_the_database(tmp_path: Path):
    """Two sizes side by side for 30 s, ten of them together; trials of all arms and states, that which runs too."""
    database = tmp_path / "study.db"
    assert used_before(database, 0.0) == UsedBefore()
    for size in ("digits_s", "digits_m"):
        make_study(tmp_path, size)
    storage = f"sqlite:///{database}"
    for size, began in (("digits_s", 1000.0), ("digits_m", 1010.0)):
        study = optuna.load_study(study_name=f"{tmp_path.name}/{size}/control", storage=storage)
        study.set_user_attr("runs", [[began, 20.0], [5000.0, 7.0]])
        for arm in ("search", "control"):
            some = optuna.load_study(study_name=f"{tmp_path.name}/{size}/{arm}", storage=storage)
            assert len(some.trials) == {"search": 13, "control": 1}[arm]
    with closing(sqlite3.connect(database)) as connection:
        connection.execute(
            "insert into trial_user_attributes (trial_id, key, value_json) "
            "select trial_id, 'device_seconds', ? from trials",
            ('{"A40": 300.0, "H100": 60.0}',),
        )
        connection.commit()
    used = used_before(database, 5000.0)
    assert used.seconds == 30.0
    assert used.device_hours == {"digits_s": pytest.approx(1.4), "digits_m": pytest.approx(1.4)}
    assert used_before(database, 6000.0).seconds == 37.0


GIVEN = {"minutes": 30.0, "device_hours": 6.0}


@pytest.mark.parametrize(
    ("settings", "given", "over"),
    [
        ([], GIVEN, True),
        ([], {"minutes": 30.0, "device_hours": 4.0}, True),
        ([], {"minutes": 30.0, "device_hours": 9.0}, False),
        ([], {"device_hours": 6.0}, False),  # no bound of time
        (["search.trials=30"], GIVEN, False),
        (["control.widen=9"], GIVEN, False),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_size_that_an_earlier_run_finished_takes_no_share_from_those_that_are_left(
    tmp_path: Path, settings: list[str], given: dict[str, float], over: bool, finished: bool
):
    """Unless it may use more than then, or has more to do; and not if it was cut short. It has used an hour."""
    make_study(tmp_path, "digits_s")
    database = f"sqlite:///{tmp_path / 'study.db'}"
    control = optuna.load_study(study_name=f"{tmp_path.name}/digits_s/control", storage=database)
    used = {"key": "digits_s-control-0001", "device_seconds": {"A40": 3600.0}}
    control.add_trial(create_trial(state=TrialState.FAIL, user_attrs=used))
    control.set_user_attr(TERMS, Terms.of(load_config(find_space("digits_s")), 30, 6).model_dump(mode="json"))
    if finished:
        control.set_user_attr(COUNTED, 12)
    over &= finished
    configs = [load_config(find_space(name), settings) for name in ("digits_s", "digits_m", "digits_var")]
    study = Study("study", tmp_path, {}, Console(quiet=True), None)  # type: ignore[arg-type]

    def limits(side_by_side: bool, number: int) -> Limits:
        sizes = Sizes(study, configs, Budget(**given), side_by_side, Stop())
        sizes.over = sizes.finished_before()
        return sizes.limits_of(number)

    left, first = given["device_hours"] - 1, limits(False, 0)
    assert first.seconds == 0 if over else first.device_seconds == pytest.approx(3600 * (left / 3 + 1))
    assert limits(True, 1).device_seconds == pytest.approx(3600 * left / (2 if over else 3))


class Ending(Sizes):
    """Each size ends at once, as `outcomes` has it."""

    outcomes: tuple[BaseException, ...] = ()

    def begin(self, number: int) -> None:
        self.ended.put((self.configs[number], self.outcomes[number]))


def test_each_size_that_fails_side_by_side_is_told_of_at_once(tmp_path: Path, capsys, caplog):
    configs = [load_config(find_space(name)) for name in ("digits_s", "digits_m", "digits_var")]
    console = Console()
    driver = DriverStatus.of_this_process("study", tuple(config.name for config in configs), tmp_path / "log.txt")
    window = Window(console, tmp_path, driver)
    sizes = Ending(Study("study", tmp_path, {}, console, window), configs, Budget(), True, Stop())
    sizes.outcomes = (
        ConfigError("digits_s: no trial was completed"),
        OSError(28, "No space left", "x.pt"),
        KeyError("a"),
    )
    with pytest.raises(ConfigError, match="digits_s: no trial was completed"):
        sizes.run()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.endswith("digits_s  failed: no trial was completed; the others go on")
    assert second.endswith("digits_m  failed: x.pt: No space left; the others go on")
    assert third.endswith("digits_var  failed: KeyError: 'a'")  # there are no others
    assert window.driver.failed["digits_m"] == "x.pt: No space left"
    assert [record.message for record in caplog.records if record.exc_info] == ["digits_var"]  # a fault of ours


def test_a_size_that_fails_alone_is_told_of_by_what_ends_the_command(tmp_path: Path, capsys):
    configs, console = [load_config(find_space("digits_s"))], Console()
    window = Window(console, tmp_path, DriverStatus.of_this_process("study", ("digits_s",), tmp_path / "log.txt"))
    sizes = Ending(Study("study", tmp_path, {}, console, window), configs, Budget(), False, Stop())
    sizes.outcomes = (ConfigError("digits_s: no trial was completed"),)
    with pytest.raises(ConfigError):
        sizes.run()
    assert capsys.readouterr().out == ""


def test_what_is_done_at_the_end_of_a_size_is_shown_until_it_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    config = load_config(find_space("digits_s"))
    window = Window(Console(), tmp_path, DriverStatus.of_this_process("study", ("digits_s",), tmp_path / "log.txt"))
    trackers: dict[str, Any] = {experiment_of(config): None}
    sizes = Sizes(Study("study", tmp_path, trackers, window.console, window), [config], Budget(), False, Stop())
    seen = list[str]()

    def finish(*_: object) -> SizeSummary:
        seen.append(window.driver.doing["digits_s"][0])
        if len(seen) > 1:
            raise OSError("the disk is full")
        return summary_of()

    monkeypatch.setattr("cca_ray.study.finish_size", finish)
    for ends in (None, OSError):
        sizes.ended.put((config, cast(SizeResult, object())))
        _, error = sizes.await_one()
        assert type(error) is (ends or type(None))
        assert window.driver.doing == {}
        assert window.console.patience is None
    assert seen == ["writing its results"] * 2
    assert "digits_s: ✓ better than the guided base" in capsys.readouterr().out


def test_more_trials_than_the_head_can_drive_are_told_of():
    """`cluster.yaml`'s head has 64 GB: the paper's nine sizes side by side, as their files are, are for it."""
    names = {"llamagen": ("b", "l", "xl", "xxl", "3b"), "var": ("d16", "d20", "d24", "d30")}
    configs = [load_config(SPACES / f"{family}_{size}.yaml") for family, sizes in names.items() for size in sizes]
    assert too_many_at_once(configs, True, 62) == ""
    assert too_many_at_once(configs, False, 8) == ""
    told = too_many_at_once(configs, True, 31)
    assert told.startswith("36 trials at a time hold about 40 GiB on this machine, which has 31")
    digits = [load_config(path) for path in SPACES.glob("digits_*.yaml")]  # their trials are no groups
    assert too_many_at_once(digits, True, 1) == ""


def states(folder: Path, study: str) -> dict[str, Counter[str]]:
    """Of each size, how many trials ended how."""
    storage = f"sqlite:///{folder / 'runs' / study / 'study.db'}"
    names = sorted(optuna.get_all_study_names(storage))
    found: dict[str, Counter[str]] = {}
    for name in names:
        size = name.split("/")[1]
        found.setdefault(size, Counter()).update(
            trial.state.name for trial in optuna.load_study(study_name=name, storage=storage).trials
        )
    return found


def outcomes(folder: Path, study: str) -> dict[str, Any]:
    """What does not depend on when a trial ran."""
    sizes = json.loads((folder / "runs" / study / "summary.json").read_text())["sizes"]
    keys = ("trials", "winner", "finalists", "models")
    return {size["size"]: {key: size[key] for key in keys} for size in sizes}


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_sizes_side_by_side_stop_together_and_find_what_they_find_alone(base_files: BaseFiles, tmp_path: Path):
    points = [{"lambda": value, "learning_rate": 1e-3} for value in (1.0, 2.0, 4.0)]  # warm-start points come too late
    for name in ("one", "two"):
        write_space(tmp_path, base_files, name, epochs=20)
    first_points = f"search.first_points={json.dumps(points)}"
    command = ("one.yaml", "two.yaml", "--max-concurrent", "1", "--set", first_points)
    beside = (*command, "--side-by-side", "--name", "beside")

    process = start(tmp_path, *beside)
    folder = tmp_path / "runs" / "beside"
    wait_until(
        lambda: all((folder / "trials" / f"{name}-control-0000" / "alive-0").exists() for name in ("one", "two")),
        seconds=300,
    )
    assert [size.state for size in look(tmp_path / "runs", "beside").content.sizes] == ["running", "running"]
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert output.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert states(tmp_path, "beside") == {name: Counter({"RUNNING": 1, "WAITING": 3}) for name in ("one", "two")}
    tracker = Tracker(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}", EXPERIMENT)
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert Counter(run.info.status for run in runs) == {"KILLED": 4}

    process = start(tmp_path, *beside)
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert "1 interrupted and resumed" in output
    assert states(tmp_path, "beside") == {name: Counter({"COMPLETE": 4}) for name in ("one", "two")}

    process = start(tmp_path, *command, "--name", "alone")
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    assert outcomes(tmp_path, "beside") == outcomes(tmp_path, "alone")


@pytest.mark.nightly
def test_a_size_that_cannot_go_on_does_not_stop_the_others(base_files: BaseFiles, tmp_path: Path):
    for name in ("sound", "impossible"):
        path = write_space(tmp_path, base_files, name)
        if name == "impossible":
            path.write_text(path.read_text() + "placement: {gpus: 1}\n")
    process = start(tmp_path, "impossible.yaml", "sound.yaml", "--side-by-side", "--trials", "1", "--name", "study")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert output.splitlines()[-1].startswith("error: impossible: placement asks for 1 × 1 GPU, the cluster has")
    assert list(outcomes(tmp_path, "study")) == ["sound"]
    assert (tmp_path / "runs" / "study" / "sound" / "winner.pt").is_file()
    found = look(tmp_path / "runs", "study").content
    assert found.state == "stopped"
    assert [(size.size, size.state) for size in found.sizes] == [("sound", "finished"), ("impossible", "not begun")]
