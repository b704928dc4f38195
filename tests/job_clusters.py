"""Real Ray clusters of this machine that ask for a token, told what cluster.yaml tells one, and jobs on them.

Other Rays of this machine are never touched: a cluster has ports and a folder of its own, and its processes are known
by a mark in their environment.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.buckets import CREDENTIALS
from tests.ports import free_port
from tests.processes import begin, wait_until

ROOT = Path(__file__).resolve().parents[1]
MARK = "CCA_RAY_JOBS"


def told(storage: str, cache: Path | str, tracking_uri: str) -> dict[str, str]:
    """What the head of a cluster is told in its environment."""
    return {
        "RAY_AUTH_MODE": "token",
        "RAY_JOB_STOP_SIGNAL": "SIGINT",
        "RAY_JOB_STOP_WAIT_TIME_S": "30",
        "CCA_RAY_STORAGE": storage,
        "CCA_RAY_CACHE": str(cache),
        "MLFLOW_TRACKING_URI": tracking_uri,
    }


class Cluster:
    """On this machine: a Ray head without CPUs to give away, and a worker."""

    def __init__(self, folder: Path, storage: str, tracking_uri: str):
        self.folder, self.mark, self.storage = folder, uuid.uuid4().hex, storage
        self.ray = Path(tempfile.mkdtemp(prefix="jobs-", dir="/tmp"))  # short: the names of sockets are
        self.token = folder / "token"
        self.token.write_text(secrets.token_hex(32))
        self.token.chmod(0o600)
        self.bearer = {"Authorization": f"Bearer {self.token.read_text()}"}
        self.nodes: list[subprocess.Popen[bytes]] = []
        self.gcs, self.port = free_port(), free_port()
        self.address, self.url = f"127.0.0.1:{self.gcs}", f"http://127.0.0.1:{self.port}"
        ours = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "RAY_ADDRESS")}
        self.client = ours | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "RAY_TMPDIR": str(self.ray),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_API_SERVER_ADDRESS": self.url,
        }
        # Workers as nice as the rest: a busy machine would starve them.
        mine = {MARK: self.mark, "RAY_worker_niceness": "0"}
        self.server = self.client | mine | CREDENTIALS | told(storage, folder / "cache-head", tracking_uri)

    def ray_start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A node, with a cache of its own. Returns at once."""
        command = ["ray", "start", "--block", "--node-ip-address=127.0.0.1", "--num-gpus=0", "--disable-usage-stats"]
        # Two nodes of one machine would give their workers the same ports, in the same order.
        command += ["--min-worker-port=0", "--max-worker-port=0"]
        command += [f"--dashboard-agent-listen-port={free_port()}", *words]
        environment = {**self.server, "CCA_RAY_CACHE": str(self.folder / f"cache-{name}")}
        with (self.folder / f"{name}.log").open("w") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def start_head(self, *words: str) -> None:
        """Returns at once."""
        ports = [f"--port={self.gcs}", f"--dashboard-port={self.port}", f"--ray-client-server-port={free_port()}"]
        arguments = ["--head", "--num-cpus=0", "--dashboard-host=127.0.0.1", *ports, *words]
        self.nodes.append(self.ray_start("head", *arguments))

    def wait(self) -> None:
        """Until the head is ready."""
        wait_until(lambda: self.ask(**self.bearer) == 200)

    def join(self) -> None:
        """The worker, when the head is ready."""
        self.wait()
        # A folder of its own, as on a machine of its own: two nodes would delete each other's uploads.
        here = (f"--address={self.address}", f"--temp-dir={self.ray}/w")
        self.nodes.append(self.ray_start("worker", *here, "--num-cpus=2"))

    def alive(self) -> list[dict[str, Any]]:
        """Its nodes, as Ray's state API has them."""
        answer = requests.get(f"{self.url}/api/v0/nodes?detail=1", headers=self.bearer, timeout=30).json()
        return [node for node in answer["data"]["result"]["result"] if node["state"] == "ALIVE"]

    def head(self) -> str:
        """Its id."""
        (head,) = [node["node_id"] for node in self.alive() if node["is_head_node"]]
        return str(head)

    def ask(self, **headers: str) -> int:
        """The status of an answer about jobs; 0 if there is none."""
        try:
            return requests.get(f"{self.url}/api/jobs/", headers=headers, timeout=10).status_code
        except requests.RequestException:
            return 0

    def job(self, *words: str) -> subprocess.Popen[str]:
        """`ray job WORDS`, as a person with the token and a tunnel types it, in a checkout."""
        return begin(
            ["ray", "job", *words], cwd=ROOT, env=self.client, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def submit(self, name: str, *arguments: str) -> subprocess.Popen[str]:
        """A study as a job, followed to its end."""
        command = ["python", "-m", "cca_ray.tune", *arguments]
        return self.job("submit", "--submission-id", name, "--working-dir", ".", "--", *command)

    def close(self) -> None:
        mark = f"{MARK}={self.mark}".encode()
        for _ in range(20):  # those that begin meanwhile too
            left = []
            for process in psutil.process_iter():
                with suppress(psutil.Error, OSError):
                    # Not psutil's `environ`, which ends where Ray has written a process's title over it.
                    if mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                        process.kill()
                        left.append(process)
            if not left:
                break
            psutil.wait_procs(left, timeout=1)
        for node in self.nodes:
            node.wait(timeout=20)
        shutil.rmtree(self.ray, ignore_errors=True)
