"""A process that slept longer than its lease, stopped and continued by signals, writes nothing once it is followed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cca_ray.storage import lease
from cca_ray.storage.lease import LEASE, leased
from cca_ray.storage.mirror import pull, push
from cca_ray.storage.term import BOOT, HELD, Moment, confirm
from cca_ray.storage.uris import local_path
from tests.processes import begin
from tests.storage.conftest import UriOf

STALE_S = 2.0

# Holds a lease, and does what it is told on stdin. Nothing is renewed: what it notices, it notices as it writes.
DRIVER = f"""
import sys
from pathlib import Path
from cca_ray.storage import lease
from cca_ray.storage.mirror import push, push_database, remove
from cca_ray.storage.uris import local_path
lease.STALE_S, lease.RENEW_S = {STALE_S}, 3600.0
folder = local_path(sys.argv[1])
folder.mkdir(parents=True)
file = folder / "file"
with lease.leased(folder):
    print("holds", flush=True)
    for order in sys.stdin:
        word, _, source = order.strip().partition(" ")
        if word == "push":
            file.write_text("the driver's")
            push(file)
        elif word == "push_database":
            file.write_bytes(b"")
            push_database(file)
        elif word == "remove":
            remove(file)
        else:
            push(file, Path(source))
        print("done", flush=True)
"""


@pytest.fixture
def uri(uri_of: UriOf, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setattr(lease, "STALE_S", STALE_S)
    return uri_of("run")


@pytest.fixture
def driver(uri: str, tmp_path: Path) -> subprocess.Popen[str]:
    around = {**os.environ, "CCA_RAY_CACHE": str(tmp_path / "sleeper")}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    process = begin([sys.executable, "-c", DRIVER, uri], env=around, text=True, **pipes)
    assert process.stdout is not None
    assert process.stdout.readline() == "holds\n"
    return process


def tell(driver: subprocess.Popen[str], order: str) -> None:
    assert driver.stdin is not None
    driver.stdin.write(f"{order}\n")
    driver.stdin.flush()


def answer(driver: subprocess.Popen[str]) -> str:
    assert driver.stdout is not None
    return driver.stdout.readline()


def state(driver: subprocess.Popen[str]) -> str:
    return Path(f"/proc/{driver.pid}/stat").read_text().rpartition(")")[2].split()[0]


def sleep(driver: subprocess.Popen[str]) -> None:
    """Longer than its lease."""
    driver.send_signal(signal.SIGSTOP)
    end = time.monotonic() + 10
    while state(driver) != "T":
        assert time.monotonic() < end
        time.sleep(0.01)
    time.sleep(STALE_S + 0.5)


@contextmanager
def following(uri: str) -> Iterator[Path]:
    """Another machine takes the lease, and writes."""
    folder = local_path(uri)
    folder.mkdir(parents=True)
    with leased(folder):
        (folder / "file").write_text("the follower's")
        push(folder / "file")
        yield folder / "file"


def stopped(driver: subprocess.Popen[str]) -> str:
    """What it says as it ends."""
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 2, said
    return said


def stays_the_followers(file: Path) -> bool:
    return pull(file) and file.read_text() == "the follower's"


@pytest.mark.parametrize("order", ["push", "push_database", "remove"])
def test_who_slept_and_was_followed_writes_nothing(order: str, uri: str, driver: subprocess.Popen[str]):
    tell(driver, "push")
    assert answer(driver) == "done\n"
    sleep(driver)
    with following(uri) as file:
        driver.send_signal(signal.SIGCONT)
        tell(driver, order)
        said = stopped(driver)
        assert re.fullmatch(rf"error: .*: taken over by process {os.getpid()} on .*\n", said)
        assert stays_the_followers(file)


def test_who_slept_while_it_wrote_does_not_finish_also_if_the_follower_has(
    uri: str, driver: subprocess.Popen[str], tmp_path: Path
):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    tell(driver, f"pipe {pipe}")
    with pipe.open("wb", buffering=0) as source:
        source.write(b"half")
        sleep(driver)
        with following(uri) as file:
            pass
        driver.send_signal(signal.SIGCONT)
    assert stopped(driver).endswith("taken over by another process\n")
    assert stays_the_followers(file)


def test_who_slept_and_was_not_followed_goes_on(uri: str, driver: subprocess.Popen[str]):
    sleep(driver)
    driver.send_signal(signal.SIGCONT)
    tell(driver, "push")
    assert answer(driver) == "done\n"
    assert driver.stdin is not None
    driver.stdin.close()
    assert driver.wait(60) == 0
    file = local_path(uri) / "file"
    assert pull(file)
    assert file.read_text() == "the driver's"
    assert not pull(file.with_name(LEASE))


@pytest.mark.parametrize("clock", ["boot", "wall"])
def test_a_sleep_is_seen_by_either_clock(clock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """That of a machine, which ours may not do: the clocks go on, each alone. One of them counts a machine's sleep."""
    assert BOOT == time.CLOCK_BOOTTIME
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    folder = local_path((tmp_path / "there").as_uri())
    folder.mkdir(parents=True)
    with leased(folder):
        asked: list[Path] = []
        HELD[folder].ask = lambda: asked.append(folder)
        now = Moment.now()
        for slept, expected in ((0.0, []), (lease.STALE_S, [folder])):
            then = {"boot": now.boot, "wall": now.wall, clock: getattr(now, clock) + slept}
            monkeypatch.setattr(Moment, "now", lambda then=then: Moment(**then))
            confirm(folder.parent / "beside")
            assert asked == []
            confirm(folder / "file")
            assert asked == expected
