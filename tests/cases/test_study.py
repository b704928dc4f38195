"""A study's options, its terminal and what is kept in its folder; see README.md."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import optuna
import pytest
import yaml

from cca_ray import evaluate, tune
from cca_ray.training.small_base import BaseFiles
from tests.commands import invoke, write_space
from tests.studies import make_study

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["search.space={lambda: {low: 3, high: 3}, learning_rate: {low: 1e-3, high: 1e-2}}"], "must be below high"),
        (["search.space.lambda.low=0"], "low must be above 0 on a log scale; or set log: false"),
        (["search.space={global_batch: {choices: [64, 128]}}"], "search.space.global_batch.low: field required"),
        (["search.space={epochs: {low: 1, high: 3, step: 1}}"], "search.space.epochs.step: unknown key"),
        (["search.space={epochs: {low: 1.2, high: 1.4}}"], "search.space.epochs: expected at least two whole numbers"),
        (["search.space={epochs: {low: 1.5, high: 2.4}}"], "search.space.epochs: expected at least two whole numbers"),
        (["search.space={objective: {low: 1, high: 2}}"], "search.space"),
        (["search.space={lr: {low: 1e-4, high: 1e-2}}"], "search.space"),
        (["search.space={beta: {low: .nan, high: 1}}"], "search.space.beta.low: input should be a finite number"),
        (["search.space={beta: {low: 0.1, high: .inf}}"], "search.space.beta.high: input should be a finite number"),
        (["search.space={}"], "search.space: dictionary should have at least 1 item"),
        (["control.learning_rates=[1e-3, 0.001]"], "control.learning_rates: 0.001 is given twice"),
    ],
)
def test_a_range_that_makes_no_sense_is_one_line(
    options: list[str], message: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    points = ["search.first_points=[]"] if "search.space=" in options[0] else []
    settings = [word for option in [*options, *points] for word in ("--set", option)]
    outcome = invoke(tune.main, ["digits_s", "--dry-run", *settings], capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "option",
    [
        "--trials=0", "--trials=-3", "--trials=1e6", "--minutes=0", "--minutes=nan", "--seed=-1",
        "--seed=99999999999999999999",
    ],
)  # fmt: skip
def test_a_number_out_of_its_bounds_is_one_line(option: str, tmp_path: Path, capsys):
    outcome = invoke(tune.main, ["digits_s", "--dry-run", option], capsys)
    assert outcome.code == 2
    assert option.split("=")[0] in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_range_that_makes_sense_is_kept_as_it_is(capsys):
    space = "search.space={dropout: {low: 0, high: 0.5, log: false}, epochs: {low: 1.5, high: 3.2}}"
    settings = ["--set", space, "--set", "search.first_points=[]", "--trials", "1000000"]
    outcome = invoke(tune.main, ["digits_s", "--dry-run", *settings], capsys)
    assert outcome.code == 0, outcome.err
    (shown,) = yaml.safe_load_all(outcome.out)
    assert shown["search"]["trials"] == 1_000_000
    assert shown["search"]["space"]["dropout"] == {"low": 0.0, "high": 0.5, "log": False}


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "PY": sys.executable, **environment}
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line}"], cwd=folder, env=variables, capture_output=True, encoding="utf-8",
        errors="replace", timeout=300,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("line", "environment"),
    [
        ("$PY -m cca_ray status hand | true", {}),
        ("$PY -m cca_ray status hand >&-", {}),
        ("$PY -m cca_ray status hand", {"PYTHONIOENCODING": "ascii"}),
        ("$PY -m cca_ray status hand", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("$PY -m cca_ray status hand | head -2", {"PYTHONIOENCODING": "latin-1"}),
    ],
)
def test_a_short_command_ends_well_whatever_it_writes_to(line: str, environment: dict[str, str], tmp_path: Path):
    make_study(tmp_path / "runs" / "hand")
    done = shell(line, tmp_path, **environment)
    assert (done.returncode, done.stderr) == (0, "")
    if "|" not in line and ">&-" not in line:
        assert "digits_s" in done.stdout


def scored(folder: Path) -> tuple[float, float, int]:
    """FID of the control and of the winner, and which trial that is."""
    (size,) = json.loads((folder / "summary.json").read_text())["sizes"]
    return size["models"]["control"]["values"]["fid"], size["models"]["tuned"]["values"]["fid"], size["winner"]["trial"]


@pytest.mark.nightly  # tests/training/test_kept_scores.py has the rule
@pytest.mark.timeout(900)
def test_a_name_that_is_used_again_has_nothing_of_the_study_before(base_files: BaseFiles, tmp_path: Path, capsys):
    """`study.db` is damaged, and moved away as the message says; other settings, the same name.

    The terminals on the way are a pipe whose reader leaves, and one that takes no λ.
    """
    write_space(tmp_path, base_files)
    command = "$PY -m cca_ray tune tiny.yaml --trials 2 --name a"
    first = shell(f"{command} | head -4", tmp_path)
    assert (first.returncode, first.stdout.count("\n")) == (0, 4), first.stderr
    runs = tmp_path / "runs"
    before = scored(runs / "a")
    database = runs / "a" / "study.db"
    database.write_bytes(random.Random(0).randbytes(8192) + database.read_bytes()[8192:])
    damaged = shell(command, tmp_path)
    assert damaged.returncode == 2
    assert "study.db: cannot be used (DatabaseError); move it away, or use another --name" in damaged.stderr
    database.rename(tmp_path / "moved.db")
    other = " --set train.beta=0.5 --set 'search.first_points=[{lambda: 9, learning_rate: 9e-3}]'"
    refused = shell(command + other, tmp_path, PYTHONIOENCODING="ascii")
    assert refused.returncode == 2
    assert "checkpoint.pt: belongs to another fine-tuning; delete it, or use another name" in refused.stderr
    for checkpoint in (runs / "a").glob("trials/*/checkpoint.pt"):
        checkpoint.unlink()
    for name in ("a", "b"):
        done = shell(command.replace("--name a", f"--name {name}") + other, tmp_path)
        assert done.returncode == 0, done.stderr
    assert scored(runs / "a") == scored(runs / "b")
    assert scored(runs / "a") != before
    trials = optuna.load_study(study_name="a/tiny/search", storage=f"sqlite:///{database}").trials
    assert trials[0].params == pytest.approx({"lambda": 9, "learning_rate": 9e-3})
    winners = [str(runs / name / "tiny" / "winner.pt") for name in ("a", "b")]
    values = [
        json.loads(invoke(evaluate.main, [str(tmp_path / "tiny.yaml"), "--checkpoint", w], capsys).out)["fid"]
        for w in winners
    ]
    assert values[0] == values[1]
    assert np.isfinite(values[0])
