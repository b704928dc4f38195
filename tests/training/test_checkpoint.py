import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cca_ray.config import Rung, Train
from cca_ray.contracts import TrialReport
from cca_ray.models.parallel import Group, Weights
from cca_ray.storage import mirror
from cca_ray.training import checkpoint
from cca_ray.training.checkpoint import (
    Progress,
    Settings,
    Writer,
    belongs_to,
    on_first,
    read_report,
    resume,
    save_checkpoint,
)

LOGGED = ("loss", "reward_accuracy", "reward_margin")
OF_0_1_0 = {  # a report as version 0.1.0 kept it
    "step": 3, "total_steps": 6, "history": [[2, 0.9, 0.0, 0.0], [3, 0.8, 0.0, 0.0]], "images_per_second": 10.0,
    "accelerator": "CPU", "workers": 1, "micro_batch": 8, "load": [("cpu_utilization_percentage", 50.0)],
    "seconds": 2.5, "device_seconds": [("CPU", 2.5)], "fid": 1.5, "without": [[1.4, 2.0], [1.6, 2.1]],
    "inception_score": 2.0, "samples": 40, "protocol": "abc", "grid": "grid.png", "scoring_seconds": 0.5,
}  # fmt: skip


def settings(**train: object) -> Settings:
    rungs = (Rung(at=1.0, samples=40),)
    return Settings(
        train=Train.model_validate(train), base="b", tokens="t", rungs=rungs, protocol="p", precision="auto"
    )


def trained(steps: int) -> tuple[nn.Linear, Weights, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model, ema = nn.Linear(3, 3), {"weight": torch.full((3, 3), float(steps))}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    step(model, optimizer, steps)
    return model, ema, optimizer


def step(model: nn.Linear, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()


def save(path: Path) -> None:
    with Writer() as writer:
        save_checkpoint(path, *trained(1), Progress(1), settings(), Group(), writer)
        writer.wait()


def test_what_is_trained_while_a_checkpoint_is_written_is_not_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    go, write = threading.Event(), checkpoint.write_atomically

    def slowly(*arguments: Any) -> None:
        assert go.wait(60)
        write(*arguments)

    monkeypatch.setattr(checkpoint, "write_atomically", slowly)
    path, (model, ema, optimizer) = tmp_path / "checkpoint.pt", trained(3)
    with Writer() as writer:
        save_checkpoint(path, model, ema, optimizer, Progress(3), settings(), Group(), writer)
        step(model, optimizer, 2)
        ema["weight"].zero_()
        assert not path.exists()
        go.set()
    again, again_ema, again_optimizer = trained(0)
    assert resume(path, again, again_ema, again_optimizer, settings(), LOGGED).step == 3
    assert torch.equal(again_ema["weight"], torch.full((3, 3), 3.0))
    step(again, again_optimizer, 2)
    assert torch.equal(model.weight, again.weight)


def test_only_the_first_worker_copies_the_mean_weights(monkeypatch: pytest.MonkeyPatch):
    gathered = list[torch.Tensor]()

    def whole(tensor: torch.Tensor) -> torch.Tensor:
        gathered.append(tensor)
        return tensor

    monkeypatch.setattr(checkpoint, "whole", whole)
    ema = {"a": torch.ones(3), "b": torch.zeros(2)}
    assert on_first(ema, Group(1, 2, torch.device("cpu"))) == {}
    assert list(on_first(ema, Group(0, 2, torch.device("cpu")))) == ["a", "b"]
    assert len(gathered) == 4


def test_a_checkpoint_that_could_not_be_written_is_an_error_of_the_next_call(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mirror, "PATIENCE_S", ())
    nowhere = Path("/proc/none/checkpoint.pt")
    with Writer() as writer:
        writer.write({}, nowhere)
        with pytest.raises(OSError, match="none"):
            writer.write({}, nowhere)
        writer.wait()
        writer.write({}, nowhere)  # and is none of its own where another error ends the training


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    model, ema, optimizer = trained(3)
    report = TrialReport.model_validate(OF_0_1_0)
    with Writer() as writer:
        save_checkpoint(path, model, ema, optimizer, Progress(3, 2.5, [report]), settings(), Group(), writer)
    again, again_ema, again_optimizer = trained(0)
    progress = resume(path, again, again_ema, again_optimizer, settings(), LOGGED)
    assert (progress.step, progress.seconds, progress.reports) == (3, 2.5, [report])
    step(model, optimizer, 2)
    step(again, again_optimizer, 2)
    assert torch.equal(model.weight, again.weight)
    assert torch.equal(ema["weight"], again_ema["weight"])


def test_without_a_checkpoint_a_run_begins(tmp_path: Path):
    assert resume(tmp_path / "none.pt", *trained(0), settings(), LOGGED).step == 0


def test_a_checkpoint_of_another_fine_tuning_is_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save(path)
    with pytest.raises(ValueError, match=r"checkpoint\.pt: belongs to another fine-tuning"):
        resume(path, *trained(0), settings(seed=1), LOGGED)


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save(path)
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: damaged checkpoint"):
        resume(path, *trained(0), settings(), LOGGED)


def test_a_report_between_rungs_becomes_part_of_the_next():
    at_rung = TrialReport.model_validate(OF_0_1_0)
    between = at_rung.model_copy(update={"score": None, "history": ((1.0, 1.0, 0.0, 0.0),)})
    progress = Progress()
    for report in (between, at_rung, between):
        progress.add(report)
    assert [len(report.history) for report in progress.reports] == [3, 1]
    assert [report.score is None for report in progress.reports] == [False, True]


def test_of_an_earlier_versions_report_only_what_the_objective_logs_is_kept():
    assert read_report(OF_0_1_0, LOGGED).rows()[3] == dict(zip(LOGGED, (0.8, 0.0, 0.0), strict=True))
    report = read_report(OF_0_1_0, ("loss",))
    assert (report.logged, report.rows()) == (("loss",), {2: {"loss": 0.9}, 3: {"loss": 0.8}})


def test_a_checkpoint_of_version_0_1_0_is_taken_up():
    """It wrote the parameters of all objectives, and no reference."""
    now = settings(objective="finetune", reference="live")
    before = json.loads(now.model_dump_json())
    before["train"] = {**before["train"], "lambda": 3.0, "beta": 0.1}
    del before["train"]["reference"]
    before["rungs"] = [{"samples": 40, "keep": None, "at": 1.0}]
    assert belongs_to(json.dumps(before), now)
    before["train"]["learning_rate"] = 0.5
    assert not belongs_to(json.dumps(before), now)
    assert not belongs_to(json.dumps({**before, "train": {"objective": "gone"}}), now)
