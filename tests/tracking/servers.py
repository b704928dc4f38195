"""Real MLflow: a server on this machine that tests kill and start again, and a database that is new."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests

from cca_ray.tracking.tracker import Tracker
from tests.ports import free_port


class Server:
    """A real MLflow server on loopback that can be killed, and comes back with its port and database."""

    def __init__(self, folder: Path):
        self.folder, self.port = folder, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        if self.process is not None:
            return
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self.port),
                   "--workers", "1", "--backend-store-uri", f"sqlite:///{self.folder / 'mlflow.db'}",
                   "--artifacts-destination", str(self.folder / "artifacts")]  # fmt: skip
        environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        end = time.monotonic() + 120
        while time.monotonic() < end and self.process.poll() is None:
            try:
                if requests.get(f"{self.url}/health", timeout=1).ok:
                    return
            except requests.RequestException:
                time.sleep(0.25)
        self.kill()
        pytest.fail((self.folder / "log").read_text()[-2000:])

    def kill(self) -> None:
        """It and its children, and see that it ended so. Nothing if it was killed before."""
        if self.process is not None:
            process, self.process = self.process, None
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            for child in children:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            assert process.wait(timeout=20) == -signal.SIGKILL, (self.folder / "log").read_text()[-2000:]
            assert not psutil.wait_procs(children, timeout=20)[1]


@pytest.fixture(scope="module")
def the_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def server(the_server: Server) -> Server:
    the_server.start()
    return the_server


def empty_mlflow(path: Path) -> Path:
    """A new database, which takes MLflow seconds to make."""
    Tracker(f"sqlite:///{path}", "another").close(10)
    return path
