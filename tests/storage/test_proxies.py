"""Servers of this machine, with a proxy in the environment where nobody listens."""

import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from cca_ray.storage.proxies import is_here
from tests.buckets import CREDENTIALS, gs_server, s3_server
from tests.ports import free_port

WRITE = """
import sys
from cca_ray.storage.mirror import pull, push, reach
from cca_ray.storage.uris import local_path
from cca_ray.terminal.console import run

def main() -> None:
    path = local_path(URI)
    reach(path.parent, write=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("kept")
    push(path)
    path.unlink()
    pull(path)
    print(path.read_text())

URI = sys.argv.pop()
run(main)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    proxy = f"http://127.0.0.1:{free_port()}"
    others = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    return {**others, **CREDENTIALS, "CCA_RAY_CACHE": str(tmp_path), "http_proxy": proxy, "https_proxy": proxy}


@pytest.mark.parametrize("server", [s3_server, gs_server])
def test_a_bucket_on_this_machine_is_asked_by_no_proxy(
    server: Callable[[], AbstractContextManager[str]], environment: dict[str, str]
):
    with server() as uri:
        command = [sys.executable, "-c", WRITE, uri.format("runs/a.txt")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "kept\n", "")


def test_a_proxy_that_is_not_there_is_told_with_the_cure(environment: dict[str, str]):
    uri = "gs://anonymous@studies/a.txt?scheme=http&endpoint_override=storage.example%3A80&retry_limit_seconds=1"
    done = subprocess.run([sys.executable, "-c", WRITE, uri], env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "no_proxy" in done.stderr


def test_what_is_here():
    assert all(map(is_here, ("localhost", "127.0.0.1", "127.1.2.3", "::1")))
    assert not any(map(is_here, ("10.0.0.1", "mlflow.example", "localhost.example", "")))
