"""What a machine says of itself."""

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import pytest
import ray
import torch

from cca_ray.cluster import machine
from cca_ray.cluster.machine import FULL, machine_here, revision

ROOT = Path(__file__).parents[2]


def test_a_machine_names_processor_threads_and_versions():
    here = machine_here()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and "model name" in cpuinfo.read_text():
        assert f": {here.processor}\n" in cpuinfo.read_text()
    assert here.threads == torch.get_num_threads()
    assert here.arithmetic == torch.backends.cpu.get_cpu_capability()
    assert here.python == platform.python_version()
    assert here.libraries["torch"] == version("torch") == torch.__version__
    assert len(here.source) == 16


def test_a_worker_tells_of_its_own_process(ray_here: None):
    task = ray.remote(num_cpus=1, runtime_env={"env_vars": {"ATEN_CPU_CAPABILITY": "default"}})(machine_here)
    there = ray.get(task.remote())
    assert there.threads == 1  # Ray gives a worker as many threads as CPUs
    assert there.arithmetic in ("DEFAULT", "NO AVX")
    assert there.source == machine_here().source


def git(folder: Path, *words: str) -> str:
    names = {f"GIT_{who}_{what}": "someone@there" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    command = ["git", "-C", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **names}).stdout


def test_a_checkout_has_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (package := tmp_path / "cca_ray").mkdir()
    monkeypatch.setattr(machine, "PACKAGE", package)
    assert revision() == ""
    (package / "a.py").write_text("a = 1\n")
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "a")
    assert revision() == git(tmp_path, "rev-parse", "--short=12", "HEAD").strip()
    assert revision(FULL) == git(tmp_path, "rev-parse", "HEAD").strip()
    (package / "a.py").write_text("a = 2\n")
    assert revision() == git(tmp_path, "rev-parse", "--short=12", "HEAD").strip() + "-dirty"
