"""One process at a time in a folder, and which one it is."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cca_ray.errors import ConfigError

LOCK = "lock"  # the file's name
LOOK_S = 0.2  # how long who only looks may be in the way


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when the process ends. ConfigError, naming the holder, if held."""
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOOK_S)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                lock.seek(0)
                raise ConfigError(f"{folder}: in use by process {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def holder(folder: Path) -> str:
    """Which process holds the folder, as `PID on HOST`; empty if none does, as far as this machine can see."""
    try:
        with (folder / LOCK).open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return lock.read().strip()
    except OSError:
        pass
    return ""
