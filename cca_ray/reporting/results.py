"""What a study has left in its folder, read without changing anything: `study.db`, `summary.json`, pictures.

Of a study that still runs, or was stopped, it is what there is so far.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
import optuna
from optuna.trial import FrozenTrial

from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.search.records import ArmName, rung_scores
from cca_ray.storage.mirror import exists, folders, pull, reach, snapshot
from cca_ray.storage.uris import is_copy, named

NEEDED = ("family", "params", "guidance_scale", "winner", "trial", "checkpoint", "trials", "finalists")  # of a summary
MODELS = ("base", "guided", "control", "cca")  # that every summary has scores of


@dataclass(frozen=True)
class TrialRow:
    """One trial, as Optuna has it: of the search, of the control, or a replicate."""

    arm: str
    number: int
    state: str  # COMPLETE, PRUNED, FAIL; RUNNING: at work or interrupted; WAITING: planned
    params: dict[str, float]
    rungs: tuple[dict[str, Any], ...]  # step, fid, inception_score, samples, without
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
            tuple(
                {
                    "step": s.step,
                    "samples": s.samples,
                    **s.values,
                    "without": list(zip(*s.without.values(), strict=True)),
                }
                for s in rung_scores(trial)
            ),
            kept.get("seconds", 0.0),
            kept.get("reason", ""),
            ", ".join(sorted(kept.get("device_seconds", {}))),
            trial,
        )

    def last(self, metric: str) -> float:
        """Its score at the last rung that it reached; NaN if it reached none."""
        return float(self.rungs[-1][metric]) if self.rungs else float("nan")

    @property
    def error(self) -> float:
        """Standard error of its last FID, by the jackknife."""
        return jackknife_error(np.array(self.rungs[-1]["without"])[:, 0]) if self.rungs else float("nan")


@dataclass(frozen=True)
class SizeResults:
    """The study of one model size. `summary`: its row of summary.json, once it has finished."""

    name: str
    settings: dict[str, Any]  # the search space as it was resolved, budget and placement left out
    trials: tuple[TrialRow, ...]
    summary: dict[str, Any] | None
    picture: Path | None

    @property
    def row(self) -> dict[str, Any]:
        """Of summary.json; only a finished size has it."""
        assert self.summary is not None
        return self.summary

    @property
    def metric(self) -> str:
        """What the search went by: `fid` or `inception_score`; of both, FID, which also chooses the winner."""
        return "inception_score" if self.settings["search"]["metric"] == "inception_score" else "fid"

    @property
    def high_is_best(self) -> bool:
        return self.metric == "inception_score"

    @property
    def space(self) -> dict[str, dict[str, Any]]:
        """Low, high and log of what was searched; λ and the learning rate first."""
        space: dict[str, dict[str, Any]] = self.settings["search"]["space"]
        first = [name for name in ("lambda", "learning_rate") if name in space]
        return {name: space[name] for name in [*first, *(n for n in space if n not in first)]}

    @property
    def family(self) -> str:
        return str(self.settings["base"]["family"])

    @property
    def protocol(self) -> str:
        """The id of the final scores' protocol."""
        return str(self.settings["files"]["protocol"])

    def of(self, arm: str, *states: str) -> list[TrialRow]:
        return [t for t in self.trials if t.arm == arm and (not states or t.state in states)]

    @cached_property
    def best(self) -> TrialRow | None:
        """The winner; of an unfinished study the best completed trial of the search, by its last rung."""
        searched = self.of("search", "COMPLETE")
        if self.summary:
            return next((t for t in searched if t.number == self.summary["trial"]), None)
        sign = -1 if self.high_is_best else 1
        return min(searched, key=lambda t: (sign * t.last(self.metric), t.number), default=None)

    @property
    def trial_seconds(self) -> float:
        return sum(t.seconds for t in self.trials)


@dataclass(frozen=True)
class StudyResults:
    name: str
    folder: Path
    sizes: tuple[SizeResults, ...]


def read_study(storage: Path, name: str) -> StudyResults:
    """ValueError, in a line, if there is no such study or its files cannot be read."""
    reach(storage)
    if not (exists(storage) if is_copy(storage) else storage.is_dir()):
        raise ValueError(f"{named(storage)}: no such folder; --storage names the one that studies lie in")
    folder, database = storage / name, storage / name / "study.db"
    if not pull(database):
        found = ", ".join(path.name for path in folders(storage) if exists(path / "study.db")) or "none"
        raise ValueError(f"{named(folder)}: no study here; there are: {found}")
    pull(folder / "summary.json")
    rows, arms = read_summary(folder / "summary.json"), read_database(database)
    if lost := [size for size in rows if size not in arms]:
        raise ValueError(f"{database}: has nothing of {', '.join(lost)}, which summary.json tells of")
    order = [*rows, *(size for size in arms if size not in rows)]
    return StudyResults(name, folder, tuple(size_of(folder, size, arms[size], rows.get(size)) for size in order))


def size_of(folder: Path, size: str, arms: dict[str, "Kept"], summary: dict[str, Any] | None) -> SizeResults:
    kept, picture = arms["search"][0], folder / size / "samples.png"
    pull(picture)
    trials = tuple(TrialRow.of(arm, trial) for arm in get_args(ArmName) if arm in arms for trial in arms[arm][1])
    return SizeResults(size, kept["memory"], trials, summary, picture if picture.is_file() else None)


def read_summary(path: Path) -> dict[str, dict[str, Any]]:
    """Its rows by size; none if the file is not there yet."""
    if not path.exists():
        return {}
    try:
        rows = {row["size"]: row for row in json.loads(path.read_text(encoding="utf-8"))["sizes"]}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not a study's summary ({type(error).__name__}: {error})") from None
    needed = (*NEEDED, *(f"{what}_{model}" for what in ("fid", "std", "inception_score") for model in MODELS))
    for size, row in rows.items():
        if missing := [key for key in needed if key not in row]:
            raise ValueError(f"{path}: {size} has no {missing[0]}")
    return rows


Kept = tuple[dict[str, Any], list[FrozenTrial]]  # an Optuna study's own attributes, and its trials


def read_database(path: Path) -> dict[str, dict[str, Kept]]:
    """The Optuna studies by size and arm, from a copy of the file, so that nothing is ever written to it."""
    with TemporaryDirectory(prefix="cca_ray-") as scratch:
        try:
            storage = optuna.storages.RDBStorage(f"sqlite:///{snapshot(path, Path(scratch))}")
            try:
                kept: dict[str, dict[str, Kept]] = {}
                for study in storage.get_all_studies():
                    _, size, arm = study.study_name.rsplit("/", 2)
                    kept.setdefault(size, {})[arm] = (study.user_attrs, storage.get_all_trials(study._study_id))
            finally:
                storage.engine.dispose()
        except Exception as error:  # SQLite's, SQLAlchemy's and Optuna's many kinds
            said = (str(getattr(error, "orig", None) or error).splitlines() or [""])[0]
            raise ValueError(f"{path}: not a readable study ({type(error).__name__}: {said})") from None
    # What was stopped before its first trial has no settings yet.
    return {size: arms for size, arms in kept.items() if "search" in arms and "memory" in arms["search"][0]}
