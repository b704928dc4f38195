"""How long a process may write below a folder at a URI before it must ask again who holds it.

A process that slept longer than its lease (a closed laptop, a stopped process, a paused machine) may have been followed
by another, and goes on in the middle of whatever it did. So every write asks first, if the last renewal is too old.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# Linux's monotonic clock stands still while the machine sleeps; elsewhere it does not, and there is no other.
BOOT = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True)
class Moment:
    """By the clock since the machine's start, which nobody sets, and by the wall's, which a paused machine mends."""

    boot: float
    wall: float

    @staticmethod
    def now() -> "Moment":
        return Moment(time.clock_gettime(BOOT), time.time())

    def until(self, later: "Moment") -> float:
        """Seconds, by the clock that saw more of them."""
        return max(later.boot - self.boot, later.wall - self.wall)


@dataclass
class Term:
    """Of what this process holds. `ask` ends the process if another has it; it may raise an OSError."""

    good_s: float
    ask: Callable[[], None]
    renewed: Moment

    def over(self) -> bool:
        return self.renewed.until(Moment.now()) > self.good_s


HELD: dict[Path, Term] = {}  # by folder, of this process


def confirm(path: Path) -> None:
    """Before something appears at the path's URI, or goes there: still ours, or nobody's; else the process ends."""
    for folder, term in list(HELD.items()):
        if path.is_relative_to(folder) and term.over():
            term.ask()
