"""The wish that a study stop, by Ctrl-C or SIGTERM; and waiting that hears of it."""

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import ray
from ray.util import ActorPool

LOOK_S = 0.5  # how often who waits looks whether to stop
PATIENCE_S = 20.0  # from the wish to stop until who still does not end is left behind


class Stop:
    """A wish that, once it is there, stays. Any thread may wait by it; `KeyboardInterrupt` is how one hears of it."""

    def __init__(self) -> None:
        self.wished = threading.Event()
        self.patience_s = PATIENCE_S
        self._then: list[Callable[[], None]] = []
        self._left: list[Callable[[], None]] = []

    def ask(self, patience_s: float = PATIENCE_S) -> None:
        self.patience_s = patience_s
        self.wished.set()
        for do in list(self._then):
            do()

    @contextmanager
    def calling(self, do: Callable[[], None]) -> Iterator[None]:
        """Meanwhile `do`, which may be called more than once, is called when the wish comes, or if it is there."""
        self._then.append(do)
        try:
            if self.wished.is_set():
                do()
            yield
        finally:
            self._then.remove(do)

    def leave(self) -> None:
        """Who has not ended by now, as it waits for Ray, is left behind."""
        for do in reversed(self._left):
            do()

    @contextmanager
    def leaving(self, do: Callable[[], None]) -> Iterator[None]:
        """Meanwhile `do` is called, by another thread, if this one is left behind: it marks what does not go on."""
        self._left.append(do)
        try:
            yield
        finally:
            self._left.remove(do)

    def check(self) -> None:
        if self.wished.is_set():
            raise KeyboardInterrupt

    def get(self, refs: Sequence[ray.ObjectRef]) -> list[Any]:
        """`ray.get`."""
        waiting, found = list(refs), dict[ray.ObjectRef, Any]()
        while waiting:
            self.check()
            ready, waiting = ray.wait(waiting, timeout=LOOK_S)
            found |= zip(ready, ray.get(ready), strict=True)  # a failure is told at once
        return [found[ref] for ref in refs]

    def map_unordered(self, pool: ActorPool, do: Callable[[Any, Any], Any], items: Iterable[Any]) -> Iterator[Any]:
        """The pool's own."""
        for item in items:
            pool.submit(do, item)
        while pool.has_next():
            self.check()
            try:
                yield pool.get_next_unordered(timeout=LOOK_S)
            except TimeoutError:
                continue


def end_process(number: int) -> None:
    """As a signal that nobody heeds does."""
    os._exit(128 + number)


def interrupt(number: int) -> None:
    """As Ctrl-C does in a program that is not ours to end."""
    raise KeyboardInterrupt


@contextmanager
def heeding_signals(stop: Stop, again: Callable[[int], None] = end_process) -> Iterator[None]:
    """SIGINT or SIGTERM asks to stop; at the second `again` is called. In a thread that is not the main one: nothing.

    So does SIGHUP, of a terminal that was closed, unless `nohup` has it ignored.
    """
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield
        return

    def handle(number: int, frame: Any) -> None:
        if stop.wished.is_set():
            again(number)
        stop.ask()

    heard = [signal.SIGINT, signal.SIGTERM]
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        heard.append(signal.SIGHUP)
    before = {number: signal.signal(number, handle) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
