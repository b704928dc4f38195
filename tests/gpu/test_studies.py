"""Whole studies as people run them, each in processes of its own: on one card, two trials on it, workers on two."""

import re
from pathlib import Path

import numpy as np
import optuna
import pytest
import torch

from benchmarks.common import TINY, set_options
from cca_ray.reporting.results import read_summary
from cca_ray.storage.uris import database_uri
from tests.commands import verb
from tests.gpu.conftest import CARD
from tests.gpu.places import OnCard, Place
from tests.official_studies import check_gpt_b

# On the CPU these take a minute each: they are among the nightly tests there.
PLACES = [pytest.param("cpu", marks=[pytest.mark.nightly, pytest.mark.timeout(600)]), CARD]
FEW = [word for word in TINY if not word.startswith("search.")]


def most_at_once(database: Path) -> int:
    """Trials that ran at the same time."""
    storage, times = database_uri(database), list[tuple[float, int]]()
    for name in optuna.get_all_study_names(storage):
        for trial in optuna.load_study(study_name=name, storage=storage).trials:
            if trial.datetime_start and trial.datetime_complete:
                times += [(trial.datetime_start.timestamp(), 1), (trial.datetime_complete.timestamp(), -1)]
    return int(np.cumsum([change for _, change in sorted(times)]).max())


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_a_whole_study_of_the_digits_with_two_trials_on_a_card(place: Place, tmp_path: Path):
    """`gpus: 0.5`: Ray puts two trials on one card, each in a process of its own."""
    changes = [*TINY, "search.trials=2", "placement.gpus=0"] if place.here.dry else ["placement.gpus=0.5"]
    verb(
        "tune", "digits_s", "--storage", str(tmp_path), "--name", "shared", "--max-concurrent", "2", "--quiet",
        *set_options(changes),
    )  # fmt: skip
    (size,) = read_summary(tmp_path / "shared" / "summary.json").sizes
    assert size.device == ("CPU" if place.here.dry else "GPU")
    assert all(np.isfinite(score.values["fid"]) for score in size.models.values())
    assert (tmp_path / "shared" / "digits_s" / "winner.pt").is_file()
    if not place.here.dry:
        assert size.models["tuned"].values["fid"] < size.models["base"].values["fid"]
    assert most_at_once(tmp_path / "shared" / "study.db") >= (1 if place.here.dry else 2)


@pytest.mark.gpu
@pytest.mark.timeout(1800)
def test_two_steps_of_an_official_gpt_b(card: OnCard, tmp_path: Path):
    """On the CPU it is in tests/test_official.py."""
    check_gpt_b(tmp_path, gpus=1)


def last_loss(storage: Path, name: str, *changes: str) -> float:
    """Of a fine-tuning."""
    few = [*FEW, "train.lambda=3", "train.learning_rate=5e-3", "placement.precision=float32"]
    told = verb(
        "train", "digits_s", "--storage", str(storage), "--out", str(storage / name), *set_options([*few, *changes])
    )
    return float(re.findall(r"step (\d+)/\1  loss ([\d.]+)", told)[-1][1])


@pytest.mark.parametrize("place", PLACES, indirect=True)
def test_two_workers_give_the_same_as_one(place: Place, tmp_path: Path):
    """By NCCL between two cards; on the CPU by gloo."""
    if not place.here.dry and torch.cuda.device_count() < 2:
        pytest.skip("wants a second GPU")
    gpus = f"placement.gpus={0 if place.here.dry else 1}"
    alone = last_loss(tmp_path, "alone", gpus)
    for strategy in ("ddp", "fsdp"):
        two = last_loss(tmp_path, strategy, gpus, "placement.workers=2", f"placement.strategy={strategy}")
        assert two == pytest.approx(alone, rel=1e-3)
