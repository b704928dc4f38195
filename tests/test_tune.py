"""The main command, as a process of its own, through interruptions."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import optuna
from optuna.trial import TrialState

from cca_ray.pretrain import BaseFiles
from cca_ray.tracking import Tracker
from tests.test_cli import write_space


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cca_ray.tune", *arguments]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_until(ready: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not ready():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


def trials(folder: Path, arm: str = "search") -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder / 'runs' / 'tiny' / 'study.db'}"
    return optuna.load_study(study_name=f"tiny/tiny/{arm}", storage=storage).trials


def statuses(folder: Path) -> list[str]:
    tracker = Tracker(f"sqlite:///{folder / 'runs' / 'mlflow.db'}", "cca_ray llamagen")
    return [run.info.status for run in tracker.client.search_runs([tracker.experiment_id])]


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
    assert statuses(tmp_path)
    assert "RUNNING" not in statuses(tmp_path)

    process = start(tmp_path, *command)
    wait_until(scored("search-0001"))
    process.kill()
    process.communicate(timeout=60)
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
    tracker = Tracker(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}", "cca_ray llamagen")
    for trial in ended:  # nothing is missing and nothing is logged twice
        history = tracker.client.get_metric_history(trial.user_attrs["mlflow_run_id"], "loss")
        assert sorted(metric.step for metric in history) == list(range(1, 301))

    summary = json.loads((tmp_path / "runs" / "tiny" / "summary.json").read_text())
    (size,) = summary["sizes"]
    assert size["trials"] == 3
    assert "| tiny | " in output
    assert "mlflow server --backend-store-uri sqlite:///" in output
    assert (tmp_path / "runs" / "tiny" / "tiny" / "winner.pt").is_file()
    assert (tmp_path / "runs" / "tiny" / "tiny" / "samples.png").is_file()
