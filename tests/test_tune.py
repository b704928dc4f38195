"""The main command, as a process of its own, through interruptions."""

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml
from optuna.trial import TrialState

from cca_ray import tune
from cca_ray.errors import ConfigError
from cca_ray.inputs import find_space
from cca_ray.reporting.asked import read_asked
from cca_ray.reporting.outcome import failed_replicates
from cca_ray.search.mlflow_pages import experiment_of
from cca_ray.space_file import load_config
from cca_ray.status import RUNNING, SizeStatus, look
from cca_ray.storage.uris import local_path
from cca_ray.study import Budget
from cca_ray.terminal.console import Console
from cca_ray.terminal.snapshot import STATUS
from cca_ray.tracking.store import KEY
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.small_base import BaseFiles
from cca_ray.tune import fresh_name, load_spaces
from tests.commands import EXPERIMENT, invoke, start, statuses, trials, write_space
from tests.processes import begin, wait_until
from tests.studies import summary_of


def on_a_terminal(folder: Path, *arguments: str) -> tuple[subprocess.Popen[bytes], int]:
    """The command on a terminal of 80 columns, and the end of it from which to read."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "cca_ray", "tune", *arguments]
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "30", "NO_COLOR": "1"}
    process = begin(command, cwd=folder, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    return process, master


def read_all(master: int) -> str:
    """What a terminal was sent until its process ended, without what moves the cursor."""
    content = bytearray()
    try:
        while some := os.read(master, 1 << 16):
            content += some
    except OSError:  # so ends a terminal
        pass
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", content.decode()).replace("\r", "")


def test_small_sizes_come_first_within_their_family(base_files: BaseFiles, tmp_path: Path):
    for name, size in (("large", "M"), ("small", "S")):
        path = write_space(tmp_path, base_files, name)
        path.write_text(path.read_text().replace("size: S", f"size: {size}"))
    spaces = [str(tmp_path / "large.yaml"), "digits_var", str(tmp_path / "small.yaml")]
    assert [config.name for config in load_spaces(spaces, [])] == ["small", "large", "digits_var"]


def test_a_fresh_name_is_one_that_no_study_has(tmp_path: Path):
    assert fresh_name("digits", tmp_path) == "digits"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits-2").mkdir()
    assert fresh_name("digits", tmp_path) == "digits-3"


def test_how_sizes_were_named_is_kept_wherever_their_files_are():
    """The names that a URI and a path give to one file differ: the one has a query, and escapes."""
    at_a_uri = "s3://runs/bases/größe_s.yaml?scheme=http&endpoint_override=10.0.0.5%3A9000"
    config = load_config(find_space("digits_s")).model_copy(update={"name": "größe_s"})
    named = tune.names_of([config], [at_a_uri], ["search.trials=3", "train.beta=0.05"])["größe_s"]
    assert local_path(named.space) == local_path(at_a_uri)
    assert named.settings == ("train.beta=0.05",)


@pytest.mark.parametrize("kind", [ConfigError, KeyboardInterrupt])
def test_what_ends_a_fresh_study_says_how_that_one_is_continued(
    kind: type[BaseException], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """The same command would begin another."""
    by_hand = kind is KeyboardInterrupt

    def search(folder: Path, *more: object) -> None:
        raise kind("no room")

    monkeypatch.setattr(tune, "search", search)
    command = ["digits_s", "--storage", str(tmp_path / "runs"), "--fresh"]
    for name in ("digits_s", "digits_s-2"):
        outcome = invoke(tune.main, command, capsys)
        how = f"continue it with --name {name} instead of --fresh"
        said = f"interrupted; {how}" if by_hand else f"error: no room ({how})"
        assert (outcome.code, outcome.err) == (130 if by_hand else 2, f"{said}\n")
    outcome = invoke(tune.main, [*command[:-1], "--name", "digits_s"], capsys)
    assert "--fresh" not in outcome.err


@pytest.mark.parametrize(
    ("options", "budget"),
    [
        ([], (None, None)),
        (["--minutes", "90"], (90.0, None)),
        (["--gpu-hours", "60.5"], (None, 60.5)),
        (["--minutes", "90", "--gpu-hours", "60.5"], (90.0, 60.5)),
    ],
)
def test_the_options_of_a_budget_reach_the_search(
    options: list[str], budget: tuple[float | None, float | None], tmp_path: Path, capsys,
    monkeypatch: pytest.MonkeyPatch,
):  # fmt: skip
    """What a search makes of it: tests/test_study.py and tests/search/test_ledger.py."""
    given = list[Budget]()

    def search(folder: Path, uri: str, configs: object, limit: Budget, *more: object) -> None:
        given.append(limit)
        raise ConfigError("seen")

    monkeypatch.setattr(tune, "search", search)
    assert invoke(tune.main, ["digits_s", "--storage", str(tmp_path / "runs"), *options], capsys).err == "error: seen\n"
    assert [(limit.minutes, limit.device_hours) for limit in given] == [budget]


def test_what_was_asked_for_is_kept_before_anything_begins(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    def search(folder: Path, *more: object) -> None:
        raise ConfigError(", ".join(read_asked(folder).sizes))

    monkeypatch.setattr(tune, "search", search)
    monkeypatch.chdir(tmp_path)
    shutil.copy(find_space("digits_m"), "own.yaml")
    at = ["--storage", str(tmp_path / "runs"), "--name", "study"]
    own = ["own.yaml", "--set", "score.top_k=9", "--trials", "3"]
    for given, sizes in ((["digits_s", "digits_m"], "digits_s, digits_m"), (["digits_s"], "digits_s"), (own, "own")):
        assert invoke(tune.main, [*given, *at], capsys).err == f"error: {sizes}\n"
    named = read_asked(tmp_path / "runs" / "study").named  # also how the sizes of earlier commands were
    assert {size: name.space for size, name in named.items()} == {
        "digits_s": "digits_s", "digits_m": "digits_m", "own": str(tmp_path / "own.yaml"),
    }  # fmt: skip
    assert [name.settings for name in named.values()] == [(), (), ("score.top_k=9",)]


@pytest.mark.parametrize(("space", "queues"), [("digits_s", False), ("llamagen_b", True)])
def test_a_driver_tells_the_queue_for_cards_once_that_it_begins(
    space: str, queues: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    begun = list[Path]()
    monkeypatch.setattr(tune, "begin_in_queue", begun.append)
    tune.free_what_died(tmp_path, [load_config(find_space(space))] * 2, print)
    assert begun == [tmp_path / "trials"] * queues


@pytest.mark.parametrize(
    ("address", "written_down", "outlives_us"),
    [
        ("local", True, False),
        (None, True, True),
        ("", True, True),
        (None, False, False),
        ("10.1.2.3:6379", False, True),
    ],
)
def test_what_dead_studies_left_is_freed_on_every_cluster_that_is_not_our_own(
    address: str | None, written_down: bool, outlives_us: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As by `ray start`: tests/cluster/test_address.py."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if address is not None:
        monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    if written_down:
        (tmp_path / "ray").mkdir()
        (tmp_path / "ray" / "ray_current_cluster").write_text("10.1.2.3:6379")
    freed = list[object]()
    monkeypatch.setattr(tune, "remove_leaked_groups", freed.append)
    tune.free_what_died(tmp_path, [], print)
    assert freed == [print] * outlives_us


def test_an_experiment_that_cannot_be_opened_leaves_none_of_the_others_open(tmp_path: Path):
    configs = [load_config(find_space(name), []) for name in ("digits_s", "digits_var")]
    deleted, uri = experiment_of(configs[1]), f"sqlite:///{tmp_path / 'mlflow.db'}"
    tracker = Tracker(uri, deleted)
    tracker.client.delete_experiment(tracker.experiment_id)
    tracker.close(10)
    (tmp_path / "study").mkdir()
    before = set(threading.enumerate())
    with pytest.raises(ValueError, match=f"{deleted} was deleted there"):
        tune.search(tmp_path / "study", uri, configs, Budget(None, None), False, Console(quiet=True))
    assert (tmp_path / "study" / "mlflow-llamagen-digits.journal").exists()  # the first was open
    assert [thread for thread in threading.enumerate() if thread not in before and thread.name == "mlflow"] == []


@pytest.mark.parametrize(
    ("failed", "no_report", "left"),
    [
        ("", "the study has no report (Is a directory)", ""),
        ("", "", "MLflow: 2 entries wait"),
        ("", "no report", "2 entries wait"),
        ("1 of 4 replicates failed", "", ""),
    ],
)
@pytest.mark.parametrize("options", [[], ["--quiet"], ["--json"]])
def test_exit_code_0_means_that_the_report_is_there_and_all_is_trained_and_in_mlflow(
    failed: str, no_report: str, left: str, options: list[str], tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    """What makes a report impossible: tests/test_report.py; and MLflow's part: tests/tracking/test_left_behind.py."""
    found = tune.Found(tmp_path / "runs" / "hand", [summary_of()], None, "mlflow ui", no_report, left, failed=failed)
    missing = [what for what in (failed, no_report, left) if what]
    monkeypatch.setattr(tune, "search", lambda *arguments: found)
    outcome = invoke(tune.main, ["digits_s", "--storage", str(tmp_path / "runs"), *options], capsys)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-len(missing) :] == [f"error: {what}" for what in missing]
    if options == ["--json"]:
        told = json.loads(outcome.out)
        assert (told["failed"], told["no_report"], told["mlflow"]) == (failed, no_report, left)


def test_a_finalist_with_fewer_training_seeds_than_were_asked_for_is_told_of():
    config, small = (load_config(find_space(name)) for name in ("digits_m", "digits_s"))
    twice = config.model_copy(update={"search": config.search.model_copy(update={"replicates": 2})})
    won, other = summary_of().finalists
    some = (won.model_copy(update={"models": 3}), other.model_copy(update={"models": 2}))
    size = summary_of("digits_m", finalists=some)
    assert failed_replicates([summary_of(), size], [small, config]) == ""
    told = failed_replicates([summary_of(), size], [small, twice])
    assert told.startswith("digits_m: 1 of 4 replicates failed")
    assert "--replicates 1 asks for no more" in told


def test_replicates_are_a_setting_of_the_search(tmp_path: Path, capsys):
    for options, replicates in (([], 0), (["--replicates", "2"], 2)):
        outcome = invoke(tune.main, ["digits_s", "--dry-run", *options], capsys)
        assert outcome.code == 0
        assert yaml.safe_load(outcome.out)["search"]["replicates"] == replicates


@pytest.mark.parametrize("option", ["--minutes=0", "--gpu-hours=0", "--gpu-hours=-1", "--replicates=-1", "--trials=0"])
def test_an_amount_out_of_its_range_is_one_line(option: str, tmp_path: Path, capsys):
    outcome = invoke(tune.main, ["digits_s", "--storage", str(tmp_path / "runs"), option], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert option.partition("=")[0] in outcome.err
    assert not (tmp_path / "runs").exists()


@pytest.mark.nightly
def test_the_same_command_continues_after_an_interrupt_and_a_kill(base_files: BaseFiles, tmp_path: Path):
    write_space(tmp_path, base_files, epochs=30)
    command = ("tiny.yaml", "--max-concurrent", "1")

    def scored(key: str) -> Callable[[], bool]:
        return (tmp_path / "runs" / "tiny" / "trials" / f"tiny-{key}" / "checkpoint.pt").exists

    process = start(tmp_path, *command)
    wait_until(scored("control-0000"))
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "interrupted; run the same command again to continue"
    assert "tiny: 3 trials, 1 control, 1 at a time" in output  # what it would take
    assert statuses(tmp_path)
    assert "RUNNING" not in statuses(tmp_path)

    process = start(tmp_path, *command)
    wait_until(scored("search-0001"))
    process.kill()
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    kept = [t for t in trials(tmp_path) if t.state == TrialState.COMPLETE]
    assert len(kept) == 1

    process = start(tmp_path, *command)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    ended = trials(tmp_path)
    assert [t.state for t in ended] == [TrialState.COMPLETE] * 3
    assert ended[0] == kept[0]
    assert [t.state for t in trials(tmp_path, "control")] == [TrialState.COMPLETE]
    assert sorted(statuses(tmp_path)) == ["FINISHED"] * 5
    tracker = Tracker(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}", EXPERIMENT)
    for trial in ended:  # nothing is missing and nothing is logged twice
        ending = f"tags.`{KEY}` LIKE '%/{trial.user_attrs['key']}'"
        (run,) = tracker.client.search_runs([tracker.experiment_id], ending)
        history = tracker.client.get_metric_history(run.info.run_id, "train/loss")
        assert sorted(metric.step for metric in history) == list(range(1, 301))

    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    (size,) = summary["sizes"]
    assert size["trials"] == 3
    assert "| tiny | " in output
    assert "mlflow server --backend-store-uri sqlite:///" in output
    assert (tmp_path / "runs" / "tiny" / "tiny" / "winner.pt").is_file()
    assert (tmp_path / "runs" / "tiny" / "tiny" / "samples.png").is_file()
    report = tmp_path / "runs" / "tiny" / "report" / "report.html"
    assert f"report   {report}" in output
    assert f"FID {size['models']['tuned']['values']['fid']:.2f}" in report.read_text()


@pytest.mark.nightly
@pytest.mark.timeout(600)
def test_a_terminal_shows_trials_at_work_and_a_script_gets_one_json_object(base_files: BaseFiles, tmp_path: Path):
    write_space(tmp_path, base_files, epochs=60)
    runs, arguments = tmp_path / "runs", ("tiny.yaml", "--trials", "2")
    process, master = on_a_terminal(tmp_path, *arguments)
    with ThreadPoolExecutor() as pool:
        reading = pool.submit(read_all, master)
        wait_until((runs / "tiny" / STATUS).exists, seconds=240)
        looks = iter(lambda: look(runs, "tiny"), None)
        seen = next(seen for seen in looks if any(map(begun, seen.content.sizes)))
        shown = reading.result()
    assert process.wait(60) == 0
    assert seen.content.state == RUNNING
    assert re.search(r"^ search #[01] λ=.* \d+/600 [\d,]+ img/s", shown, re.MULTILINE)
    assert re.search(r"^cluster  CPU [12]/\d+ in use", shown, re.MULTILINE)
    assert not re.search(r"step \d+/600$", shown, re.MULTILINE)  # what the view shows, no lines tell
    assert "search #0  λ=" in shown
    assert "| after CCA " in shown
    assert re.search(r"^tiny  FID [\d.]+  [✓≈✗] (better than|equal to|WORSE than) guided", shown, re.MULTILINE)
    assert f"log      {runs / 'tiny' / 'log.txt'}" in shown
    assert not (runs / "tiny" / STATUS).exists()
    log = (runs / "tiny" / "log.txt").read_text()
    assert "Ray's own log files are in /" in log
    assert "ray._private.worker: Started a local Ray instance" in log
    assert "Failed to fetch metrics" not in log
    assert "WARNING" not in shown

    command = [sys.executable, "-m", "cca_ray", "tune", *arguments, "--json", "--quiet"]
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    outcome = json.loads(again.stdout)
    assert outcome["sizes"] == json.loads((runs / "tiny" / "summary.json").read_text())["sizes"]
    assert outcome["where"]["report"] == str(runs / "tiny" / "report" / "report.html")
    shared = "runs?viewStateShareKey=cca_ray-tiny&workflowType=machine_learning"
    assert outcome["where"]["table"].endswith(shared)
    assert outcome["where"]["charts"].endswith(f"{shared}&compareRunsMode=CHART")
    assert outcome["told"] == [look(runs, "tiny").content.sizes[0].verdict]
    assert again.stderr == ""


def begun(size: SizeStatus) -> bool:
    return any(trial.step for trial in size.running)
