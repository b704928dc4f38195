"""What a program writes to never ends it: a closed pipe, a full disk behind `> log`, a terminal that is gone."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Lenient:
    """A text stream whose writes raise nothing: characters that it cannot hold are replaced, what is lost is kept.

    `lost`: the first error of a write; from then on nothing is written.
    """

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.lost: Exception | None = None

    def write(self, text: str) -> int:
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
        encoding = self.stream.encoding or "utf-8"
        return text.encode(encoding, "replace").decode(encoding)

    def __getattr__(self, name: str) -> Any:
        """All else is the stream's own: `isatty`, `encoding`, `fileno`, ..."""
        return getattr(self.stream, name)

    @property
    def failed(self) -> bool:
        """Whether somebody misses what was lost: who closes a pipe, as `head` does, has seen enough."""
        return self.lost is not None and not isinstance(self.lost, BrokenPipeError)


@contextmanager
def lenient_output() -> Iterator[tuple[Lenient, Lenient]]:
    """Meanwhile stdout and stderr are lenient. Python's own flush at the exit then finds nothing to complain of."""
    before = sys.stdout, sys.stderr
    out, err = (Lenient(stream or open(os.devnull, "w")) for stream in before)  # noqa: SIM115 (None: closed by `>&-`)
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
