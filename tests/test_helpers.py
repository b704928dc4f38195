"""What the tests themselves stand on."""

import socket
import subprocess
import sys
import time

import psutil
import pytest
from packaging.requirements import Requirement

from tests import oldest, processes
from tests.branches import PARTS, table
from tests.ports import RANGE, free_port


def test_the_lowest_version_of_each_dependency_is_known(capsys: pytest.CaptureFixture[str]):
    oldest.main()
    lines = capsys.readouterr().out.splitlines()
    assert "torch==2.13.*" in lines
    assert "scipy==1.15.*" in lines
    assert all(Requirement(line).specifier for line in lines)


def test_a_port_is_given_to_one_process_alone():
    program = "from tests.ports import free_port; print([free_port() for _ in range(200)])"
    mine = [free_port() for _ in range(200)]
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    theirs = [int(port) for port in found.strip("[]\n").split(",")]
    assert len(set(mine)) == len(set(theirs)) == 200
    assert not set(mine) & set(theirs)
    assert set(mine) <= set(RANGE)
    with socket.socket() as server:  # it is bound by the server, not before
        server.bind(("127.0.0.1", mine[0]))


def test_a_port_that_is_in_use_is_passed_over(monkeypatch: pytest.MonkeyPatch):
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", free_port()))
        used = stranger.getsockname()[1]
        monkeypatch.setattr("tests.ports.RANGE", range(used, used + 1))
        with pytest.raises(AssertionError, match="no port is free"):
            free_port()


def test_a_process_that_a_test_leaves_is_ended_with_its_children():
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '600']).pid, flush=True); input()"
    process = processes.begin([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = psutil.Process(int(process.stdout.readline()))
    processes.end_all()
    assert process.returncode == -9
    end = time.monotonic() + 20
    while child.is_running() and child.status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < end, "the child lives"
        time.sleep(0.01)
    assert not processes.begun


def test_the_table_of_branches_sums_up_packages():
    def file(statements: int, reached: int, branches: int, taken: int) -> dict[str, dict[str, int]]:
        counts = (statements, reached, branches, taken)
        return {"summary": dict(zip(PARTS, counts, strict=True))}

    files = {"a/x.py": file(10, 5, 4, 4), "a/y.py": file(30, 30, 0, 0), "a/b/__init__.py": file(1, 1, 0, 0)}
    assert table({"files": files}).splitlines()[2:] == [
        "| `a` | 40 | 87.5% | 4 | 100.0% |",
        "| `a/b` | 1 | 100.0% | 0 | – |",
        "| all | 41 | 87.8% | 4 | 100.0% |",
    ]
