"""A study whose inputs and storage are in a bucket: on several machines one after the other, as on one with a disk."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ray.cluster_utils import Cluster

from cca_ray.mirror import COPIES, exists, here, named, pull, push, written_at
from cca_ray.pretrain import BaseFiles
from tests.s3 import CREDENTIALS, s3_server
from tests.test_cli import write_space


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    with s3_server() as uri:
        yield uri


def in_bucket(files: BaseFiles, uri: str) -> BaseFiles:
    """The base's files, brought to the bucket; their names there."""
    root = files.features.parent
    folder = here(uri)
    for path in sorted(root.rglob("*")):
        if path.is_file() and path.name != "lock":
            copy = folder / path.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
    push(folder)
    return BaseFiles(**{key: named(folder / path.relative_to(root)) for key, path in vars(files).items()})


def start(folder: Path, node: str, verb: str, *arguments: str) -> subprocess.Popen[str]:
    """`python -m cca_ray.VERB` on a machine that has nothing but a search space."""
    environment = {**os.environ, "CCA_RAY_CACHE": str(folder / f"cache-{node}")}
    command = [sys.executable, "-m", f"cca_ray.{verb}", *arguments]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output
    return output


@pytest.fixture
def two_nodes(template: str, tmp_path: Path) -> Iterator[str]:
    """The address of a cluster whose nodes share nothing: a head that trains nothing, and a node that does."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "dashboard_port": 0, "env_vars": {"CCA_RAY_CACHE": f"{tmp_path}/cache-head"}},
    )
    cluster.add_node(num_cpus=2, env_vars={"CCA_RAY_CACHE": f"{tmp_path}/cache-node"})
    yield cluster.address
    cluster.shutdown()


def wait_until(ready: Callable[[], Any], process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 150
    while not ready():
        if time.monotonic() > end:
            process.kill()
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)


def test_nodes_that_share_nothing_but_a_uri_find_who_hangs_and_stop_when_asked(
    base_files: BaseFiles, tmp_path: Path, template: str, two_nodes: str, monkeypatch: pytest.MonkeyPatch
):
    storage, files = template.format("runs"), in_bucket(base_files, template.format("base"))
    space = write_space(tmp_path, files, epochs=2000, reference="live")
    placement = "placement={workers: 2, hung_minutes: 0.5, checkpoint_minutes: 0.05}"
    monkeypatch.setenv("RAY_ADDRESS", two_nodes)
    process = start(tmp_path, "head", "tune", str(space), "--storage", storage, "--set", placement)
    trial = here(storage) / "tiny" / "trials" / "tiny-control-0000"
    checkpoint, life = trial / "checkpoint.pt", trial / "alive-1"
    wait_until(lambda: exists(checkpoint), process)
    assert pull(life)
    worker = json.loads(life.read_text())["pid"]
    os.kill(worker, signal.SIGSTOP)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), process)
    saved = written_at(checkpoint)
    wait_until(lambda: written_at(checkpoint) > saved, process)
    saved = written_at(checkpoint)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130, output
    assert f"no sign of life for 30 s: killed process {worker}" in output
    assert written_at(checkpoint) > saved
    assert not list((tmp_path / "cache-head" / COPIES).rglob("checkpoint.pt"))
    assert list((tmp_path / "cache-node" / COPIES).rglob("checkpoint.pt"))


def outcome(path: Path) -> dict[str, Any]:
    """What does not depend on the machine."""
    (size,) = json.loads(path.read_text())["sizes"]
    keys = ("trials", "winner", "trial", "finalists", "guidance_scale", "protocol")
    return {key: value for key, value in size.items() if key in keys or key.startswith(("fid_", "std_"))}


def test_a_study_at_a_uri_goes_on_on_another_machine_to_the_same_result(
    base_files: BaseFiles, tmp_path: Path, template: str
):
    (tmp_path / "here").mkdir()
    local = ("tune", str(write_space(tmp_path / "here", base_files, epochs=6)), "--max-concurrent", "1")
    undisturbed = start(tmp_path / "here", "none", *local, "--storage", "runs")

    files = in_bucket(base_files, template.format("base"))
    space = write_space(tmp_path, files, epochs=6)
    storage = template.format("runs")
    command = ("tune", str(space), "--max-concurrent", "1", "--storage", storage)
    finish(undisturbed)

    first = start(tmp_path, "first", *command)
    scored = here(storage) / "tiny" / "trials" / "tiny-search-0000" / "checkpoint.pt"
    wait_until(lambda: exists(scored), first)
    first.send_signal(signal.SIGINT)
    output, _ = first.communicate(timeout=60)
    assert first.returncode == 130, output

    output = finish(start(tmp_path, "second", *command))
    assert "1 complete" in output or "2 complete" in output, output
    summary = here(storage) / "tiny" / "summary.json"
    assert pull(summary)
    assert outcome(summary) == outcome(tmp_path / "here" / "runs" / "tiny" / "summary.json")
    assert json.loads(summary.read_text())["sizes"][0]["checkpoint"] == named(summary.parent / "tiny" / "winner.pt")
    assert exists(summary.parent / "report" / "report.html")
    assert not list(tmp_path.glob("runs"))

    output = finish(start(tmp_path, "third", "report", "tiny", "--storage", storage, "--out", "page"))
    assert output.strip() == "page/report.html"
    assert "digits" not in output
    assert (tmp_path / "page" / "report.html").is_file()
    assert not (tmp_path / "cache-third" / COPIES / "trials").exists()
