"""How far work on a collection of images is."""

import time

from cca_ray.terminal.console import Console

SAY_EVERY_S = 10.0


class Pace:
    """Progress with images/s and the time left."""

    def __init__(self, console: Console):
        self.console, self.started, self.before, self.said = console, time.monotonic(), -1, -SAY_EVERY_S

    def __call__(self, done: int, total: int, unreadable: int) -> None:
        now = time.monotonic()
        if self.before < 0:
            self.before, self.started = done, now
            if done:
                self.console.say(f"{done:,} of {total:,} images were done before")
            return
        rate = (done - self.before) / max(now - self.started, 1e-9)
        if now - self.said < SAY_EVERY_S and done < total:
            return
        self.said = now
        left = f"  {(total - done) / rate / 60:,.0f} min left" if done < total else ""
        lost = f"  {unreadable} unreadable" if unreadable else ""
        self.console.say(f"{done:,}/{total:,} images  {rate:,.1f} images/s{left}{lost}")
