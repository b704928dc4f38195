"""How a study stands at a moment, as plain values: for the live view, and in `status.json` for `status`.

Light on imports; `snapshot_of` makes them from a ledger.
"""

import os
import socket
import time
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from cca_ray.contracts import MetricInfo, Prospect

STATUS = "status.json"  # in a study's folder, while it runs
COMPARING = "final comparison"  # a phase


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class AtWork(Frozen):
    """A trial that runs, as of its last report."""

    arm: str
    number: int  # from 0, as in Optuna
    trials: int  # of its arm
    settings: str  # for people
    step: int
    total: int  # steps; 0 before the first report
    images_per_second: float
    values: dict[str, float]  # by metric, at the last rung that it has passed; empty before
    accelerator: str  # type of card; empty before the first report
    workers: int
    seconds_left: float | None  # as of `reported`; None before the first report
    reported: float  # Unix time

    def left(self, now: float) -> float | None:
        """Seconds, at this time."""
        return None if self.seconds_left is None else max(0.0, self.seconds_left - (now - self.reported))


class Best(Frozen):
    """The best completed trial of a size, by the score of its last rung: of the search, while that is at work.

    After it they are the control's, or the replicates.
    """

    arm: str = "search"
    number: int
    settings: str
    values: dict[str, float]  # by metric


class SizeSnapshot(Frozen):
    """How the study of one size stands."""

    size: str
    phase: str  # search, replicates, final comparison
    metric: MetricInfo  # that is shown: the first that the search goes by
    planned: int  # trials of all arms
    ended: dict[str, int]  # by state, as in Optuna
    arms: dict[str, tuple[int, int]] = {}  # by arm, how many trials have ended, of how many
    at_work: tuple[AtWork, ...]
    best: Best | None
    prospect: Prospect | None = None  # of another trial of the search; None before there are a few
    seconds_left: float | None  # as of `at`; None where nothing can be said yet
    at: float  # Unix time

    def left(self, now: float) -> float | None:
        """Seconds, at this time."""
        return None if self.seconds_left is None else max(0.0, self.seconds_left - (now - self.at))


class DriverStatus(Frozen):
    """What the driver of a study tells of itself, every few seconds."""

    study: str
    sizes: tuple[str, ...]  # in the order in which they run
    process: int
    host: str
    started: float  # Unix time, as `at`
    at: float
    log: str
    browse: str = ""  # how to look into MLflow
    mlflow: str = ""  # what is amiss with it
    cluster: dict[str, tuple[float, float]] = {}  # CPU, GPU: in use, in all
    doing: dict[str, tuple[str, float]] = {}  # by size, what comes before its first trial, and since when
    snapshots: tuple[SizeSnapshot, ...] = ()  # of the sizes at work, from their first trial on
    failed: dict[str, str] = {}  # by size, what ended it

    @staticmethod
    def of_this_process(study: str, sizes: tuple[str, ...], log: Path) -> "DriverStatus":
        now = time.time()
        return DriverStatus(
            study=study, sizes=sizes, process=os.getpid(), host=socket.gethostname(), started=now, at=now,
            log=str(log),
        )  # fmt: skip

    def of(self, size: str) -> SizeSnapshot | None:
        """How this size stands; None if it is not at work."""
        return next((snapshot for snapshot in self.snapshots if snapshot.size == size), None)

    def write(self, folder: Path) -> None:
        """Raises OSError, and leaves what was there before."""
        partial = folder / f"{STATUS}.partial"
        try:
            partial.write_text(self.model_dump_json(indent=1), encoding="utf-8")
            partial.replace(folder / STATUS)
        except OSError:
            partial.unlink(missing_ok=True)
            raise


def read_driver_status(folder: Path) -> DriverStatus | None:
    """None if there is none, or none that can be read. It may be that of a driver that was killed."""
    try:
        return DriverStatus.model_validate_json((folder / STATUS).read_bytes())
    except (OSError, ValueError):
        return None
