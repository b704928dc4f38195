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

from cca_ray.models import write_atomically
from cca_ray.parallel import Group, Weights, parted, restore, state_of, whole


@dataclass
class Progress:
    """How far a trial is: optimizer steps done, and the reports of the rungs it has passed."""

    step: int = 0
    reports: list[dict[str, Any]] = field(default_factory=list)


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
        "reports": progress.reports,
        "settings": settings,
    }
    if group.rank == 0:
        write_atomically(content, path)


def resume(path: Path, model: nn.Module, ema: Weights | None, optimizer: Optimizer, settings: str) -> Progress:
    """Restore in place what `save_checkpoint` wrote; from the start if there is no file.

    Raises ValueError, naming the file, if it is damaged or belongs to another fine-tuning.
    """
    if not path.exists():
        return Progress()
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found, progress = content["settings"], Progress(content["step"], content["reports"])
    except Exception as error:  # torch raises many kinds for a damaged file
        raise ValueError(f"{path}: damaged checkpoint; delete it to start this trial over ({error})") from None
    if found != settings:
        raise ValueError(f"{path}: belongs to another fine-tuning; delete it, or use another name")
    restore(model, optimizer, (content["model"], content["optimizer"]))
    if ema is not None:
        with torch.no_grad():
            for name, tensor in ema.items():
                tensor.copy_(parted(content["ema"][name], tensor))
    return progress
