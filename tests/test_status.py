"""What `status` says of studies that run, have ended, or were stopped."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

import cca_ray
from cca_ray import status
from cca_ray.contracts import FID
from cca_ray.reporting.asked import Named, write_asked
from cca_ray.search.accounts import COUNTED
from cca_ray.storage.lease import leased
from cca_ray.storage.lock import alone
from cca_ray.storage.mirror import push
from cca_ray.storage.uris import local_path
from cca_ray.terminal.snapshot import STATUS, DriverStatus, SizeSnapshot
from tests.commands import invoke
from tests.studies import make_study
from tests.terminal.trials_at_work import at_work


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A storage with a finished study and half a one."""
    root = tmp_path_factory.mktemp("runs")
    make_study(root / "whole")
    make_study(root / "half", finished=False)
    return root


@pytest.fixture
def storage(made: Path, tmp_path: Path) -> Path:
    shutil.copytree(made, tmp_path / "runs")
    return tmp_path / "runs"


def named(*sizes: str) -> dict[str, Named]:
    return {size: Named(space=size) for size in sizes}


def at_this_moment(host: str = "", **changes: object) -> DriverStatus:
    """What the driver of `half`, this process, tells."""
    snapshot = SizeSnapshot(
        size="digits_s", phase="search", metric=FID, planned=15, ended={"COMPLETE": 11}, at_work=(at_work(12),),
        best=None, seconds_left=60.0, at=time.time(),
    )  # fmt: skip
    told = DriverStatus.of_this_process("half", ("digits_s", "digits_m"), Path("log.txt"))
    return told.model_copy(update={"snapshots": (snapshot,), **({"host": host} if host else {}), **changes})


def test_a_finished_study_says_what_won_by_how_much_at_what_cost(storage: Path, capsys):
    outcome = invoke(status.main, ["whole", "--storage", str(storage)], capsys)
    assert outcome.code == 0
    assert "whole: finished" in outcome.out
    assert "whole" in outcome.out
    assert "✓ better than the guided base (0.90 × 18.00); ✓ better than the control (0.68 × 23.70)" in outcome.out
    assert "It took 12 trials, 1.5 minutes and 0.05 GPU-hours (A40 0.04, H100 0.01)." in outcome.out
    assert f"summary  {storage / 'whole' / 'summary.json'}" in outcome.out


def test_a_stopped_study_says_how_far_it_came_and_how_to_go_on(storage: Path, capsys):
    outcome = invoke(status.main, ["half", "--storage", str(storage)], capsys)
    assert "half: stopped" in outcome.out
    assert "10 completed, 1 stopped at a rung, 1 failed, 1 not finished. Best so far: λ=" in outcome.out
    assert "FID 30.00 at step 56" in outcome.out
    assert "The same `tune` command continues it." in outcome.out


def test_a_size_that_was_asked_for_and_never_began_is_told_and_the_study_is_not_finished(storage: Path, capsys):
    write_asked(storage / "whole", named("digits_s", "digits_m"))
    outcome = invoke(status.main, ["whole", "--storage", str(storage)], capsys)
    assert "whole: stopped" in outcome.out
    assert "digits_m: not begun" in outcome.out
    assert "The same `tune` command continues it." in outcome.out
    content = json.loads(invoke(status.main, ["whole", "--storage", str(storage), "--json"], capsys).out)
    assert (content["state"], [size["state"] for size in content["sizes"]]) == ("stopped", ["finished", "not begun"])
    listed = invoke(status.main, ["--storage", str(storage)], capsys).out
    assert re.search("whole +stopped +digits_s ✓ better; digits_m not begun", listed)
    assert cca_ray.open(storage / "whole").state == "stopped"

    write_asked(storage / "whole", named("digits_s"))  # by a later command, which wants no more
    assert cca_ray.open(storage / "whole").state == "finished"


def test_what_the_last_command_no_more_asked_for_is_to_be_finished_if_it_has_begun(storage: Path):
    write_asked(storage / "half", named("digits_m"))
    found = cca_ray.open(storage / "half").status
    assert [(size.size, size.state) for size in found.sizes] == [("digits_s", "stopped"), ("digits_m", "not begun")]


def test_a_running_study_shows_what_its_driver_tells(storage: Path, capsys):
    with alone(storage / "half"):
        at_this_moment().write(storage / "half")
        outcome = invoke(status.main, ["half", "--storage", str(storage)], capsys)
        content = json.loads(invoke(status.main, ["half", "--storage", str(storage), "--json"], capsys).out)
    assert f"half: running, by process {os.getpid()} on " in outcome.out
    assert "1,234 img/s" in outcome.out
    assert "digits_m: not begun" in outcome.out
    assert (content["state"], [size["state"] for size in content["sizes"]]) == ("running", ["running", "not begun"])
    assert content["sizes"][0]["trials"]["search"] == {"COMPLETE": 10, "PRUNED": 1, "FAIL": 1, "RUNNING": 1}
    (trial,) = content["sizes"][0]["running"]
    assert (trial["step"], trial["values"], trial["images_per_second"]) == (50, {"fid": 17.25}, 1234.5)
    assert 0 < content["sizes"][0]["seconds_left"] <= 60


def test_a_study_that_makes_its_base_runs_too(storage: Path, capsys):
    (storage / "new").mkdir()
    with alone(storage / "new"):
        at_this_moment(snapshots=()).write(storage / "new")
        content = json.loads(invoke(status.main, ["new", "--storage", str(storage), "--json"], capsys).out)
        listed = invoke(status.main, ["--storage", str(storage)], capsys).out
    assert content["state"] == "running"
    assert [size["state"] for size in content["sizes"]] == ["not begun", "not begun"]
    assert re.search("new +running +digits_s not begun; digits_m not begun", listed)
    assert "new" not in invoke(status.main, ["--storage", str(storage)], capsys).out  # its driver was killed


def continue_it(folder: Path) -> None:
    """A trial more is begun in a study, which was finished with all it had, and its driver is killed."""
    at = f"sqlite:///{folder / 'study.db'}"
    control = optuna.load_study(study_name=f"{folder.name}/digits_s/control", storage=at)
    search = optuna.load_study(study_name=f"{folder.name}/digits_s/search", storage=at)
    control.set_user_attr(COUNTED, len(search.trials))
    assert cca_ray.open(folder).state == "finished"
    search.ask()


def test_a_finished_study_that_is_continued_has_not_finished_until_it_has_again(storage: Path, capsys):
    folder = storage / "whole"
    assert cca_ray.open(folder).best["digits_s"].final
    continue_it(folder)
    outcome = invoke(status.main, ["whole", "--storage", str(storage)], capsys)
    assert "whole: stopped" in outcome.out
    assert "The same `tune` command continues it." in outcome.out
    assert re.search("whole +stopped +digits_s stopped", invoke(status.main, ["--storage", str(storage)], capsys).out)
    study = cca_ray.open(folder)
    assert (study.state, study.best["digits_s"].final) == ("stopped", False)
    report = study.report().path.read_text()
    assert (
        "whole, digits_s: continued after it had finished, and not finished again; its results are from before that."
        in report
    )


def test_a_size_that_failed_beside_others_is_not_running(storage: Path, capsys):
    make_study(storage / "half", "digits_m", finished=False)
    with alone(storage / "half"):
        at_this_moment(failed={"digits_m": "no trial was completed"}).write(storage / "half")
        outcome = invoke(status.main, ["half", "--storage", str(storage)], capsys)
        content = json.loads(invoke(status.main, ["half", "--storage", str(storage), "--json"], capsys).out)
    assert [(size["size"], size["state"]) for size in content["sizes"]] == [
        ("digits_s", "running"), ("digits_m", "stopped"),
    ]  # fmt: skip
    assert content["sizes"][1]["failed"] == "no trial was completed"
    assert "  failed: no trial was completed" in outcome.out


def test_a_size_that_the_driver_was_not_asked_for_is_not_running(storage: Path):
    make_study(storage / "half", "digits_m", finished=False)
    with alone(storage / "half"):
        at_this_moment(sizes=("digits_s",)).write(storage / "half")
        found = cca_ray.open(storage / "half").status
    assert [(size.size, size.state) for size in found.sizes] == [("digits_s", "running"), ("digits_m", "stopped")]


def test_what_a_killed_driver_left_is_no_sign_of_life(storage: Path, capsys):
    at_this_moment().write(storage / "half")
    assert "half: stopped" in invoke(status.main, ["half", "--storage", str(storage)], capsys).out
    at_this_moment(host="elsewhere", at=time.time() - 100).write(storage / "half")
    assert "half: stopped" in invoke(status.main, ["half", "--storage", str(storage)], capsys).out


def test_a_fresh_sign_of_life_of_another_machine_is_one(storage: Path, capsys):
    at_this_moment(host="elsewhere").write(storage / "half")
    outcome = invoke(status.main, ["half", "--storage", str(storage)], capsys)
    assert f"half: running, by process {os.getpid()} on elsewhere" in outcome.out


@pytest.mark.parametrize("host", ["", "elsewhere"])  # this machine: another user's, or another shell's
def test_at_a_uri_a_sign_of_life_is_one_where_the_lease_is_of_another_cache(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def folder_of(cache: str) -> Path:
        monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / cache))
        return local_path(f"{(tmp_path / 'there').as_uri()}/half")

    theirs = folder_of("theirs")
    theirs.mkdir(parents=True)
    with leased(theirs):
        at_this_moment(host).write(theirs)
        push(theirs / STATUS)
        process, told = status.driver_of(folder_of("ours"))
        assert process.startswith(f"{os.getpid()} on {host}")
        assert told
        # Who shares the cache would see the lock: it is not held, as after a kill.
        assert status.driver_of(folder_of("theirs")) == ("", None)
    assert status.driver_of(folder_of("ours")) == ("", None)  # it has ended


def test_a_watch_ends_with_the_study(storage: Path, capsys):
    outcome = invoke(status.main, ["whole", "--storage", str(storage), "--watch", "1", "--json"], capsys)
    assert outcome.code == 0
    assert json.loads(outcome.out)["sizes"][0]["outcome"]["size"] == "digits_s"


@pytest.mark.parametrize("verb", ["status", "report", "clean"])
@pytest.mark.parametrize("study", ["whole", "half"])
def test_who_only_looks_waits_for_nothing_heavy(verb: str, study: str, storage: Path):
    program = (
        f"import sys; from cca_ray.{verb} import main; from cca_ray.terminal.console import command; "
        "command(main).main(sys.argv[1:], standalone_mode=False); "
        "sys.exit(', '.join({'torch', 'ray', 'mlflow'} & set(sys.modules)) or None)"
    )
    arguments = [sys.executable, "-c", program, study, "--storage", str(storage)]
    ended = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def test_looking_changes_nothing(storage: Path, capsys):
    before = {path: path.stat().st_mtime_ns for path in storage.rglob("*")}
    invoke(status.main, ["whole", "--storage", str(storage)], capsys)
    assert {path: path.stat().st_mtime_ns for path in storage.rglob("*")} == before


def test_an_unknown_study_is_one_line(storage: Path, capsys):
    outcome = invoke(status.main, ["other", "--storage", str(storage)], capsys)
    assert (outcome.code, outcome.err) == (
        2, f"error: {storage / 'other'}: no study here; there are: half, whole\n"
    )  # fmt: skip


def test_without_a_name_all_studies_are_listed(storage: Path, capsys):
    (storage / "torn").mkdir()
    (storage / "torn" / "study.db").write_text("nonsense")
    outcome = invoke(status.main, ["--storage", str(storage)], capsys)
    assert outcome.code == 0
    rows = {line.split()[0]: line for line in outcome.out.splitlines()}
    assert re.search("finished +digits_s ✓ better", rows["whole"])
    assert re.search("stopped +digits_s stopped, 12 search trials ended", rows["half"])
    assert "not a readable study" in rows["torn"]
    content = json.loads(invoke(status.main, ["--json", "--storage", str(storage)], capsys).out)
    assert [study["state"] for study in content["studies"]] == ["stopped", "finished"]
    assert list(content["unreadable"]) == ["torn"]


def test_a_storage_without_studies_says_so_and_a_watch_wants_a_name(tmp_path: Path, capsys):
    outcome = invoke(status.main, ["--storage", str(tmp_path)], capsys)
    assert (outcome.code, outcome.out) == (0, f"{tmp_path}: no studies yet; `cca-ray tune` begins one\n")
    outcome = invoke(status.main, ["--storage", str(tmp_path), "--watch", "1"], capsys)
    assert (outcome.code, outcome.err) == (2, "error: --watch needs the NAME of a study\n")


def test_a_name_that_is_nearly_one_is_answered_with_it(storage: Path, capsys):
    outcome = invoke(status.main, ["hole", "--storage", str(storage)], capsys)
    assert outcome.err.endswith("there are: half, whole; did you mean whole?\n")
