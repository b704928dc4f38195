"""The verbs as a person would type them, here and in processes of their own, and what their studies leave."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from cca_ray.search.mlflow_pages import experiment_name
from cca_ray.terminal.console import run
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.small_base import BaseFiles
from tests.conftest import tiny_space
from tests.processes import begin

EXPERIMENT = experiment_name("llamagen", "digits")


@dataclass(frozen=True)
class Outcome:
    code: int | str | None
    out: str
    err: str


def invoke(main: Callable[..., Any], arguments: list[str], capsys: pytest.CaptureFixture[str]) -> Outcome:
    """`python -m cca_ray.<verb> ARGUMENTS`, in this process."""
    before, sys.argv = sys.argv, ["cca_ray", *arguments]
    try:
        with pytest.raises(SystemExit) as stop:
            run(main)
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    return Outcome(stop.value.code, captured.out, captured.err)


def assert_refused(
    main: Callable[..., Any], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], **paths: Path
) -> None:
    """By a verb, in one line, and nothing is left here. `paths`: what words of the arguments stand for."""
    outcome = invoke(main, [str(paths.get(word, word)) for word in arguments], capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(Path().iterdir()) == []


def verb(name: str, *arguments: str | Path) -> str:
    """`python -m cca_ray.NAME ARGUMENTS`, in a process of its own that must succeed; its output."""
    command = [sys.executable, "-m", f"cca_ray.{name}", *map(str, arguments)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def write_space(folder: Path, files: BaseFiles, name: str = "tiny", **train_settings: Any) -> Path:
    """A search-space file on the tests' tiny base."""
    content = tiny_space()
    content["base"] = {
        "family": "llamagen", "size": "S", "checkpoint": str(files.checkpoint), "tokenizer": str(files.tokenizer),
    }  # fmt: skip
    content["data"] = {"tokens": str(files.tokens)}
    content["score"] |= {"features": str(files.features), "reference": str(files.reference)}
    content["train"] |= train_settings
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def start(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cca_ray.tune", *arguments]
    return begin(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def trials(folder: Path, arm: str = "search") -> list[optuna.trial.FrozenTrial]:
    storage = f"sqlite:///{folder / 'runs' / 'tiny' / 'study.db'}"
    return optuna.load_study(study_name=f"tiny/tiny/{arm}", storage=storage).trials


def statuses(folder: Path) -> list[str]:
    tracker = Tracker(f"sqlite:///{folder / 'runs' / 'mlflow.db'}", EXPERIMENT)
    return [run.info.status for run in tracker.client.search_runs([tracker.experiment_id])]
