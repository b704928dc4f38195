"""Studies as jobs: a real Ray cluster that asks for a token, a real MLflow server, `ray job submit` and `stop`.

Its nodes share a bucket, of a real S3 server, and nothing else.
"""

import json
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import yaml
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import TrialState

from cca_ray import tune
from cca_ray.cluster.ray_compat import IN_A_JOB
from cca_ray.search.mlflow_pages import experiment_name
from cca_ray.storage.mirror import exists, folders, listed, pull
from cca_ray.storage.uris import local_path, to_uri
from cca_ray.tracking.store import KEY
from cca_ray.training.small_base import BaseFiles
from tests.buckets import CREDENTIALS, s3_server
from tests.commands import invoke, write_space
from tests.job_clusters import Cluster, told
from tests.processes import wait_until
from tests.tracking.servers import Server, empty_mlflow

ROOT = Path(__file__).resolve().parents[1]
LONGEST_S = 240.0  # for one job, on a busy machine
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def mlflow(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("mlflow"))
    empty_mlflow(server.folder / "mlflow.db")
    yield server
    server.kill()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, mlflow: Server) -> Iterator[Cluster]:
    with s3_server() as uri:
        cluster = Cluster(tmp_path_factory.mktemp("cluster"), uri.format("runs"), mlflow.url)
        try:
            cluster.start_head()
            mlflow.start()
            cluster.join()
            yield cluster
        finally:
            cluster.close()


@pytest.fixture
def runs_of(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The studies of the cluster, as a machine sees them that has only the bucket."""
    for name, value in {**CREDENTIALS, "CCA_RAY_CACHE": str(tmp_path / "cache")}.items():
        monkeypatch.setenv(name, value)
    return local_path(cluster.storage)


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """The exit code, and all that was printed."""
    output, _ = process.communicate(timeout=LONGEST_S)
    return process.returncode, output


def runs(mlflow: Server, study: str) -> dict[str, Run]:
    """A study's runs, by the last part of their key; the size's own is called `size`."""
    client = MlflowClient(mlflow.url)
    experiment = client.get_experiment_by_name(experiment_name("llamagen", "digits"))
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.`{KEY}` LIKE '{study}/%'")
    parts = {run.info.run_id: run.data.tags[KEY].split("/") for run in found}
    return {(parts[run.info.run_id][3:] or ["size"])[0]: run for run in found}


def trials(storage: Path, study: str, arm: str) -> list[optuna.trial.FrozenTrial]:
    database = storage / study / "study.db"
    assert pull(database)
    return optuna.load_study(study_name=f"{study}/tiny/{arm}", storage=f"sqlite:///{database}").trials


def signs(trial: Path) -> list[dict[str, Any]]:
    """Who works at a trial, or worked last."""
    found = [path for path in listed(trial, "alive-*") if pull(path)]
    return [json.loads(path.read_text()) for path in found]


def test_a_client_without_the_token_is_refused(cluster: Cluster):
    assert cluster.ask() == 401
    assert cluster.ask(Authorization=f"Bearer {secrets.token_hex(32)}") == 403


def test_a_study_is_a_job_from_a_checkout_and_is_found_in_mlflow(
    cluster: Cluster, mlflow: Server, base_files: BaseFiles, tmp_path: Path, runs_of: Path
):
    space = str(write_space(tmp_path, base_files))
    lost = cluster.submit("lost", space, "--storage", "runs")
    code, output = end(cluster.submit("first", space, "--name", "first"))
    assert code == 0, output
    assert "Job 'first' succeeded" in output
    assert f"output in {to_uri(runs_of / 'first')}" in output
    assert "| tiny | " in output
    workers = [sign for trial in folders(runs_of / "first" / "trials") for sign in signs(trial)]
    assert len(workers) == 4
    assert cluster.head() not in {worker["node"] for worker in workers}  # which never trains
    assert exists(runs_of / "first" / "tiny" / "winner.pt")
    found = runs(mlflow, "first")
    assert {run.info.status for run in found.values()} == {"FINISHED"}
    assert sorted(found) == ["size", "tiny-control-0000", *(f"tiny-search-000{n}" for n in range(3))]

    code, output = end(lost)
    assert code == 1
    assert "error: --storage runs: Ray deletes a job's own folder" in output


def test_a_job_that_is_stopped_is_continued_by_the_same_command(
    cluster: Cluster, mlflow: Server, base_files: BaseFiles, tmp_path: Path, runs_of: Path
):
    command = (str(write_space(tmp_path, base_files, epochs=20)), "--name", "second", "--trials", "1")
    submitted = cluster.submit("second-1", *command, "--max-concurrent", "1")
    trial = runs_of / "second" / "trials" / "tiny-control-0000"
    wait_until(lambda: bool(signs(trial)))
    (worker,) = signs(trial)
    process = psutil.Process(worker["pid"])
    process.suspend()  # in the middle of it, until the wish to stop has come: the command line takes seconds to start
    stopping = cluster.job("stop", "second-1")
    wait_until(lambda: exists(trial.parent / "stop-tiny"))
    process.resume()
    code, output = end(stopping)
    assert code == 0
    assert "Job 'second-1' was stopped" in output
    code, output = end(submitted)
    assert code == 0  # Ray's way: it did not fail
    assert "interrupted; run the same command again to continue" in output
    assert exists(trial / "checkpoint.pt")
    assert [t.state for t in trials(runs_of, "second", "control")] == [TrialState.RUNNING]
    stopped = runs(mlflow, "second")
    assert {run.info.status for run in stopped.values()} == {"KILLED"}
    assert stopped["tiny-control-0000"].data.tags["state"] == "INTERRUPTED"

    code, output = end(cluster.submit("second-2", *command, "--max-concurrent", "2"))  # may change
    assert code == 0, output
    assert "Job 'second-2' succeeded" in output
    ended = runs(mlflow, "second")
    assert {run.info.status for run in ended.values()} == {"FINISHED"}
    assert {name: run.info.run_id for name, run in ended.items() if name in stopped} == {
        name: run.info.run_id for name, run in stopped.items()
    }
    client = MlflowClient(mlflow.url)
    losses = client.get_metric_history(ended["tiny-control-0000"].info.run_id, "train/loss")
    assert sorted(metric.step for metric in losses) == list(range(1, 201))  # none is missing, none is there twice


def test_the_head_of_these_tests_is_told_what_the_head_of_the_cluster_is_told():
    lines = yaml.safe_load((ROOT / "cluster.yaml").read_text())["head_start_ray_commands"]
    words = [word.partition("=") for word in lines[-1].split() if "=" in word and not word.startswith("-")]
    there = {name: value for name, _, value in words}
    assert there == told("s3://YOUR-BUCKET/runs", "$HOME/cca_ray", "http://127.0.0.1:5000")


def test_a_folder_that_ray_deletes_is_refused(
    base_files: BaseFiles, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(IN_A_JOB, "{}")
    monkeypatch.chdir(tmp_path)
    outcome = invoke(tune.main, [str(write_space(tmp_path, base_files))], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert "--storage runs: Ray deletes a job's own folder" in outcome.err
    assert not (tmp_path / "runs").exists()
