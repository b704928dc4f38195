"""A trial's checkpoint: model, EMA, optimizer, position and what it has reported; saved whole, resumed exactly.

Pairs and samples are functions of (seed, epoch, index), so no random state needs keeping.  The file is the same
for one worker, DDP and FSDP: a trial may go on with another placement.
"""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from pydantic import ValidationError, field_validator
from torch import nn
from torch.optim import Optimizer

from cca_ray.config import Rung, TokenOrder, Train, without_others
from cca_ray.contracts import Contract, TrialReport
from cca_ray.errors import reading
from cca_ray.models.files import write_atomically
from cca_ray.models.parallel import Group, Weights, parted, restore, state_of, whole
from cca_ray.storage.mirror import patiently, pull


class Settings(Contract):
    """Everything that a checkpoint's weights and scores depend on, so that no other run is ever resumed from it."""

    train: Train
    base: str  # digests, as the next
    tokens: str
    rungs: tuple[Rung, ...]
    protocol: str  # its id, whatever the number of samples
    precision: str
    order: TokenOrder = "raster"  # of an image's tokens

    @field_validator("train", mode="before")
    @classmethod
    def of_version_0_1(cls, train: Any) -> Any:
        """It had the parameters of all objectives."""
        return without_others(train) if isinstance(train, Mapping) else train

    @field_validator("train")
    @classmethod
    def either_reference(cls, train: Train) -> Train:
        """A table and a second model say the same."""
        return train.model_copy(update={"reference": Train.model_fields["reference"].default})


@dataclass
class Progress:
    """How far a trial is: optimizer steps done, seconds they took, and all that it has reported.

    `device_seconds`: by type of card, of all workers together. `since`: when seconds were last counted.
    """

    step: int = 0
    seconds: float = 0.0
    reports: list[TrialReport] = field(default_factory=list)
    device_seconds: dict[str, float] = field(default_factory=dict)
    since: float = field(default_factory=time.monotonic)

    def come_to(self, step: int, card: str, devices: float) -> None:
        """Count the seconds since the last time."""
        seconds, self.since, self.step = (now := time.monotonic()) - self.since, now, step
        self.seconds += seconds
        self.device_seconds[card] = self.device_seconds.get(card, 0.0) + seconds * devices

    @property
    def scored(self) -> bool:
        """Whether the last that was reported is a score, and of this step."""
        return bool(self.reports) and self.reports[-1].score is not None and self.reports[-1].step == self.step

    def add(self, report: TrialReport) -> None:
        """Keep a report. One between rungs becomes part of the next: there are never many."""
        if self.reports and self.reports[-1].score is None:
            report = report.merged_after(self.reports.pop())
        self.reports.append(report)

    def replace(self, report: TrialReport) -> None:
        """The last report, which was kept without its score, now with it; its history is as it was kept."""
        assert self.reports[-1].step == report.step
        self.reports[-1] = report.model_copy(update={"history": self.reports[-1].history})


def read_report(content: Mapping[str, Any], logged: tuple[str, ...]) -> TrialReport:
    """With these columns: version 0.1.0 wrote rewards of objectives that have none, too."""
    report = TrialReport.model_validate(content)
    rows = tuple((step, *(row[name] for name in logged)) for step, row in report.rows().items())
    return report.model_copy(update={"logged": logged, "history": rows})


def on_first(weights: Weights, group: Group) -> Weights:
    """All of them, on the first worker's CPU: every worker gathers, but holds one at a time."""
    found = Weights()
    for name, tensor in weights.items():
        gathered = whole(tensor)
        if group.rank == 0:
            found[name] = gathered.cpu()
    return found


class Writer:
    """Writes a worker's checkpoints beside its training, one after the other. An error is that of the next call.

    `seconds`: what the last one took. Who leaves the context waits until the last one is written, or has failed.
    """

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)
        self.writing: Future[float] | None = None
        self.seconds = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.pool.shutdown()

    def write(self, content: Mapping[str, object], path: Path) -> None:
        """Once the one before is written. OSError if that failed."""
        self.wait()
        self.writing = self.pool.submit(self.timed, content, path)

    def timed(self, content: Mapping[str, object], path: Path) -> float:
        start = time.monotonic()
        patiently(lambda: write_atomically(content, path))
        return time.monotonic() - start

    def wait(self) -> None:
        """Until all is written. OSError if something was not."""
        if self.writing is not None:
            writing, self.writing = self.writing, None
            self.seconds = writing.result()


def save_checkpoint(
    path: Path,
    model: nn.Module,
    ema: Weights | None,
    optimizer: Optimizer,
    progress: Progress,
    settings: Settings,
    group: Group,
    writer: Writer,
) -> None:
    """All workers gather; the first writes, while all train on."""
    weights, moments = state_of(model, optimizer)
    content = {
        "model": weights,
        "ema": on_first(ema, group) if ema is not None else None,
        "optimizer": moments,
        "step": progress.step,
        "seconds": progress.seconds,
        "reports": [report.model_dump() for report in progress.reports],
        "device_seconds": progress.device_seconds,
        "settings": settings.model_dump_json(),
    }
    if group.rank == 0:
        # What is on a CPU is not copied to it: training must not change it any more.
        writer.write(deepcopy(content) if group.device.type == "cpu" else content, path)


def belongs_to(found: str, settings: Settings) -> bool:
    """Whether a checkpoint with these settings is of this fine-tuning."""
    try:
        return Settings.model_validate_json(found) == settings
    except ValidationError:  # of an objective that is not there, or of another version
        return False


def resume(
    path: Path,
    model: nn.Module,
    ema: Weights | None,
    optimizer: Optimizer,
    settings: Settings,
    logged: tuple[str, ...],
) -> Progress:
    """Restore in place what `save_checkpoint` wrote; from the start if there is no file. `logged`: by the objective.

    Raises ValueError, naming the file, if it is damaged or belongs to another fine-tuning.
    """
    if not pull(path):
        return Progress()
    with reading(path, "damaged checkpoint; delete it to start this trial over"):
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        same = belongs_to(content["settings"], settings)
        reports = [read_report(report, logged) for report in content["reports"]] if same else []
        progress = Progress(content["step"], content["seconds"], reports, content["device_seconds"])
    if not same:
        raise ValueError(f"{path}: belongs to another fine-tuning; delete it, or use another name (of train: --out)")
    restore(model, optimizer, (content["model"], content["optimizer"]))
    if ema is not None:
        with torch.no_grad():
            for name, tensor in ema.items():
                tensor.copy_(parted(content["ema"][name], tensor))
    return progress
