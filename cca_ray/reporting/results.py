"""What a study has left in its folder, read without changing anything: `study.db`, `summary.json`, pictures.

Of a study that still runs, or was stopped, it is what there is so far.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import optuna
from optuna.trial import FrozenTrial
from pydantic import ValidationError

from cca_ray.contracts import (
    FID,
    INCEPTION_SCORE,
    OLD_OBJECTIVES,
    ROLES,
    MetricInfo,
    Role,
    RungScore,
    SizeSummary,
    StudySummary,
)
from cca_ray.errors import first_line, reading, reason
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.reporting.asked import Asked, read_asked
from cca_ray.reporting.settings import Bounds, Settings
from cca_ray.search.accounts import COUNTED, counted, seconds_of_size
from cca_ray.search.learning import LEARNT, Learnt
from cca_ray.search.records import METRICS, PARAMETERS, ArmName, rung_scores
from cca_ray.storage.mirror import exists, folders, pull, reach, snapshot
from cca_ray.storage.uris import database_uri, is_copy, to_uri
from cca_ray.verdict import best_of


@dataclass(frozen=True)
class TrialRow:
    """One trial, as Optuna has it: of the search, of the control, or a replicate."""

    arm: str
    number: int
    state: str  # COMPLETE, PRUNED, FAIL; RUNNING: at work or interrupted; WAITING: planned
    params: dict[str, float]
    rungs: tuple[RungScore, ...]
    seconds: float
    reason: str
    accelerators: str  # the types of cards that it ran on
    frozen: FrozenTrial

    @staticmethod
    def of(arm: str, trial: FrozenTrial) -> "TrialRow":
        kept = trial.user_attrs
        return TrialRow(
            arm,
            trial.number,
            trial.state.name,
            dict(trial.params),
            rung_scores(trial),
            kept.get("seconds", 0.0),
            kept.get("reason", ""),
            ", ".join(sorted(kept.get("device_seconds", {}))),
            trial,
        )

    @property
    def name(self) -> str:
        """Of all trials of a size it alone has it: `search-12`."""
        return f"{self.arm}-{self.number}"

    def last(self, metric: MetricInfo) -> float:
        """Its score at the last rung that it reached; NaN if it reached none."""
        return self.rungs[-1].values[metric.name] if self.rungs else float("nan")

    def error(self, metric: MetricInfo) -> float:
        """Standard error of its last score; NaN if it has none."""
        return error_of(self.rungs[-1], metric) if self.rungs else float("nan")


def error_of(rung: RungScore, metric: MetricInfo) -> float:
    """Standard error of a score, by the jackknife; NaN where the metric has none."""
    without = rung.without.get(metric.name, ())
    return jackknife_error(np.array(without)) if without else float("nan")


@dataclass(frozen=True)
class SizeResults:
    """The study of one model size. `summary`: its row of summary.json, once it has finished.

    `metrics`: all that were measured.
    """

    name: str
    settings: Settings
    metrics: tuple[MetricInfo, ...]
    trials: tuple[TrialRow, ...]
    summary: SizeSummary | None
    picture: Path | None  # of the models that were compared, all in one
    pictures: Mapping[Role, Path]  # one a model; of earlier versions there are none
    seconds: float  # of wall time, over all runs so far
    finished_at: int | None  # `counted` trials when it was finished; None before
    id: str  # tells the study from another of its name; empty before it has begun
    parameters: int | None  # of the model; None of an unfinished study of version 0.1.0
    learnt: Learnt  # from earlier studies, at its start

    @cached_property
    def searched(self) -> tuple[MetricInfo, ...]:
        """What the search went by."""
        by_name = {metric.name: metric for metric in self.metrics}
        return tuple(by_name[name] for name in self.settings.search.metric if name in by_name)

    @property
    def metric(self) -> MetricInfo:
        """The first of these: figures of the search show it."""
        return self.searched[0]

    @property
    def objective(self) -> str:
        """As people write it."""
        name = self.settings.train.objective
        return self.summary.objective_label if self.summary else label_of(name)

    @cached_property
    def space(self) -> dict[str, Bounds]:
        """What was searched, λ and the learning rate first."""
        space = self.settings.search.space
        first = [name for name in ("lambda", "learning_rate") if name in space]
        return {name: space[name] for name in [*first, *(n for n in space if n not in first)]}

    @property
    def family(self) -> str:
        return self.settings.base.family

    @property
    def protocol(self) -> str:
        """The id of the final scores' protocol."""
        return self.settings.files.protocol

    def of(self, arm: str, *states: str) -> list[TrialRow]:
        return [t for t in self.trials if t.arm == arm and (not states or t.state in states)]

    @cached_property
    def finished(self) -> bool:
        """Whether it has ended, and no trial was begun since. Version 0.1.0 did not keep how many there were then."""
        begun = Counter(trial.arm for trial in self.trials if trial.state != "WAITING")
        now = counted(begun, len(self.settings.control.learning_rates))
        return self.summary is not None and self.finished_at in (None, now)

    @cached_property
    def best(self) -> TrialRow | None:
        """The winner; of an unfinished study the best completed trial of the search, by its last rung."""
        completed = {t.number: t for t in self.of("search", "COMPLETE")}
        if self.summary:
            return completed.get(self.summary.winner.trial)
        best = best_of({number: t.rungs[-1] for number, t in completed.items()}, self.metric)
        return None if best is None else completed[best]

    @property
    def trial_seconds(self) -> float:
        return sum(t.seconds for t in self.trials)


def picture_of(role: Role) -> str:
    """The file, in a size's folder, of a model's samples."""
    return f"samples-{role}.png"


def label_of(objective: str) -> str:
    """Of an objective that no summary tells of: as people write it, if version 0.1.0 had it."""
    return OLD_OBJECTIVES.get(objective, objective)


@dataclass(frozen=True)
class StudyResults:
    name: str
    folder: Path
    sizes: tuple[SizeResults, ...]
    asked: Asked = field(default_factory=Asked)  # nothing, of earlier versions

    @property
    def not_begun(self) -> list[str]:
        """Names of the sizes that were asked for and have left nothing yet."""
        begun = {size.name for size in self.sizes}
        return [name for name in self.asked.sizes if name not in begun]

    @property
    def summaries(self) -> list[SizeSummary]:
        """Of the sizes that have finished."""
        return [size.summary for size in self.sizes if size.summary]


def studies_in(storage: Path) -> list[str]:
    """The names of all that have begun. ValueError, in a line, if there is no such storage."""
    reach(storage)
    if not (exists(storage) if is_copy(storage) else storage.is_dir()):
        raise ValueError(f"{to_uri(storage)}: no such folder; --storage must name the folder that contains the studies")
    return [path.name for path in folders(storage) if exists(path / "study.db")]


def read_study(storage: Path, name: str) -> StudyResults:
    """ValueError, in a line, if there is no such study or its files cannot be read."""
    reach(storage)
    if not (exists(storage) if is_copy(storage) else storage.is_dir()):
        raise ValueError(f"{to_uri(storage)}: no such folder; --storage must name the folder that contains the studies")
    folder, database = storage / name, storage / name / "study.db"
    if not pull(database):
        found = studies_in(storage)
        near = get_close_matches(name, found, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"{to_uri(folder)}: no study here; there are: {', '.join(found) or 'none'}{meant}")
    pull(folder / "summary.json")
    rows = {row.size: row for row in read_summary(folder / "summary.json").sizes}
    arms = read_database(database)
    if lost := [size for size in rows if size not in arms]:
        raise ValueError(f"{database}: has nothing of {', '.join(lost)}, which summary.json lists")
    order = [*rows, *(size for size in arms if size not in rows)]
    sizes = tuple(size_of(folder, size, arms[size], rows.get(size)) for size in order)
    return StudyResults(name, folder, sizes, read_asked(folder))


def size_of(folder: Path, size: str, arms: dict[str, "Kept"], summary: SizeSummary | None) -> SizeResults:
    kept, picture = arms["search"].attributes, folder / size / "samples.png"
    pull(picture)
    pictures = {role: path for role in ROLES if pull(path := folder / size / picture_of(role))} if summary else {}
    trials = tuple(TrialRow.of(arm, trial) for arm in get_args(ArmName) if arm in arms for trial in arms[arm].trials)
    settings = Settings.model_validate(kept["memory"])
    if summary and summary.objective != (name := settings.train.objective):  # version 0.1.0's rows say nothing of it
        summary = summary.model_copy(update={"objective": name, "objective_label": label_of(name)})
    metrics: tuple[MetricInfo, ...] = (FID, INCEPTION_SCORE)
    if METRICS in kept:
        metrics = tuple(map(MetricInfo.model_validate, kept[METRICS]))
    elif summary:
        metrics = summary.metrics
    accounts = arms["control"].attributes if "control" in arms else {}
    seconds, finished_at = seconds_of_size(accounts), accounts.get(COUNTED)
    shown = picture if picture.is_file() else None
    return SizeResults(
        size,
        settings,
        metrics,
        trials,
        summary,
        shown,
        pictures,
        seconds,
        finished_at,
        accounts.get("id", ""),
        summary.parameters if summary else kept.get(PARAMETERS),
        Learnt.of(arms[LEARNT].attributes) if LEARNT in arms else Learnt(),
    )


def read_summary(path: Path) -> StudySummary:
    """Of no sizes if the file is not there yet. ValueError, in a line, if it cannot be read.

    The winners are where the file is: a storage may have moved since.
    """
    if not path.exists():
        return StudySummary(sizes=())
    with reading(path, "not a study's summary"):
        content = json.loads(path.read_text(encoding="utf-8"))
    try:
        summary = StudySummary.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = "" if first["type"] == "value_error" else f"{'.'.join(map(str, first['loc']))}: "  # ours name the size
        raise ValueError(f"{path}: {where}{reason(error)}") from None
    folder = path.resolve().parent
    return StudySummary(
        sizes=tuple(
            size.model_copy(update={"checkpoint": to_uri(folder / size.size / "winner.pt")}) for size in summary.sizes
        )
    )


@dataclass(frozen=True)
class Kept:
    """An Optuna study's own attributes, and its trials."""

    attributes: Mapping[str, Any]  # JSON; `Settings` and `MetricInfo` read what is in it
    trials: tuple[FrozenTrial, ...]


def read_database(path: Path) -> dict[str, dict[str, Kept]]:
    """The Optuna studies by size and arm, from a copy of the file, so that nothing is ever written to it.

    Beside the arms is, of a size that learnt from earlier studies, what it keeps of that, without their trials.
    """
    with TemporaryDirectory(prefix="cca_ray-") as scratch:
        try:
            storage = optuna.storages.RDBStorage(database_uri(snapshot(path, Path(scratch))))
            try:
                kept: dict[str, dict[str, Kept]] = {}
                for name in optuna.get_all_study_names(storage):
                    _, size, arm = name.rsplit("/", 2)
                    study = optuna.load_study(study_name=name, storage=storage)
                    trials = () if arm == LEARNT else tuple(study.get_trials(deepcopy=False))  # they are of others
                    kept.setdefault(size, {})[arm] = Kept(study.user_attrs, trials)
            finally:
                storage.engine.dispose()
        except Exception as error:  # SQLite's, SQLAlchemy's and Optuna's many kinds
            said = first_line(getattr(error, "orig", None) or error)
            raise ValueError(f"{path}: not a readable study ({type(error).__name__}: {said})") from None
    # What was stopped before its first trial has no settings yet.
    return {size: arms for size, arms in kept.items() if "search" in arms and "memory" in arms["search"].attributes}
