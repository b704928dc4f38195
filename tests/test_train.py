from pathlib import Path
from typing import Any

import pytest

from cca_ray.config import Train
from cca_ray.contracts import RungScore, TrialReport
from cca_ray.evaluation import scoring as scoring_module
from cca_ray.evaluation.thrift import TOO_SMALL
from cca_ray.train import describe, folder_name, main
from cca_ray.training.small_base import BaseFiles
from tests.commands import invoke, write_space

REPORT = TrialReport(
    step=2,
    total_steps=10,
    seconds=1.0,
    logged=("loss", "reward_accuracy", "reward_margin"),
    history=((1, 0.7, 0.5, 0.0), (2, 0.69314, 0.55, -0.123)),
    images_per_second=99.6,
    accelerator="CPU",
    workers=1,
    micro_batch=8,
    device_seconds={"CPU": 1.0},
)
SCORE = RungScore(values={"fid": 12.345, "inception_score": 2.0}, step=2, samples=60, scoring_seconds=1.0)


def test_a_report_is_a_line():
    line = "step 2/10  loss 0.6931  reward accuracy 0.55  margin -0.12  100 images/s"
    assert describe(REPORT) == line
    assert describe(REPORT.model_copy(update={"score": SCORE})) == f"{line}  fid 12.35 (60 samples)"
    assert describe(REPORT.model_copy(update={"history": ()})) == "step 2/10"
    plain = REPORT.model_copy(update={"logged": ("loss",), "history": ((2, 0.5),)})
    assert describe(plain) == "step 2/10  loss 0.5000  100 images/s"


def test_a_runs_folder_is_named_by_its_settings():
    cca = Train.model_validate({"lambda": 3.0, "learning_rate": 5e-3})
    assert folder_name("digits_s", cca) == "digits_s-lambda3-lr0.005"
    plain = Train.model_validate({"objective": "finetune", "learning_rate": 5e-3})
    assert folder_name("digits_s", plain) == "digits_s-finetune-lr0.005"


def test_memory_that_is_too_small_is_a_line(
    base_files: BaseFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def none(*arguments: Any) -> Any:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(scoring_module, "decode_images", none)
    space = str(write_space(tmp_path, base_files))
    outcome = invoke(main, [space, "--out", str(tmp_path / "run")], capsys)
    assert (outcome.code, outcome.err) == (2, f"error: {TOO_SMALL}\n")
