"""What crosses borders, and what version 0.1.0 wrote in its place."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cca_ray.contracts import RungScore, SizeSummary, StudySummary, TrialReport
from tests.earlier_versions import ARCHIVE

OLD_RUNG = {
    "step": 5, "fid": 2.5, "inception_score": 8.0, "without": [[2.4, 7.9], [2.6, 8.1]], "scoring_seconds": 0.5,
    "samples": 60,
}  # fmt: skip
OLD_REPORT: dict[str, Any] = {
    "step": 5, "total_steps": 10, "history": [[4, 1.5, 0.5, 0.1], [5, 1.25, 0.75, 0.2]], "images_per_second": 100.0,
    "accelerator": "CPU", "workers": 1, "micro_batch": 24, "load": [["cpu_utilization_percentage", 50.0]],
    "seconds": 2.0, "device_seconds": [["CPU", 2.0]],
}  # fmt: skip


def from_archive(ending: str, where: Path) -> Path:
    """The first file of the archive that ends so."""
    with tarfile.open(ARCHIVE) as archive:
        member = next(m for m in archive.getmembers() if m.name.endswith(ending))
        archive.extract(member, where)
    return where / member.name


def test_a_rung_of_version_0_1_is_read():
    score = RungScore.model_validate(OLD_RUNG)
    assert score.values == {"fid": 2.5, "inception_score": 8.0}
    assert score.without == {"fid": (2.4, 2.6), "inception_score": (7.9, 8.1)}
    assert (score.step, score.samples, score.protocol) == (5, 60, "")
    assert RungScore.model_validate_json(score.model_dump_json()) == score


def test_a_report_of_version_0_1_is_read():
    plain = TrialReport.model_validate(OLD_REPORT)
    assert plain.score is None
    assert plain.rows()[5] == {"loss": 1.25, "reward_accuracy": 0.75, "reward_margin": 0.2}
    assert (plain.device_seconds, plain.load) == ({"CPU": 2.0}, {"cpu_utilization_percentage": 50.0})
    at_rung = TrialReport.model_validate({**OLD_REPORT, **OLD_RUNG, "protocol": "p", "grid": "g.png"})
    assert at_rung.score is not None
    assert (at_rung.score.values["fid"], at_rung.score.protocol, at_rung.score.grid) == (2.5, "p", "g.png")
    assert TrialReport.model_validate_json(at_rung.model_dump_json()) == at_rung


def test_the_reports_in_a_checkpoint_of_version_0_1_are_read(tmp_path: Path):
    content = torch.load(from_archive("interrupted-search-0002/checkpoint.pt", tmp_path), weights_only=True)
    reports = [TrialReport.model_validate(report) for report in content["reports"]]
    assert reports
    assert reports[-1].step == content["step"]
    steps = [step for report in reports for step in report.rows()]
    assert steps == list(range(1, content["step"] + 1))


def test_a_report_takes_the_place_of_an_earlier_one():
    early = TrialReport.model_validate(OLD_REPORT)
    late = TrialReport.model_validate({**OLD_REPORT, "step": 6, "history": [[6, 1.0, 1.0, 0.3]]})
    assert list(late.merged_after(early).rows()) == [4, 5, 6]


def test_a_summary_of_version_0_1_is_read(tmp_path: Path):
    old = json.loads(from_archive("finished/summary.json", tmp_path).read_text())
    (row,) = old["sizes"]
    summary = StudySummary.model_validate(old)
    (size,) = summary.sizes
    assert summary.schema_version == 2
    assert (size.size, size.parameters, size.trials) == ("finished", row["params"], row["trials"])
    names = {"base": "base", "guided": "guided", "control": "control", "tuned": "cca"}
    for role, name in names.items():
        model = size.models[role]  # type: ignore[index]  # the test's names are the roles
        assert model.values == {"fid": row[f"fid_{name}"], "inception_score": row[f"inception_score_{name}"]}
        assert model.std["fid"] == row[f"std_{name}"]
    assert size.models["guided"].guidance_scale == row["guidance_scale"]
    assert (size.winner.trial, size.winner.params) == (row["trial"], row["winner"])
    assert [f.trial for f in size.finalists] == [f["trial"] for f in row["finalists"]]
    assert size.mlflow.key == row["mlflow_key"]
    assert StudySummary.model_validate_json(summary.model_dump_json()) == summary


def test_what_is_missing_in_an_old_summary_is_named(tmp_path: Path):
    (row,) = json.loads(from_archive("finished/summary.json", tmp_path).read_text())["sizes"]
    del row["fid_control"]
    with pytest.raises(ValidationError, match="has no fid_control"):
        SizeSummary.model_validate(row)


def test_a_key_that_a_contract_does_not_know_is_an_error():
    new = RungScore.model_validate(OLD_RUNG).model_dump()
    with pytest.raises(ValidationError, match="extra"):
        RungScore.model_validate({**new, "fidd": 1.0})
