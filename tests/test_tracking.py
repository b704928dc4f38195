import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import requests
from PIL import Image

from cca_ray.tracking import Tracker


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real MLflow server on loopback."""
    folder, port = tmp_path_factory.mktemp("server"), free_port()
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1",
               "--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}",
               "--artifacts-destination", str(folder / "artifacts")]  # fmt: skip
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    for _ in range(120):
        try:
            if requests.get(f"{url}/health", timeout=1).ok:
                break
        except requests.ConnectionError:
            time.sleep(0.5)
    else:
        pytest.fail((folder / "log").read_text()[-2000:])
    yield url
    for child in [*psutil.Process(process.pid).children(recursive=True), process]:
        child.terminate()
    process.wait(timeout=20)


@pytest.fixture(params=["sqlite", "server"])
def tracker(request: pytest.FixtureRequest, tmp_path: Path) -> Tracker:
    if request.param == "server":
        return Tracker(request.getfixturevalue("server"), f"study {tmp_path.name}")
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "study", tmp_path / "artifacts")


def test_a_database_and_a_server_keep_the_same(tracker: Tracker, tmp_path: Path):
    parent = tracker.run("study/size", "size", tags={"study": "study"})
    child = tracker.run("study/size/trial-0", "λ=3 lr=5e-3", parent)
    tracker.params(child, {"lambda": 3.0, "learning_rate": 5e-3})
    tracker.params(child, {"lambda": 3.0})
    tracker.metrics(child, {1: {"loss": 2.0}, 2: {"loss": float("nan"), "fid": 12.5}})
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "grid.png")
    tracker.image(child, "samples", tmp_path / "grid.png", step=2)
    tracker.file(parent, tmp_path / "grid.png")
    tracker.end(child, "PRUNED", "not among the best")
    tracker.end(parent, "COMPLETE")

    run = tracker.client.get_run(child)
    assert run.info.status == "KILLED"
    assert run.data.params == {"lambda": "3.0", "learning_rate": "0.005"}
    assert run.data.metrics == {"loss": 2.0, "fid": 12.5}
    assert run.data.tags["mlflow.parentRunId"] == parent
    assert (run.data.tags["state"], run.data.tags["reason"]) == ("PRUNED", "not among the best")
    assert [m.step for m in tracker.client.get_metric_history(child, "fid")] == [2]
    assert any("samples" in f.path for f in tracker.client.list_artifacts(child, "images"))
    assert [f.path for f in tracker.client.list_artifacts(parent)] == ["grid.png"]
    assert tracker.client.get_run(parent).info.status == "FINISHED"


def test_the_run_of_a_key_is_found_again_and_reopened(tracker: Tracker):
    run_id = tracker.run("study/size", "size")
    tracker.end(run_id, "INTERRUPTED")
    assert tracker.client.get_run(run_id).info.status == "KILLED"
    assert tracker.run("study/size", "size") == run_id
    assert tracker.client.get_run(run_id).info.status == "RUNNING"
    assert tracker.run("study/other", "other") != run_id


def test_a_long_history_is_kept_whole(tracker: Tracker):
    run_id = tracker.run("key", "name")
    tracker.metrics(run_id, {step: {"loss": step / 7} for step in range(2500)})
    assert len(tracker.client.get_metric_history(run_id, "loss")) == 2500


@pytest.mark.parametrize("kind", ["folder", "nobody there", "no database", "no driver"])
def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path, kind: str):
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    uri = {
        "folder": str(tmp_path / "mlruns"),  # MLflow no longer takes folders
        "nobody there": f"http://127.0.0.1:{free_port()}",
        "no database": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "no driver": "postgresql://127.0.0.1/mlflow",
    }[kind]
    with pytest.raises(ValueError, match="cannot be used") as error:
        Tracker(uri, "study")
    assert "\n" not in str(error.value)


def test_the_way_to_browse_is_a_command_or_an_address(tracker: Tracker):
    assert tracker.browse.startswith(("http://127.0.0.1:", "mlflow server --backend-store-uri sqlite:///"))
