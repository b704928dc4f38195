"""Ledgers with listeners, and reports for them, as several tests need them: real Optuna storage, no Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import optuna

from cca_ray.config import StudyConfig
from cca_ray.contracts import RungScore, TrialReport
from cca_ray.search.arms import open_arms
from cca_ray.search.budget import Limits
from cca_ray.search.ledger import Ledger
from cca_ray.search.mlflow_listener import MlflowListener
from cca_ray.search.terminal_listener import Lines, LiveView, Show, not_shown
from cca_ray.tracking.store import DataSet
from cca_ray.tracking.tracker import Tracker

DIGESTS = {"base": "b", "tokens": "t", "protocol": "p"}
LOGGED = ("loss", "reward_accuracy", "reward_margin")


@dataclass
class Told:
    """A ledger, and what its listeners say."""

    ledger: Ledger
    mlflow: MlflowListener
    view: LiveView
    lines: list[str]


def new_ledger(
    config: StudyConfig,
    storage: optuna.storages.BaseStorage,
    tracker: Tracker,
    limits: Limits | None = None,
    name: str = "study",
    show: Show = not_shown,
    data_set: DataSet | None = None,
) -> Told:
    """With a run `study` in MLflow."""
    ledger = Ledger(config, open_arms(config, name, storage, DIGESTS), limits=limits)
    tracker.run("study", "study")
    lines, view = list[str](), LiveView(ledger, show)
    mlflow = MlflowListener(tracker, config, "study", data_set)
    ledger.listeners += [view, Lines(lines.append, view), mlflow]
    return Told(ledger, mlflow, view, lines)


def heartbeat(step: int, total: int) -> TrialReport:
    """A report between two rungs."""
    return TrialReport(
        step=step,
        total_steps=total,
        seconds=3.0 * step,
        logged=LOGGED,
        history=(),
        images_per_second=10.0,
        accelerator="CPU",
        workers=1,
        micro_batch=24,
        device_seconds={"CPU": 3.0 * step},
    )


def score_of(step: int, values: Mapping[str, float], noise: Mapping[str, list[float]] | None = None) -> RungScore:
    """`noise`: by metric, what each group of the jackknife changes."""
    without = {
        name: tuple(value + change for change in (noise or {}).get(name, [0.0] * 8)) for name, value in values.items()
    }
    return RungScore(
        values=dict(values),
        without=without,
        step=step,
        samples=40,
        scoring_seconds=0.5,
        protocol="abc",
        grid=str(Path(__file__)),
    )


def at_rung(step: int, total: int, fid: float, inception_score: float = 2.0, spread: float = 0.0) -> TrialReport:
    """A report with a score. `spread`: of what each group of the jackknife changes."""
    noise = {"fid": np.linspace(-spread, spread, 8).tolist()}
    score = score_of(step, {"fid": fid, "inception_score": inception_score}, noise)
    return heartbeat(step, total).model_copy(update={"score": score})
