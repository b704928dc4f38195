"""A trial's checkpoint: model, EMA, optimizer, position and what it has reported; saved whole, resumed exactly.

Pairs and samples are functions of (seed, epoch, index), so no random state needs keeping.  The file is the same
for one worker, DDP and FSDP: a trial may go on with another placement.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from cca_ray.models.files import write_atomically
from cca_ray.models.parallel import Group, Weights, parted, restore, state_of, whole
from cca_ray.storage.mirror import patiently, pull


@dataclass
class Progress:
    """How far a trial is: optimizer steps done, seconds they took, and all that it has reported.

    `device_seconds`: by type of card, of all workers together.
    """

    step: int = 0
    seconds: float = 0.0
    reports: list[dict[str, Any]] = field(default_factory=list)
    device_seconds: dict[str, float] = field(default_factory=dict)

    def spend(self, seconds: float, card: str, devices: float) -> None:
        self.seconds += seconds
        self.device_seconds[card] = self.device_seconds.get(card, 0.0) + seconds * devices

    def add(self, report: dict[str, Any]) -> None:
        """Keep a report. One between rungs becomes part of the next: there are never many."""
        if self.reports and "fid" not in self.reports[-1]:
            report = {**report, "history": self.reports.pop()["history"] + report["history"]}
        self.reports.append(report)


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: Weights | None,
    optimizer: Optimizer,
    progress: Progress,
    settings: str,
    group: Group,
) -> None:
    """All workers gather, the first writes.

    `settings` says which fine-tuning this is; a checkpoint of another one is refused on resume.
    """
    weights, moments = state_of(model, optimizer)
    content = {
        "model": weights,
        "ema": {name: whole(tensor).cpu() for name, tensor in ema.items()} if ema is not None else None,
        "optimizer": moments,
        "step": progress.step,
        "seconds": progress.seconds,
        "reports": progress.reports,
        "device_seconds": progress.device_seconds,
        "settings": settings,
    }
    if group.rank == 0:
        patiently(lambda: write_atomically(content, path))


def resume(path: Path, model: nn.Module, ema: Weights | None, optimizer: Optimizer, settings: str) -> Progress:
    """Restore in place what `save_checkpoint` wrote; from the start if there is no file.

    Raises ValueError, naming the file, if it is damaged or belongs to another fine-tuning.
    """
    if not pull(path):
        return Progress()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found = content["settings"]
        progress = Progress(content["step"], content["seconds"], content["reports"], content["device_seconds"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(
            f"{path}: damaged checkpoint; delete it to start this trial over ({type(error).__name__})"
        ) from None
    if found != settings:
        raise ValueError(f"{path}: belongs to another fine-tuning; delete it, or use another name")
    restore(model, optimizer, (content["model"], content["optimizer"]))
    if ema is not None:
        with torch.no_grad():
            for name, tensor in ema.items():
                tensor.copy_(parted(content["ema"][name], tensor))
    return progress
