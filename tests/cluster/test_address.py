"""What the environment names as a cluster: real sockets, and a real Ray."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import ray

from cca_ray.cluster import address
from cca_ray.cluster.address import Named, check_cluster, check_connection, heeding_cluster, named_cluster
from cca_ray.cluster.ray_compat import RECONNECT, Versions, cluster_versions, own_versions, same_versions
from cca_ray.errors import ConfigError
from tests.cluster.versions import said_to_be
from tests.ports import free_port

CURE = "unset RAY_ADDRESS to run on this machine alone"


@contextmanager
def silent() -> Iterator[int]:
    """The port of somebody who takes every call and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@contextmanager
def web() -> Iterator[int]:
    """The port of a web server."""
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def check(port: int) -> None:
    check_cluster(Named(f"127.0.0.1:{port}", "RAY_ADDRESS=head:6379", CURE))


@pytest.mark.parametrize(
    "value", ["localhost", " ", "head:", ":6379", "head:port", "head:0", "head:99999", "head:-1", "Local", "10.0.0.1"]
)
def test_what_is_no_address_is_said_to_be_none(monkeypatch: pytest.MonkeyPatch, value: str):
    monkeypatch.setenv("RAY_ADDRESS", value)
    with pytest.raises(ConfigError) as error:
        named_cluster()
    assert str(error.value) == f"RAY_ADDRESS={value}: expected HOST:PORT, auto or local"


def test_a_ray_client_is_told_how_to_run(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    with pytest.raises(ConfigError, match=r"RAY_ADDRESS=ray://head:10001: .*`ray job submit`"):
        named_cluster()


@pytest.mark.parametrize("value", ["local", ""])
def test_a_ray_of_our_own_is_no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str):
    monkeypatch.setenv("RAY_ADDRESS", value)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    assert named_cluster() is None


def test_a_cluster_that_ray_start_wrote_down_is_named_by_that_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    file = tmp_path / "ray" / "ray_current_cluster"
    file.parent.mkdir()
    file.write_text("10.1.2.3:6379")
    named = named_cluster()
    assert named is not None
    assert (named.address, named.source) == ("10.1.2.3:6379", f"{file}, 10.1.2.3:6379")
    assert "RAY_ADDRESS=local" in named.cure


def test_who_is_not_there_is_told_within_seconds(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(address, "ANSWER_S", 1.0)
    with silent() as nobody, web() as other:
        whys = {free_port(): "Connection refused", other: "the server there is not Ray", nobody: "no answer"}
        for port, why in whys.items():
            begun = time.monotonic()
            with pytest.raises(ConfigError) as error:
                check(port)
            assert str(error.value) == (
                f"RAY_ADDRESS=head:6379: no Ray cluster answers there ({why}); start it, or {CURE}"
            )
            assert time.monotonic() - begun < 5


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a..b", "x" * 80])
def test_a_host_that_nobody_knows_is_told(host: str):
    with pytest.raises(ConfigError, match="no Ray cluster answers there"):
        check_cluster(Named(f"{host}:6379", "RAY_ADDRESS", CURE))


def test_a_ray_of_our_versions_is_taken(ray_here: None):
    gcs = ray.get_runtime_context().gcs_address
    assert cluster_versions(gcs, 10) == own_versions()
    check_cluster(Named(gcs, "RAY_ADDRESS", CURE))


@pytest.mark.parametrize("theirs", [Versions("2.9.0", own_versions().python), Versions(ray.__version__, "3.9.1")])
def test_a_cluster_of_another_ray_or_python_is_told_with_both_versions(ray_here: None, theirs: Versions):
    with said_to_be(theirs) as gcs, pytest.raises(ConfigError) as error:
        check_cluster(Named(gcs, "RAY_ADDRESS=head:6379", CURE))
    assert str(error.value) == (
        f"RAY_ADDRESS=head:6379: the cluster has {theirs}, this process has {own_versions()}; install the same "
        f"versions here, or {CURE}"
    )


def test_versions_are_compared_as_ray_does(monkeypatch: pytest.MonkeyPatch):
    major, minor, patch = own_versions().python.split(".")
    other = Versions(ray.__version__, f"{major}.{minor}.{int(patch) + 1}")
    assert not same_versions(other)
    monkeypatch.setenv("RAY_DEFAULT_PYTHON_VERSION_MATCH_LEVEL", "minor")
    assert same_versions(other)


def test_a_verb_ends_with_one_line_if_the_cluster_is_gone_or_wants_another_token(ray_here: None):
    gone, gcs = f"127.0.0.1:{free_port()}", ray.get_runtime_context().gcs_address
    command = [sys.executable, "-c", "from cca_ray.terminal.console import run\nfrom cca_ray.cluster.session import "
               "start_ray\ndef main() -> None:\n    start_ray()\nrun(main)"]  # fmt: skip
    settings = {gone: {}, gcs: {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64}}
    ran = {
        where: subprocess.run(command, env={**os.environ, **more, "RAY_ADDRESS": where}, capture_output=True, text=True)
        for where, more in settings.items()
    }
    assert {(done.returncode, done.stdout) for done in ran.values()} == {(2, "")}
    (line,) = ran[gone].stderr.splitlines()
    assert line.startswith(f"error: RAY_ADDRESS={gone}")
    assert "Connection refused" in line
    assert CURE in line
    (line,) = ran[gcs].stderr.splitlines()
    assert line.startswith(f"error: RAY_ADDRESS={gcs}: this cluster does not accept our token")


def test_who_works_on_a_cluster_hears_that_it_has_ended(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(address, "LOOK_S", 0.05)
    monkeypatch.setenv(RECONNECT, "50")
    stop = threading.Event()
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        where = f"127.0.0.1:{server.getsockname()[1]}"

        def work() -> None:
            with heeding_cluster(where, stop.set):
                assert not stop.wait(0.5)
                server.close()
                assert stop.wait(10)
                raise ZeroDivisionError  # whatever follows from it

        with pytest.raises(ConfigError) as error:
            work()
    assert str(error.value) == f"the Ray at {where} has ended; run the same command again to continue"


HEARS_NOTHING = """
import sys, time
from cca_ray.cluster import address

address.LOOK_S, address.END_S = 0.05, 0.2
with address.heeding_cluster(sys.argv[1], lambda: None):
    time.sleep(100)
"""


def test_who_hears_nothing_is_ended_with_the_same_line():
    where = f"127.0.0.1:{free_port()}"
    command = [sys.executable, "-c", HEARS_NOTHING, where]
    done = subprocess.run(command, env={**os.environ, RECONNECT: "50"}, capture_output=True, text=True, timeout=90)
    told = f"error: the Ray at {where} has ended; run the same command again to continue\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", told)


LOSES_ITS_NODE = """
import time, psutil
from cca_ray.cluster import address
from cca_ray.terminal.ray_session import ray_session
from cca_ray.terminal.stream import lenient_output

address.LOOK_S, address.END_S = 0.5, 0.2
with lenient_output(), ray_session(lambda: print("asked to stop", flush=True)):
    (raylet,) = (child for child in psutil.Process().children(recursive=True) if child.name() == "raylet")
    raylet.kill()
    time.sleep(150)
"""


@pytest.mark.slow
def test_who_waits_for_ray_without_a_node_of_its_own_is_ended_too():
    """The cluster's head answers as ever; Ray itself lets its caller wait for ever."""
    command = [sys.executable, "-c", LOSES_ITS_NODE]
    done = subprocess.run(command, env={**os.environ, "RAY_ADDRESS": "local"}, capture_output=True, text=True)
    told = "error: Ray died on this machine; run the same command again to continue\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "asked to stop\n", told)


def test_who_is_connected_to_a_ray_that_has_ended_or_whose_node_has_is_told_to_restart(monkeypatch: pytest.MonkeyPatch):
    with silent() as port:
        there = f"127.0.0.1:{port}"
        for alive in (True, False):
            monkeypatch.setattr(address.ray, "nodes", lambda alive=alive: [{"NodeID": "a", "Alive": alive}])
            with nullcontext() if alive else pytest.raises(ConfigError, match="restart the process"):
                check_connection(there, "a")
    with pytest.raises(ConfigError, match="the Ray of this process has ended; restart the process"):
        check_connection(there, "a")


def test_nobody_asks_ray_after_its_end(monkeypatch: pytest.MonkeyPatch):
    """Ray would end this process, with exit code 1 and nothing said."""
    asking, told = threading.Event(), list[str]()

    def died(node: str) -> bool:
        asking.set()
        time.sleep(0.5)
        told.append("answered")
        return True

    monkeypatch.setattr(address, "died", died)
    monkeypatch.setattr(address, "LOOK_S", 0.01)
    with silent() as port, heeding_cluster(f"127.0.0.1:{port}", lambda: told.append("asked to stop"), "node"):
        assert asking.wait(10)
    assert told == ["answered"]


def test_errors_on_a_cluster_that_is_there_stay_what_they_are():
    with silent() as port, pytest.raises(ZeroDivisionError), heeding_cluster(f"127.0.0.1:{port}", lambda: None):
        print(1 / 0)


def test_who_is_stopped_together_with_the_cluster_was_stopped():
    """As by `timeout`, which ends a whole group of processes."""
    with pytest.raises(KeyboardInterrupt), heeding_cluster(f"127.0.0.1:{free_port()}", lambda: None):
        raise KeyboardInterrupt
