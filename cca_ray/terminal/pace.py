"""When a line of progress is due where there is no bar, and how long the rest will take."""

import math

EVERY_S = 60.0
LONG_S = 30.0  # less is not worth words


class Pace:
    """Of one thing that is made: since when, and how much of it had been done before."""

    def __init__(self, now: float, done: int):
        self.began, self.said, self.before, self.quarter = now, now, done, 0

    def due(self, now: float, done: int, total: int) -> bool:
        """Whether another quarter is done, or a minute has passed since the last line."""
        quarter = 4 * done // total
        if quarter == self.quarter and now - self.said < EVERY_S:
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
