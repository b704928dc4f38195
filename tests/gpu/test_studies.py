"""Whole studies as people run them, each in processes of its own: on one card, two trials on it, workers on two."""

import re
from collections.abc import Sequence
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


def spans_of(database: Path) -> list[tuple[float, float]]:
    """When each trial began and ended."""
    storage = database_uri(database)
    studies = [optuna.load_study(study_name=name, storage=storage) for name in optuna.get_all_study_names(storage)]
    return [
        (trial.datetime_start.timestamp(), trial.datetime_complete.timestamp())
        for study in studies
        for trial in study.trials
        if trial.datetime_start and trial.datetime_complete
    ]


def most_at_once(spans: Sequence[tuple[float, float]]) -> int:
    """At the same time; one that begins as another ends is not. ValueError if there are none."""
    if not spans:
        raise ValueError("no trial has ended")
    changes = sorted(change for begin, end in spans for change in ((begin, 1), (end, -1)))
    return int(np.cumsum([change for _, change in changes]).max())


@pytest.mark.parametrize(
    ("spans", "most"),
    [([(0, 3)], 1), ([(0, 3), (3, 5)], 1), ([(0, 3), (2, 5)], 2), ([(4, 9), (0, 1), (2, 8), (3, 5)], 3)],
)
def test_what_ran_at_once_is_counted(spans: list[tuple[float, float]], most: int):
    assert most_at_once(spans) == most
    with pytest.raises(ValueError, match="no trial has ended"):
        most_at_once([])


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
    assert most_at_once(spans_of(tmp_path / "shared" / "study.db")) == 2


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
