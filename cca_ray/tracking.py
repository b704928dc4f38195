"""The only importer of mlflow: experiment, a parent run per model size, a child run per trial.

Only the study's driver writes, so a SQLite store has a single writer.
"""

import logging
import math
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID
from PIL import Image

KEY = "cca_ray.key"  # tag that names a run for good, so that the same run is found again
# Optuna's states as MLflow's own Optuna storage maps them; an interrupted run is reopened when the study goes on.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}


def reach(url: str, timeout_s: float = 10.0) -> None:
    """Ask a server once. MLflow's own client would try for minutes before it says that none is there."""
    try:
        with urllib.request.urlopen(f"{url.rstrip('/')}/health", timeout=timeout_s):  # noqa: S310 (http or https)
            pass
    except urllib.error.HTTPError:
        pass  # it answered


class Tracker:
    """One experiment in one MLflow store."""

    def __init__(self, uri: str, experiment: str, artifacts: Path | None = None):
        """`artifacts`: where a new experiment keeps its files, if the store is a database; a server knows itself.

        Raises ValueError if the store cannot be used.
        """
        for name in ("alembic", "mlflow.store.db.utils"):  # a new database logs every migration
            logging.getLogger(name).setLevel(logging.WARNING)
        server = uri.startswith(("http://", "https://"))
        try:
            if server:
                reach(uri)
            self.client = MlflowClient(tracking_uri=uri)
            found = self.client.get_experiment_by_name(experiment)
            location = artifacts.resolve().as_uri() if artifacts and not server else None
            self.experiment_id = (
                found.experiment_id if found else self.client.create_experiment(experiment, artifact_location=location)
            )
        except Exception as error:  # MLflow's, SQLAlchemy's, a missing driver's
            raise ValueError(f"MLflow at {uri} cannot be used: {str(error).splitlines()[0]}") from None
        self.browse = uri if server else f"mlflow server --backend-store-uri {uri}"

    def run(self, key: str, name: str, parent: str | None = None, tags: Mapping[str, str] | None = None) -> str:
        """The id of the run of this key, RUNNING: made now, or reopened if an interrupted study left it."""
        found = self.client.search_runs([self.experiment_id], f"tags.`{KEY}` = '{key}'", max_results=1)
        if found:
            run_id: str = found[0].info.run_id
            self.client.update_run(run_id, status="RUNNING")
            return run_id
        tags = {KEY: key, **(tags or {}), **({MLFLOW_PARENT_RUN_ID: parent} if parent else {})}
        created: str = self.client.create_run(self.experiment_id, run_name=name, tags=tags).info.run_id
        return created

    def last_step(self, run_id: str) -> int:
        """The last optimizer step whose loss was logged; 0 if none was."""
        return max((metric.step for metric in self.client.get_metric_history(run_id, "loss")), default=0)

    def params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Log parameters; the same again is no change."""
        self.client.log_batch(run_id, params=[Param(key, f"{value}") for key, value in params.items()])

    def metrics(self, run_id: str, rows: Mapping[int, Mapping[str, float]]) -> None:
        """Log metrics by optimizer step; what is not finite is left out, for MLflow would store 1.8e308."""
        now = int(time.time() * 1000)
        metrics = [
            Metric(key, float(value), now, step)
            for step, row in rows.items()
            for key, value in row.items()
            if math.isfinite(value)
        ]
        for start in range(0, len(metrics), 1000):  # MLflow's limit for a batch
            self.client.log_batch(run_id, metrics=metrics[start : start + 1000])

    def tags(self, run_id: str, tags: Mapping[str, str]) -> None:
        self.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])

    def image(self, run_id: str, key: str, path: str | Path, step: int) -> None:
        with Image.open(path) as image:
            self.client.log_image(run_id, np.asarray(image), key=key, step=step, synchronous=True)

    def file(self, run_id: str, path: str | Path) -> None:
        self.client.log_artifact(run_id, str(path))

    def end(self, run_id: str, state: str, reason: str = "") -> None:
        """Close a run: COMPLETE, PRUNED or FAIL, as in Optuna, or INTERRUPTED."""
        self.tags(run_id, {"state": state, **({"reason": reason[:5000]} if reason else {})})
        self.client.set_terminated(run_id, status=STATUS[state])
