"""What a study of one size tells of its trials as they happen, and to whom: `Listener`, and what it is given."""

from collections.abc import Mapping
from dataclasses import dataclass

from cca_ray.config import Train
from cca_ray.contracts import Prospect, RungScore, TrialReport
from cca_ray.search.records import ArmName, readable


@dataclass(frozen=True)
class TrialInfo:
    """A trial: what does not change while it runs."""

    size: str
    arm: ArmName
    number: int  # from 0, as in Optuna
    planned: int  # trials of its arm
    key: str  # of its folder and, below the size's, of its MLflow run
    params: Mapping[str, float]
    train: Train

    @property
    def name(self) -> str:
        """`014 λ=3.1 lr=2.0e-03`, and what it is if it is no trial of the search."""
        return ("" if self.arm == "search" else f"{self.arm} ") + f"{self.number:03} {readable(self.params)}"

    @property
    def label(self) -> str:
        """How a line about it begins."""
        return f"{self.size}  {self.arm} #{self.number}  {readable(self.params)}"


@dataclass(frozen=True)
class Place:
    """Where a trial runs."""

    accelerator: str  # type of card, or CPU
    workers: int
    micro_batch: int

    @staticmethod
    def of(report: TrialReport) -> "Place":
        return Place(report.accelerator, report.workers, report.micro_batch)


@dataclass(frozen=True)
class RungOutcome:
    """What follows from a trial's score at a rung. `best`: at the last rung, of `metric`, the best of all so far."""

    score: RungScore
    total_steps: int
    goes_on: bool
    metric: str  # by which lines speak of it
    best: float | None = None


@dataclass(frozen=True)
class TrialEnd:
    """`state`: as in Optuna, or INTERRUPTED: then the next run of the command takes the trial up again."""

    state: str
    reason: str = ""


class Listener:
    """Who is told. Each does what it needs to and leaves the rest as it is here.

    An OSError stops the study, which can be continued.
    """

    def on_trial_start(self, trial: TrialInfo) -> None:
        """It was proposed, or taken up again."""

    def on_trial_result(self, trial: TrialInfo, report: TrialReport) -> None:
        """Before Optuna keeps a score that is in the report. The same may come again, as after a resume."""

    def on_trial_move(self, trial: TrialInfo, before: Place | None, now: Place) -> None:
        """It began to run somewhere, or now does so elsewhere or with another micro-batch."""

    def on_rung(self, trial: TrialInfo, outcome: RungOutcome) -> None:
        """Optuna has its score. Comes once a rung."""

    def on_trial_hang(self, trial: TrialInfo, seconds: float, what: str) -> None:
        """It gave no sign of life for so long; what is done about it."""

    def on_trial_complete(self, trial: TrialInfo, end: TrialEnd) -> None:
        """It ended, in whatever state; Optuna knows."""

    def on_budget_end(self, size: str, kept_seconds: float) -> None:
        """No further trial is begun. So much is kept for what comes after: replicates and the final comparison."""

    def on_enough(self, size: str, prospect: Prospect) -> None:
        """No further trial is begun, because one would bring too little."""

    def on_halt(self, size: str, running: int) -> None:
        """The study stops, by someone's wish or a fault; so many trials write their checkpoints."""

    def on_write(self) -> None:
        """Optuna's storage has changed."""

    def attributes(self, trial: TrialInfo) -> Mapping[str, str]:
        """What Optuna shall keep of a trial that ends, besides its own."""
        return {}
