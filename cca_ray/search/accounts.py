"""The wall time of a study, over all runs of the command: also of those that were interrupted, failed or were killed.

Each run of a size is kept in Optuna's storage with its begin and its length so far; a killed one up to its last mark.
"""

import math
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna

from cca_ray.config import StudyConfig
from cca_ray.contracts import Contract
from cca_ray.search.records import KEEP_S, STORAGE_ERRORS

RUNS, EARLIER, COUNTED = "runs", "seconds", "seconds_until"  # attributes of a size's control; version 0.1.0 had no runs
TERMS = "terms"  # attribute of a size's control, once it is finished: see `Terms`


class Terms(Contract):
    """What a size may use with all others of its study, and how far it goes; None: no bound.

    `extent`: of search and control; another one is other work.
    """

    minutes: float | None = None
    device_hours: float | None = None
    extent: tuple[float, ...] = ()

    @staticmethod
    def of(config: StudyConfig, minutes: float | None, device_hours: float | None) -> "Terms":
        """Without a bound where there is none, or 0."""
        search = config.search
        gain = search.stop_when.expected_gain if search.stop_when else 0.0
        extent = (search.trials, search.replicates, config.control.widen, gain)
        return Terms(minutes=minutes or None, device_hours=device_hours or None, extent=extent)

    def covers(self, other: "Terms") -> bool:
        """Whether who had this is done when it is asked for the other: the same, with no more to use."""
        pairs = ((self.minutes, other.minutes), (self.device_hours, other.device_hours))
        return self.extent == other.extent and all(a is None or (b is not None and b <= a) for a, b in pairs)


@dataclass(frozen=True)
class Run:
    """A run of a size: when it began, in seconds since 1970, and how long it took."""

    began: float
    seconds: float


def runs_of(attributes: Mapping[str, Any]) -> tuple[Run, ...]:
    """That a size's control keeps."""
    return tuple(Run(*pair) for pair in attributes.get(RUNS, ()))


def seconds_of_size(attributes: Mapping[str, Any]) -> float:
    """Wall time of a size, over all its runs."""
    earlier: float = attributes.get(EARLIER, 0.0)
    return earlier + sum(run.seconds for run in runs_of(attributes))


def seconds_of_study(sizes: Iterable[Mapping[str, Any]], before: float = math.inf) -> float:
    """The same of all sizes together: what they ran side by side counts once. `before`: only runs that began then."""
    sizes = tuple(sizes)
    total, end = sum(float(attributes.get(EARLIER, 0.0)) for attributes in sizes), -math.inf
    runs = (run for attributes in sizes for run in runs_of(attributes) if run.began < before)
    for run in sorted(runs, key=lambda run: run.began):
        total += max(0.0, run.began + run.seconds - max(end, run.began))
        end = max(end, run.began + run.seconds)
    return total


def counted(begun: Mapping[str, int], given: int) -> int:
    """Of the trials that were begun, by arm, how many a finished size may yet have more of: what `COUNTED` counts.

    `given`: the control's learning rates, all of which every size has; of those beyond them there may be more.
    """
    return begun.get("search", 0) + begun.get("replicate", 0) + max(0, begun.get("control", 0) - given)


class RunClock:
    """Counts a run of a size, and writes it down every few seconds while it is entered.

    `memory`: the size's control. `started`: by the monotonic clock; now, unless it is given. `trials`: how many are
    begun; a run that has no more of them than a finished one left, and so nothing to do, counts nothing.
    """

    def __init__(
        self, memory: optuna.Study, trials: Callable[[], int], mark_s: float = KEEP_S, started: float | None = None
    ):
        self.memory, self.trials, self.mark_s = memory, trials, mark_s
        now = time.monotonic()
        self.started = now if started is None else started
        self.began = time.time() - (now - self.started)
        self.before = [[run.began, run.seconds] for run in runs_of(memory.user_attrs)]
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.work, name="clock", daemon=True)

    def mark(self) -> None:
        """Write down how long this run is."""
        if self.memory.user_attrs.get(COUNTED) != self.trials():
            self.memory.set_user_attr(RUNS, [*self.before, [self.began, time.monotonic() - self.started]])

    def finish(self) -> float:
        """The size is finished; its seconds, which change no more."""
        self.stop()
        self.mark()
        self.memory.set_user_attr(COUNTED, self.trials())
        return seconds_of_size(self.memory.user_attrs)

    def stop(self) -> None:
        """No further marks."""
        self.ended.set()
        self.thread.join()

    def work(self) -> None:
        """The thread."""
        while not self.ended.wait(self.mark_s):
            with suppress(*STORAGE_ERRORS):  # who needs the storage to go on says so
                self.mark()

    def __enter__(self) -> "RunClock":
        self.mark()
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()
        with suppress(*STORAGE_ERRORS):
            self.mark()
