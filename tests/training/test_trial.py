"""The trainable that Tune runs, and its process."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ray import tune

from cca_ray.cluster.device import CardLost
from cca_ray.training import trial
from cca_ray.training.job import Job
from cca_ray.training.reports import TrialFailure, from_ray
from cca_ray.training.trial import TrialSettings, run_trial
from tests.conftest import MakeStudy

ASSERT = "CUDA error: device-side assert triggered"


@pytest.fixture
def failing(make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[TrialFailure]]:
    """Run a trial that meets a device assert; what it reports of that."""

    def fit() -> None:
        raise torch.AcceleratorError(ASSERT)

    def run() -> list[TrialFailure]:
        reports = list[Any]()
        monkeypatch.setattr(trial, "build_trainer", lambda job, report: SimpleNamespace(fit=fit))
        monkeypatch.setattr(trial.tune, "report", lambda content: reports.append(from_ray(content)))
        config = make_study()
        run_trial(TrialSettings(job=Job(config, config.train, tmp_path).packed(), placer=None))
        return reports

    return run


def test_an_error_ends_the_trial_and_not_its_process(failing: Callable[[], list[TrialFailure]]):
    (failure,) = failing()
    assert failure.reason == f"AcceleratorError: {ASSERT}"


@pytest.mark.parametrize("lost", [False, True])
def test_a_process_that_has_lost_its_card_ends(
    failing: Callable[[], list[TrialFailure]], monkeypatch: pytest.MonkeyPatch, lost: bool
):
    """After an assert CUDA answers every call with it; after most errors it goes on."""
    freed = list[None]()

    def synchronize() -> None:
        if lost:
            raise torch.AcceleratorError(ASSERT)

    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: freed.append(None))
    if lost:
        with pytest.raises(CardLost, match=f"AcceleratorError: {ASSERT}"):
            failing()
    else:
        assert len(failing()) == 1
    assert freed == [None]  # for the next trial of this process


def test_tune_starts_a_new_process_for_what_is_raised(ray_here: None, tmp_path: Path):
    """Though it would reuse one that has ended well."""

    def trainable(settings: dict[str, Any]) -> None:
        with (tmp_path / "pids").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if len((tmp_path / "pids").read_text().splitlines()) == 1:
            raise CardLost(ASSERT)
        tune.report({"done": 1})

    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(num_samples=2, max_concurrent_trials=1, reuse_actors=True),
        run_config=tune.RunConfig(
            storage_path=str(tmp_path), failure_config=tune.FailureConfig(max_failures=1), verbose=0
        ),
    ).fit()
    first, again, following = (tmp_path / "pids").read_text().split()
    assert first != again == following
