"""Processes that tests start, and what becomes of those that a test leaves."""

import os
import signal
import subprocess
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
