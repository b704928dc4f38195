"""What is given back on a cluster: real placement groups, of real Ray."""

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group
from ray.util.state import list_jobs

from cca_ray.cluster.address import Named
from cca_ray.cluster.session import free_worker_group, remove_leaked_groups, token_without_home, why_not
from tests.chaos.faults import can_mount
from tests.conftest import apart
from tests.processes import wait_until

LEAK = """
import sys, ray
from ray.util import placement_group

@ray.remote(num_cpus=0)
class Waiting:  # outlives its driver, as a trainer that is being set up does for a moment
    def reserve(self):
        self.group = placement_group([{"CPU": 0.5}])
        ray.get(self.group.ready())

ray.init(address=sys.argv[1], namespace="leak", logging_level="ERROR", log_to_driver=False)
ray.get(Waiting.options(name=sys.argv[2], lifetime="detached").remote().reserve.remote())
"""


def dashboard_answers() -> bool:
    try:
        list_jobs(address=ray.get_runtime_context().gcs_address)
    except Exception:  # of whatever kind
        return False
    return True


def test_what_dead_studies_left_reserved_is_freed_and_nothing_else(ray_here: None):
    address = ray.get_runtime_context().gcs_address
    mine = placement_group([{"CPU": 0.5}])
    ray.get(mine.ready())
    for name in ("cca_ray", "somebody_else"):
        subprocess.run([sys.executable, "-c", LEAK, address, name], check=True, capture_output=True)
    lines: list[str] = []
    try:
        wait_until(dashboard_answers)  # Ray has only just begun
        remove_leaked_groups(lines.append)
        assert lines == ["removed 1 placement group(s) that dead studies had left behind"]
        states = [group["state"] for group in ray.util.placement_group_table().values()]
        assert states.count("CREATED") == 2
        assert placement_group_table(mine)["state"] == "CREATED"
    finally:
        remove_placement_group(mine)
        for name in ("cca_ray", "somebody_else"):
            ray.kill(ray.get_actor(name, namespace="leak"))


@pytest.mark.parametrize("key", ["group", "gang"])  # the second: as version 0.1.0 left it
def test_what_the_workers_of_a_trial_hold_is_freed_by_their_signs_of_life(ray_here: None, tmp_path: Path, key: str):
    group = placement_group([{"CPU": 0.5}])
    ray.get(group.ready())
    (tmp_path / "alive-0").write_text(json.dumps({"pid": 0, key: group.id.hex()}))
    (tmp_path / "alive-1").write_text(json.dumps({"pid": 0}))
    assert free_worker_group(tmp_path)
    assert placement_group_table(group)["state"] == "REMOVED"
    assert not free_worker_group(tmp_path)


BEGIN = """
from cca_ray.cluster.session import start_ray
from cca_ray.terminal.console import run
import ray

def main() -> None:
    start_ray()
    print(ray.get(ray.remote(lambda: "ran").remote()))

run(main)
"""


def begin(**environment: str) -> "subprocess.CompletedProcess[str]":
    """A Ray of its own in this environment."""
    command = [sys.executable, "-c", BEGIN]
    return subprocess.run(
        command, env={**os.environ, "RAY_ADDRESS": "local", **environment}, capture_output=True, text=True
    )


def test_a_folder_for_temporary_files_that_ray_cannot_use_is_told_with_the_cure(tmp_path: Path):
    deep, file = tmp_path / ("x" * 90), tmp_path / "file"
    deep.mkdir()
    file.touch()
    whys = {deep: "the names of its sockets would be too long", file: "Not a directory"}
    for folder, why in whys.items():
        done = begin(RAY_TMPDIR=str(folder))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == (
            f"error: Ray cannot use {folder}/ray ({why}); set RAY_TMPDIR to a folder with a short path, such as /tmp\n"
        )


@pytest.mark.parametrize("address", ["local", ""])  # both: a Ray of our own
def test_a_folder_for_temporary_files_with_an_odd_name_is_told_with_the_cure(tmp_path: Path, address: str):
    odd = tmp_path / "über"
    odd.mkdir()
    done = begin(RAY_TMPDIR=str(odd), RAY_ADDRESS=address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: {odd}: Ray cannot start in a temporary folder with letters beyond ASCII, ' or \\ in its path; "
        "set RAY_TMPDIR=/tmp, or TMPDIR\n"
    )


@pytest.mark.slow
@pytest.mark.parametrize("home", ["/proc/absent", "/dev/null"])
def test_a_home_that_cannot_be_written_is_no_hindrance(home: str):
    with apart():
        done = begin(HOME=home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ran\n", "")


@pytest.mark.slow
def test_a_full_shared_memory_is_no_hindrance(tmp_path: Path):
    if not shutil.which("unshare") or not can_mount(tmp_path / "mount"):
        pytest.skip("no mounts here")
    full = 'mount -t tmpfs -o size=64k tmpfs /dev/shm && { cat /dev/zero > /dev/shm/all 2> /dev/null; exec "$@"; }'
    command = ["unshare", "-m", "sh", "-c", full, "sh", sys.executable, "-c", BEGIN]
    with apart():
        done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr


def test_a_token_is_made_only_where_ray_could_not_keep_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def token() -> str | None:
        token_without_home()
        return os.environ.get("RAY_AUTH_TOKEN")

    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert token() is None
    monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that it is taken away again
    del os.environ["RAY_AUTH_TOKEN"]
    monkeypatch.setenv("HOME", "/proc/absent")
    made = token()
    assert made is not None
    assert len(made) == 64
    assert token() == made
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    assert token() is None


def test_why_ray_does_not_start_or_does_not_take_us_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_TMPDIR", "/scratch")
    cluster = Named("head:6379", "RAY_ADDRESS=head:6379", "unset RAY_ADDRESS")
    error = ConnectionError("cannot connect")
    error.__cause__ = RuntimeError("no node of it is here\nsee the log")
    assert why_not(error, cluster) == "RAY_ADDRESS=head:6379: no node of it is here; fix that, or unset RAY_ADDRESS"
    full = why_not(OSError(errno.ENOSPC, "No space left on device", "/scratch/ray/session"), None)
    assert full.startswith("Ray cannot use /scratch/ray (No space left on device); set RAY_TMPDIR")
    files = why_not(OSError(errno.EMFILE, "Too many open files", "/lib/x"), None)
    assert files.startswith(
        "Ray does not start on this machine ([Errno 24] Too many open files: '/lib/x'); its log files"
    )
