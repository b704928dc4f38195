"""What a program writes to never ends it: a closed pipe, a full disk behind `> log`, a terminal that is gone."""

import logging
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from cca_ray.cluster.ray_compat import ERRORS_THREAD
from cca_ray.errors import COLOURS

NATIVE = 2  # the descriptor of stderr
LOG = logging.getLogger(__name__)


class Lenient:
    """A text stream whose writes raise nothing: characters that it cannot hold are replaced, what is lost is kept.

    `lost`: the first error of a write; from then on nothing is written. What Ray's own thread has to say goes to the
    log.
    """

    def __init__(self, stream: TextIO | None):
        """None: a stream that was closed, as by `>&-`."""
        self.stream = stream or open(os.devnull, "w")  # noqa: SIM115 (for as long as the stream)
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
        if threading.current_thread().name == ERRORS_THREAD:
            if said := COLOURS.sub("", text).strip():
                LOG.info("%s", said)
            return len(text)
        self.attempt(lambda: self.stream.write(self.holdable(text)))
        return len(text)

    def flush(self) -> None:
        self.attempt(self.stream.flush)

    def attempt(self, do: Any) -> None:
        if self.lost is None:
            try:
                do()
            except (OSError, ValueError) as error:  # ValueError: of a stream that is closed
                self.lost = error

    def holdable(self, text: str) -> str:
        encoding = getattr(self.stream, "encoding", None) or "utf-8"
        return text.encode(encoding, "replace").decode(encoding)

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own: `isatty`, `encoding`, `fileno`, ..."""
        return getattr(self.stream, name)

    @property
    def failed(self) -> bool:
        """Whether somebody misses what was lost: who closes a pipe, as `head` does, has seen enough."""
        return self.lost is not None and not isinstance(self.lost, BrokenPipeError)


def lenient(stream: TextIO | None) -> Lenient:
    """The stream, of a program of anybody's, as one that ends nothing."""
    return stream if isinstance(stream, Lenient) else Lenient(stream)


@contextmanager
def native_stderr_to(path: Path) -> Iterator[None]:
    """Meanwhile what libraries write to stderr past Python, as Ray's C++ does, goes to the end of this file.

    What Python writes there goes where it went.
    """
    err = sys.stderr
    try:
        if err is None:
            raise OSError("stderr is closed")
        terminal, file = os.dup(NATIVE), os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    except OSError:  # a closed stderr, or a full disk: that is for those to tell who need it
        yield
        return
    mine = lenient(err)  # that of a script which calls us is a plain one
    before = mine.stream
    ours = is_native(before)  # a notebook's goes elsewhere
    with open(terminal, "w", encoding=before.encoding if ours else None, buffering=1) as stream:
        mine.flush()
        os.dup2(file, NATIVE)
        os.close(file)
        if ours:
            mine.stream, sys.stderr = stream, mine
        try:
            yield
        finally:
            mine.flush()
            if ours:
                mine.stream = before
                if sys.stderr is mine:
                    sys.stderr = err
            os.dup2(terminal, NATIVE)


def is_native(stream: TextIO) -> bool:
    try:
        return stream.fileno() == NATIVE
    except (AttributeError, OSError, ValueError):  # AttributeError: of a script's own, which has no descriptor
        return False


@contextmanager
def lenient_output() -> Iterator[tuple[Lenient, Lenient]]:
    """Meanwhile stdout and stderr are lenient. Python's own flush at the exit then finds nothing to complain of."""
    before = sys.stdout, sys.stderr
    out, err = map(Lenient, before)
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        for stream in (out, err):
            stream.flush()
            if stream.lost is not None:
                with suppress(OSError, ValueError):
                    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.stdout, sys.stderr = before
