"""Where no terminal counts the seconds: a line now and then that says what is still being done."""

import threading
import time
from collections.abc import Callable

FIRST_S, MOST_S = 5.0, 60.0  # of silence before a line: at first, and at most
LOOK_S = 0.5


class Silence:
    """When a line is due: after five seconds without any, then after twice as long each time, up to a minute.

    It begins anew with each phase.
    """

    def __init__(self) -> None:
        self.phase, self.wait = "", FIRST_S

    def due(self, now: float, said: float, phase: str) -> bool:
        """`said`: when the last line was, whoever said it."""
        if phase != self.phase:
            self.phase, self.wait = phase, FIRST_S
        if now - said < self.wait:
            return False
        self.wait = min(2 * self.wait, MOST_S)
        return True


class Patience:
    """A thread that says, when a line is due, what is being done. `doing`: the phase, and that line."""

    def __init__(self, doing: Callable[[], tuple[str, str]], said: Callable[[], float], say: Callable[[str], None]):
        self.doing, self.said, self.say = doing, said, say
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, name="patience", daemon=True)
        self.thread.start()

    def watch(self) -> None:
        silence = Silence()
        while not self.over.wait(LOOK_S):
            phase, line = self.doing()
            if line and not self.over.is_set() and silence.due(time.monotonic(), self.said(), phase):
                self.say(line)

    def end(self) -> None:
        self.over.set()
