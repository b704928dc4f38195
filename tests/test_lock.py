"""deploy/requirements.lock: every requirement at a version that is allowed, everything with hashes, nothing else."""

import re
import tomllib
from pathlib import Path

import pytest
import ray
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "deploy" / "requirements.lock").read_text()
PYTHONS = ["3.11", "3.12"]  # of deploy/Dockerfile; of the machines of cluster.yaml and deploy/gcp.yaml


def entries(text: str) -> dict[str, str]:
    """By requirement, as `torch==2.13.0`, its hashes. A ValueError for a line that is neither, as one of an index."""
    found: dict[str, str] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if not line.startswith("#"):
            match = re.fullmatch(r"([\w.-]+==[^\s;]+(?: ; [^-]+?)?)((?:\s+--hash=sha256:[0-9a-f]{64})+)\s*", line)
            if not match:
                raise ValueError(f"not a locked requirement: {line[:80]}")
            found[match[1]] = match[2]
    return found


def versions(python: str) -> dict[str, str]:
    """What a node with this Python installs."""
    around = {"python_version": python, "python_full_version": f"{python}.9", "sys_platform": "linux"}
    around |= {"platform_machine": "x86_64", "platform_python_implementation": "CPython"}
    found: dict[str, str] = {}
    for requirement in map(Requirement, entries(LOCK)):
        if requirement.marker is None or requirement.marker.evaluate(around):
            assert requirement.name not in found, f"two versions of {requirement.name}"
            found[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return found


@pytest.mark.parametrize("python", PYTHONS)
def test_every_requirement_is_locked_at_a_version_that_is_allowed(python: str):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    head = [line for line in (ROOT / "deploy" / "head.txt").read_text().splitlines() if not line.startswith("#")]
    locked = versions(python)
    for requirement in map(Requirement, [*project, *head]):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize("python", PYTHONS)
def test_nodes_get_the_torch_that_runs_on_gpus(python: str):
    locked = versions(python)
    assert "+" not in locked["torch"]  # as +cpu
    assert {"triton", "nvidia-nccl-cu13", "nvidia-cudnn-cu13"} <= set(locked)


@pytest.mark.parametrize(
    "line",
    ["rich==15.0.0", "rich>=15 \\\n    --hash=sha256:" + 64 * "0", "--index-url x", "rich @ file:///x",
     "rich==15.0.0 \\\n    --hash=sha256:" + 60 * "0"],
)  # fmt: skip
def test_a_line_without_version_or_hash_is_found_out(line: str):
    with pytest.raises(ValueError, match="not a locked requirement"):
        entries(f"{LOCK}{line}\n")


def test_the_ray_that_is_locked_is_ours_and_the_image_has_the_python_of_the_lock():
    """What the image brings of Ray is replaced by it."""
    version = versions("3.11")["ray"]
    image = re.search(r"^FROM rayproject/ray:[\d.]+-(py\d+)-gpu@", (ROOT / "deploy" / "Dockerfile").read_text(), re.M)
    assert image
    assert image[1] == "py311"
    assert ray.__version__.rpartition(".")[0] == version.rpartition(".")[0]


def test_the_command_that_made_the_lock_is_the_one_that_is_written_down():
    command = next(line.strip("# ") for line in LOCK.splitlines() if line.startswith("#    uv "))
    assert f"\n{command} --upgrade\n" in (ROOT / "CONTRIBUTING.md").read_text()


def test_the_image_installs_what_is_locked_and_nothing_else():
    lines = (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert installs
    assert all("--require-hashes -r" in line or "--no-deps /home/ray/cca_ray" in line for line in installs)
