"""Processes that tests start, and what becomes of those that a test leaves."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Any

begun: list[subprocess.Popen[Any]] = []


def begin(command: list[str], **options: Any) -> subprocess.Popen[Any]:
    """`subprocess.Popen`, in a process group of its own, which is killed when the test has ended."""
    begun.append(subprocess.Popen(command, start_new_session=True, **options))
    return begun[-1]


def end_all() -> None:
    """Kill what has not ended, with the processes of its group; a test that failed did not come to it."""
    while begun:
        process = begun.pop()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(20)
        for pipe in (process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def wait_until(
    ready: Callable[[], Any], what: str = "", seconds: float = 150, process: subprocess.Popen[str] | None = None
) -> None:
    """Until it is so. TimeoutError if it is not so by then, AssertionError if `process` has ended before."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain {what and f'until {what}'}")
        assert process is None or process.poll() is None, process.communicate()[0]
        time.sleep(0.02)
