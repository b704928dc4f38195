"""A fine-tuning in bfloat16 as a whole: trained, sampled, scored, killed and resumed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.config import StudyConfig
from cca_ray.contracts import TrialReport
from cca_ray.models.official import load_official
from cca_ray.models.parallel import Group
from cca_ray.placement_config import Precision
from cca_ray.training.checkpoint import Progress
from cca_ray.training.job import Job
from cca_ray.training.loop import fine_tune
from tests.conftest import MakeStudy

TRAIN = {"reference": "live", "dropout": 0.1}


def run(config: StudyConfig, precision: Precision, folder: Path, killed: bool = False) -> list[TrialReport]:
    """Its reports; `killed`: once, at its first rung."""
    placement = config.placement.model_copy(update={"precision": precision, "micro_batch": 12})
    job = Job(config.model_copy(update={"placement": placement}), config.train, folder)

    def kill(report: TrialReport) -> None:
        if report.score:
            raise KeyboardInterrupt

    if killed:
        with pytest.raises(KeyboardInterrupt):
            fine_tune(job, kill, Group())
        assert (folder / "checkpoint.pt").is_file()
    progress = Progress()
    fine_tune(job, progress.add, Group())
    return progress.reports


def losses(reports: list[TrialReport]) -> np.ndarray:
    return np.array([row[1] for report in reports for row in report.history])


@pytest.mark.parametrize("family", ["llamagen", "var", "rar"])
def test_a_trial_is_trained_sampled_scored_and_resumed(make_study: MakeStudy, tmp_path: Path, family: str):
    config = make_study(family=family, train=TRAIN, rungs=[{"at": 0.5, "samples": 40}, {"at": 1.0, "samples": 40}])
    whole, resumed = run(config, "bfloat16", tmp_path / "a"), run(config, "bfloat16", tmp_path / "b", killed=True)
    exact = run(config, "float32", tmp_path / "c")
    for report, again in zip(whole, resumed, strict=True):
        assert report.score is not None
        assert again.score is not None
        assert np.isfinite(list(report.score.values.values())).all()
        assert again.score.values == report.score.values
        assert report.score.protocol != (exact[0].score.protocol if exact[0].score else "")
    np.testing.assert_array_equal(losses(resumed), losses(whole))
    np.testing.assert_allclose(losses(whole), losses(exact), rtol=0.05)
    assert not np.array_equal(losses(whole), losses(exact))
    size, tokenizer = config.base.size, config.base.tokenizer if family == "var" else None
    made, again = (load_official(family, size, tmp_path / k / "model.pt", tokenizer).state_dict() for k in "ab")
    assert all(torch.equal(again[name], tensor) for name, tensor in made.items())
    assert {t.dtype for t in made.values() if t.is_floating_point()} == {torch.float32}  # only what is sampled is cast
