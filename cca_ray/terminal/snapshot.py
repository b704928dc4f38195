"""How a study stands at a moment, as plain values: for the live view, and in `status.json` for `status`."""

import os
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel, ConfigDict, ValidationError

from cca_ray.search.ledger import Ledger, Running, marks_of
from cca_ray.search.records import ENDED, readable

STATUS = "status.json"  # in a study's folder, while it runs
COMPARING = "final comparison"
PHASES = {"control": "search", "search": "search", "replicate": "replicates"}


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
    fid: float | None  # at the last rung that it has passed
    accelerator: str  # type of card; empty before the first report
    workers: int
    seconds_left: float | None  # as of `reported`; None before the first report
    reported: float  # Unix time

    def left(self, now: float) -> float | None:
        """Seconds, at this time."""
        return None if self.seconds_left is None else max(0.0, self.seconds_left - (now - self.reported))


class Best(Frozen):
    """The best completed trial of a size, by the score of its last rung."""

    number: int
    settings: str
    fid: float
    inception_score: float


class Standing(Frozen):
    """How the study of one size stands."""

    size: str
    phase: str  # search, replicates, final comparison
    planned: int  # trials of all arms
    ended: dict[str, int]  # by state, as in Optuna
    at_work: tuple[AtWork, ...]
    best: Best | None
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
    standings: tuple[Standing, ...] = ()  # of the sizes at work, from their first trial on

    @staticmethod
    def of_this_process(study: str, sizes: tuple[str, ...], log: Path) -> "DriverStatus":
        now = time.time()
        return DriverStatus(
            study=study, sizes=sizes, process=os.getpid(), host=socket.gethostname(), started=now, at=now,
            log=str(log),
        )  # fmt: skip

    def of(self, size: str) -> Standing | None:
        """How this size stands; None if it is not at work."""
        return next((standing for standing in self.standings if standing.size == size), None)

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
        return DriverStatus.model_validate_json((folder / STATUS).read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        return None


def standing_of(ledger: Ledger, before: Standing | None = None) -> Standing:
    """Of a study at this moment. `before`: how it stood since which no trial began or ended; spares the storage."""
    at_work = tuple(at_work_of(running) for running in ledger.running.values())
    if before is not None:
        return before.model_copy(update={"at_work": at_work})
    trials = [arm.ended(*ENDED, TrialState.RUNNING) for arm in ledger.arms]
    states = Counter(trial.state for of_arm in trials for trial in of_arm)
    planned, ended = sum(arm.trials for arm in ledger.arms), sum(states[state] for state in ENDED)
    comparing = not at_work and (ended >= planned or (ledger.used_up and not states[TrialState.RUNNING]))
    return Standing(
        size=ledger.config.name,
        phase=COMPARING if comparing else PHASES[ledger.arms[-1].name],
        planned=planned,
        ended={state.name: states[state] for state in ENDED if states[state]},
        at_work=at_work,
        best=best_of(trials[-1], ledger.config.search.metrics[0]),
        seconds_left=None if comparing else seconds_left(ledger, [t for of_arm in trials for t in of_arm], at_work),
        at=time.time(),
    )


def at_work_of(running: Running) -> AtWork:
    accelerator, workers, _ = running.where or ("", 0, 0)
    pace = running.seconds / running.step if running.step else None  # a step, what scoring takes included
    return AtWork(
        arm=running.arm.name,
        number=running.trial.number,
        trials=running.arm.trials,
        settings=readable(running.trial.params),
        step=running.step,
        total=running.total,
        images_per_second=running.images_per_second,
        fid=running.fid,
        accelerator=accelerator,
        workers=workers,
        seconds_left=None if pace is None else pace * (running.total - running.step),
        reported=running.reported,
    )


def best_of(trials: Sequence[FrozenTrial], metric: str) -> Best | None:
    """Of those that are complete."""

    def cost(mark: Mapping[str, float]) -> float:
        return -mark["inception_score"] if metric == "inception_score" else mark["fid"]

    scored = [(marks_of(trial)[-1], trial) for trial in trials if trial.state == TrialState.COMPLETE]
    if not scored:
        return None
    mark, trial = min(scored, key=lambda pair: (cost(pair[0]), pair[1].number))
    settings = readable(trial.params)
    return Best(number=trial.number, settings=settings, fid=mark["fid"], inception_score=mark["inception_score"])


def seconds_left(ledger: Ledger, trials: Sequence[FrozenTrial], at_work: Sequence[AtWork]) -> float | None:
    """Until the size is done, if trials take as long as those that have ended; None as long as there are none."""
    took = [trial.user_attrs.get("seconds", 0.0) for trial in trials if trial.state in ENDED]
    if not any(took):
        return None
    mean = sum(took) / len(took)
    waiting = 0 if ledger.used_up else sum(arm.trials for arm in ledger.arms) - len(trials)
    busy = sum(mean if trial.seconds_left is None else trial.seconds_left for trial in at_work)
    left = (busy + mean * max(0, waiting)) / max(1, len(at_work)) + ledger.final_seconds()
    limit = ledger.limits.seconds - (time.monotonic() - ledger.limits.started)
    return max(0.0, min(left, limit))
