"""When a line of progress is due where there is no bar, and how long the rest will take."""

import math

FIRST_S, EVERY_S = 5.0, 60.0  # between lines: at first, and from then on twice as long each time, up to this
LONG_S = 30.0  # less is not worth words


class Pace:
    """Of one thing that is made: since when, and how much of it had been done before."""

    def __init__(self, now: float, done: int):
        self.began, self.said, self.before, self.quarter, self.wait = now, now, done, 0, FIRST_S

    def due(self, now: float, done: int, total: int) -> bool:
        """Whether another quarter is done, or nothing was said for long."""
        quarter = 4 * done // total
        if now - self.said >= self.wait:
            self.wait = min(2 * self.wait, EVERY_S)
        elif quarter == self.quarter:
            return False
        self.quarter, self.said = quarter, now
        return True

    def left(self, now: float, done: int, total: int) -> str:
        """Such as `about 12 min left`; nothing if it is soon done, or cannot be told yet."""
        if done <= self.before:
            return ""
        seconds = (now - self.began) * (total - done) / (done - self.before)
        if seconds < LONG_S:
            return ""
        minutes = math.ceil(seconds / 60)
        return f"about {minutes} min left" if minutes < 120 else f"about {minutes / 60:.0f} h left"
