"""What all `python -m cca_ray.<verb>` share: lines and progress on the terminal, errors of one line, exit code 2."""

import fcntl
import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

import typer
from pydantic import ValidationError
from ray.exceptions import LocalRayletDiedError, RayError
from rich.console import Console as RichConsole
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from cca_ray.config import ConfigError, reason
from cca_ray.mirror import pull
from cca_ray.tokens import LOCK
from cca_ray.uris import here

PACKAGE = Path(__file__).resolve().parent
SPACES = next((p for p in (PACKAGE / "search_spaces", PACKAGE.parent / "search_spaces") if p.is_dir()), PACKAGE)
DEFAULT_SPACES = ("digits_s", "digits_m", "digits_var")
INTERRUPTED = 130  # the exit code of a program that was stopped by Ctrl-C


def find_space(name: str) -> Path:
    """A search space's file: a path or URI, or the bare name of one that comes with the project."""
    path = here(name)
    pull(path)
    shipped = SPACES / f"{path.stem}.yaml"
    bare = path.parent == Path() and not path.exists()
    return shipped if bare and shipped.exists() else path


def place(where: str | Path) -> Path:
    """An option that takes a path or a URI; the local path."""
    try:
        return here(where)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


class Console:
    """Lines with the time since the start; progress as a bar on a terminal, as a line now and then elsewhere."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        self.started = time.monotonic()
        self.bars: Progress | None = None
        self.tasks: dict[str, TaskID] = {}
        self.quarters: dict[str, int] = {}
        self.lock = threading.Lock()  # MLflow's thread speaks too

    def say(self, text: str) -> None:
        with self.lock:
            self.close()
            print(f"{time.monotonic() - self.started:5.0f} s  {text}", file=self.stream, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what`."""
        if not self.stream.isatty():
            quarter = 4 * done // total
            if quarter != self.quarters.get(what, 0):
                self.quarters[what] = quarter
                self.say(f"{what}  {25 * quarter} %")
            return
        if self.bars is None:
            self.bars = Progress(
                TextColumn("        {task.description:16}"),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %"),
                TimeRemainingColumn(),
                console=RichConsole(file=self.stream),
            )
            self.bars.start()
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total)
        self.bars.update(self.tasks[what], completed=done)

    def close(self) -> None:
        """Leave the bars as they are, so that lines can follow."""
        if self.bars is not None:
            self.bars.stop()
            self.bars, self.tasks = None, {}


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Hold the folder's lock, which the system frees when the process ends. ConfigError, naming the holder, if held."""
    with (folder / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise ConfigError(f"{folder}: in use by process {lock.read().strip()}") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()} on {socket.gethostname()}")
        lock.flush()
        yield


def fail(message: str) -> NoReturn:
    """One line on stderr, exit code 2."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[..., Any]) -> None:
    """Run a verb. A mistake of the user's is one line on stderr and exit code 2; a fault of ours is a traceback."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    try:
        code = app(standalone_mode=False)
    except ValidationError as error:
        fail(f"{error.title}: {reason(error)}")
    except typer.TyperException as error:
        fail(error.format_message())
    except LocalRayletDiedError:
        fail("Ray died on this machine; run the same command again to continue")
    except RayError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ValueError | OSError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        fail(str(cause))
    except OSError as error:
        fail(f"{error.filename or 'input/output'}: {error.strerror or error}")
    except ValueError as error:
        fail(str(error))
    if code == INTERRUPTED:
        print("interrupted; run the same command again to continue", file=sys.stderr)
    sys.exit(code or 0)
