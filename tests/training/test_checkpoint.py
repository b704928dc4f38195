from pathlib import Path

import pytest
import torch
from torch import nn

from cca_ray.models.parallel import Group, Weights
from cca_ray.training.checkpoint import Progress, resume, save_checkpoint


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


def test_a_resumed_run_goes_on_as_if_nothing_had_happened(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    model, ema, optimizer = trained(3)
    save_checkpoint(path, model, ema, optimizer, Progress(3, 2.5, [{"step": 3, "fid": 1.5}]), "settings", Group())
    again, again_ema, again_optimizer = trained(0)
    progress = resume(path, again, again_ema, again_optimizer, "settings")
    assert (progress.step, progress.seconds, progress.reports) == (3, 2.5, [{"step": 3, "fid": 1.5}])
    step(model, optimizer, 2)
    step(again, again_optimizer, 2)
    assert torch.equal(model.weight, again.weight)
    assert torch.equal(ema["weight"], again_ema["weight"])


def test_without_a_checkpoint_a_run_begins(tmp_path: Path):
    assert resume(tmp_path / "none.pt", *trained(0), "settings").step == 0


def test_a_checkpoint_of_another_fine_tuning_is_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, *trained(1), Progress(1), "settings", Group())
    with pytest.raises(ValueError, match=r"checkpoint\.pt: belongs to another fine-tuning"):
        resume(path, *trained(0), "other settings")


def test_a_damaged_checkpoint_is_refused(tmp_path: Path):
    path = tmp_path / "checkpoint.pt"
    save_checkpoint(path, *trained(1), Progress(1), "settings", Group())
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match=r"checkpoint\.pt: damaged checkpoint"):
        resume(path, *trained(0), "settings")
