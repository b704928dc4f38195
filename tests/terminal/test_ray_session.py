"""Verbs on a Ray that is gone, of another version, or ends meanwhile; and what a person sees of it: real clusters."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
import ray
from optuna.trial import TrialState
from PIL import Image

from cca_ray.cluster.queue import Node, node_here
from cca_ray.cluster.ray_compat import Versions, own_versions
from cca_ray.terminal import ray_session as session
from cca_ray.terminal.ray_session import ray_session
from cca_ray.training.small_base import BaseFiles
from tests.cluster.versions import said_to_be
from tests.commands import statuses, trials, write_space
from tests.conftest import apart
from tests.ports import free_port
from tests.processes import begin, wait_until

LONGEST_S = 240.0  # on a busy machine
OURS = re.compile(r" *\d+ s  ")  # how a line of a console begins


ENDED = re.compile(r"error: the Ray at [\d.:]+ has ended; run the same command again to continue( \(log: .*\))?\n")


@contextmanager
def head() -> Iterator[tuple[str, psutil.Process]]:
    """A cluster of one node, apart from that of the tests: its address, and the process that is its GCS."""
    with apart():
        address = f"127.0.0.1:{free_port()}"
        port, client = address.partition(":")[2], str(free_port())
        command = ["ray", "start", "--head", "--block", "--port", port, "--ray-client-server-port", client,
                   "--node-ip-address=127.0.0.1", "--min-worker-port=0", "--max-worker-port=0", "--num-cpus=2",
                   "--num-gpus=0", "--include-dashboard=false", "--disable-usage-stats"]  # fmt: skip
        environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        started = begin(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        node = psutil.Process(started.pid)
        health = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
        wait_until(lambda: subprocess.run(health, env=environment, capture_output=True).returncode == 0)
        (gcs,) = [process for process in node.children(recursive=True) if "gcs_server" in process.name()]
        family = node.children(recursive=True)
        try:
            yield address, gcs
        finally:
            for process in {node, *family, *node.children(recursive=True)}:
                if process.is_running():
                    process.kill()


def verb(name: str, folder: Path, address: str, *arguments: str) -> "subprocess.Popen[str]":
    """With a proxy in the environment that is not there: none leads to a Ray."""
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "grpc_proxy"), f"http://127.0.0.1:{free_port()}")
    environment = {**os.environ, **proxies, "no_proxy": "", "RAY_ADDRESS": address, "RAY_AUTH_MODE": "disabled"}
    command = [sys.executable, "-m", f"cca_ray.{name}", *arguments]
    return begin(command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=LONGEST_S)
    return process.returncode, out, err


def arguments_of(name: str, folder: Path, files: BaseFiles) -> list[str]:
    """Of a verb that will ask Ray for something."""
    if name == "train":
        return [str(write_space(folder, files)), "--set", "placement.workers=2", "--out", "out"]
    for label in ("cat", "dog"):
        (folder / "photos" / label).mkdir(parents=True)
        Image.new("RGB", (8, 8), "red").save(folder / "photos" / label / "0.png")
    return ["photos", "--tokenizer", str(files.tokenizer), "--image-size", "8", "--out", "out"]


@pytest.mark.parametrize("name", [pytest.param("prepare", marks=pytest.mark.nightly), "train"])
def test_a_cluster_that_is_gone_or_of_another_version_is_one_line_of_every_verb(
    name: str, base_files: BaseFiles, tmp_path: Path, ray_here: None
):
    arguments, gone = arguments_of(name, tmp_path, base_files), f"127.0.0.1:{free_port()}"
    with said_to_be(Versions("2.9.0", own_versions().python)) as gcs:
        runs = [verb(name, tmp_path, address, *arguments) for address in (gone, gcs)]
        lost, other = map(ended, runs)
    for code, _, err in (lost, other):
        assert (code, err.count("\n")) == (2, 1), err
    assert lost[2].startswith(f"error: RAY_ADDRESS={gone}: no Ray cluster answers there (Connection refused)")
    assert "2.9.0" in other[2] or "does not accept our token" in other[2]
    assert not list(tmp_path.glob("out/*"))


@pytest.mark.nightly
@pytest.mark.timeout(900)
def test_of_a_group_of_workers_a_person_sees_our_lines_and_why_it_ended(base_files: BaseFiles, tmp_path: Path):
    """It trains; it diverges; its cluster ends."""
    space = write_space(tmp_path, base_files)
    fixed = [str(space), "--set", "placement.workers=2"]
    with head() as (address, gcs):
        code, out, err = ended(verb("train", tmp_path, address, *fixed, "--out", "well"))
        assert (code, err) == (0, "")
        lines = out.splitlines()
        assert [line for line in lines if not OURS.match(line)] == []
        assert "step 10/10" in lines[-2]
        assert lines[-1].endswith("weights: well/model.pt")
        assert (tmp_path / "well" / "model.pt").is_file()

        diverges = ("--set", "train.learning_rate=1e38", "--out", "badly")
        code, out, err = ended(verb("train", tmp_path, address, *fixed, *diverges))
        assert (code, err) == (2, "error: Diverged: the loss is nan at step 2\n")
        assert "weights:" not in out

        process = verb("train", tmp_path, address, *fixed, "--set", "train.epochs=3000", "--out", "long")
        wait_until(lambda: (tmp_path / "long" / "alive-0").exists() or process.poll() is not None, LONGEST_S)
        gcs.kill()
        killed = time.monotonic()
        code, out, err = ended(process)
        assert time.monotonic() - killed < 60
    assert (code, bool(ENDED.fullmatch(err))) == (2, True), err
    assert [line for line in out.splitlines() if not OURS.match(line)] == []


@pytest.mark.nightly  # the test above has a cluster that ends, tests/chaos a study that goes on
@pytest.mark.timeout(900)
def test_a_study_whose_cluster_ends_says_so_and_goes_on_on_another(base_files: BaseFiles, tmp_path: Path):
    write_space(tmp_path, base_files, epochs=30)
    command = ("tiny.yaml", "--max-concurrent", "1")
    with head() as (address, gcs):
        process = verb("tune", tmp_path, address, *command)
        sign = tmp_path / "runs" / "tiny" / "trials" / "tiny-search-0000" / "alive-0"
        wait_until(lambda: sign.exists() or process.poll() is not None, LONGEST_S)
        gcs.kill()
        code, out, err = ended(process)
    assert (code, bool(ENDED.fullmatch(err))) == (2, True), err
    assert [line for line in out.splitlines() if not OURS.match(line)] == []
    before = {trial.number: trial for trial in trials(tmp_path, "control")}
    assert [trial.state for trial in before.values()] == [TrialState.COMPLETE]
    assert "RUNNING" not in statuses(tmp_path)
    with head() as (address, _):
        code, out, err = ended(verb("tune", tmp_path, address, *command))
    assert (code, err) == (0, "")
    after = trials(tmp_path, "control")
    assert [(t.number, t.values) for t in after] == [(t.number, t.values) for t in before.values()]
    searched = trials(tmp_path)
    assert len(searched) == 3
    assert all(trial.state.is_finished() for trial in searched)
    assert TrialState.COMPLETE in {trial.state for trial in searched}
    assert set(statuses(tmp_path)) <= {"FINISHED", "KILLED"}
    assert (tmp_path / "runs" / "tiny" / "tiny" / "winner.pt").is_file()


def test_a_plan_is_for_the_cluster_that_ray_start_wrote_down(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    theirs = [Node("A40", cpus=16, gpus=8)]
    monkeypatch.setattr(session, "ray_session", nullcontext)
    monkeypatch.setattr(session, "nodes_now", lambda: theirs)
    assert session.nodes_to_plan_for() == [node_here()]
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.1.2.3:6379")
    assert session.nodes_to_plan_for() == theirs


def test_a_process_that_is_connected_stays_so(ray_here: None):
    before = ray.get_runtime_context().gcs_address
    with ray_session():
        assert ray.get_runtime_context().gcs_address == before
    assert ray.is_initialized()


CALLS_AGAIN = """
import os, time
import psutil
from cca_ray.cluster import address
from cca_ray.errors import ConfigError, RayEnded
from cca_ray.prepare import Nodes
from contextlib import ExitStack
from cca_ray.terminal.ray_session import ray_session

try:
    with ray_session(lambda: None):
        (gcs,) = (child for child in psutil.Process().children(recursive=True) if "gcs_server" in child.name())
        gcs.kill()
        gcs.wait()
        raise ZeroDivisionError  # as whatever follows from it
except RayEnded as error:
    print("first:", error)
begin = time.monotonic()
for again in (ray_session().__enter__, Nodes(ExitStack()).connect):  # every verb's, and that of prepare
    try:
        again()
    except ConfigError as error:
        print(error)
print(time.monotonic() - begin < 10, flush=True)
os._exit(0)  # Ray's own end would wait
"""


@pytest.mark.slow
def test_the_next_call_in_a_process_whose_ray_has_ended_says_to_restart_it():
    """As the next cell of a notebook, which would wait for Ray for ever."""
    command = [sys.executable, "-c", CALLS_AGAIN]
    with apart():
        done = subprocess.run(
            command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True, timeout=LONGEST_S
        )
    first, *others = done.stdout.splitlines()
    assert re.fullmatch(r"first: the Ray at [\d.:]+ has ended; run the same command again to continue", first)
    told = "the Ray of this process has ended; restart the process (in a notebook, the kernel), and run the same again"
    assert others == [told, told, "True"], done.stderr
