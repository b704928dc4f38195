"""How a study stands, drawn for a terminal; and the window that shows it while the study runs."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayError
from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cca_ray.cluster.queue import in_use_now
from cca_ray.search.ledger import Ledger
from cca_ray.storage.mirror import push, remove
from cca_ray.terminal.console import Console
from cca_ray.terminal.snapshot import COMPARING, STATUS, AtWork, DriverStatus, Standing
from cca_ray.terminal.snapshot_of import standing_of

MOST_ROWS = 12  # of running trials, of all sizes; more than a terminal holds would push the rest away
BEAT_S = 2.0  # how often `status.json` is written
PUSH_S = 10.0  # how often, at most, it goes to the study's URI
OFTEN_S = 0.3  # how often, at most, the study is looked at
CLUSTER_S = 5.0  # how often, at most, the cluster is asked
STATES = {"COMPLETE": "completed", "PRUNED": "stopped", "FAIL": "failed"}


def duration(seconds: float) -> str:
    """`0:42`, `1:03:20`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """A rate in four places at most."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def headline(standing: Standing, now: float) -> Text:
    """Size, phase, trials that have ended of those planned, by state, and the time left."""
    ended, left = standing.ended, standing.left(now)
    text = Text.assemble((standing.size, "bold"), f"  {standing.phase} {sum(ended.values())}/{standing.planned}")
    text.append("".join(f", {ended[state]} {name}" for state, name in STATES.items() if state in ended), "dim")
    return text.append("" if left is None else f"; about {duration(left)} left")


def trials_table(at_work: tuple[AtWork, ...], now: float, most: int) -> Table:
    """A row a trial, of the first ones: which, how far, images/s, FID at its last rung, time left."""
    table = Table.grid(padding=(0, 1, 0, 0), expand=True)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column(width=10)
    for _ in range(4):
        table.add_column(justify="right", no_wrap=True)
    for trial in at_work[:most]:
        left = trial.left(now)
        table.add_row(
            Text.assemble((f" {trial.arm} {trial.number + 1}/{trial.trials}", "cyan"), f" {trial.settings}"),
            ProgressBar(total=trial.total or 1, completed=trial.step),
            f"{trial.step}/{trial.total}" if trial.total else "starts",
            f"{count(trial.images_per_second)} img/s" if trial.images_per_second else "",
            "" if trial.fid is None else f"FID {trial.fid:.2f}",
            "" if left is None else duration(left),
        )
    if len(at_work) > most:
        table.add_row(Text(f" … and {len(at_work) - most} more", "dim"))
    return table


def best_line(standing: Standing) -> Text:
    if standing.best is None:
        return Text("best     none has reached its last rung yet", "dim")
    best = standing.best
    return Text.assemble(
        "best     ", (f"FID {best.fid:.2f}", "bold green"), f"  {best.settings}  (search {best.number + 1})"
    )


def cluster_line(driver: DriverStatus) -> Text:
    """What is in use, and by this study of each type of card."""
    parts = [f"{kind} {used:g}/{total:g} in use" for kind, (used, total) in driver.cluster.items()]
    cards: dict[str, int] = {}
    for trial in (trial for standing in driver.standings for trial in standing.at_work):
        if trial.accelerator:
            cards[trial.accelerator] = cards.get(trial.accelerator, 0) + trial.workers
    held = ", ".join(f"{workers} on {card}" for card, workers in sorted(cards.items()))
    parts += [f"workers: {held}"] * bool(held)
    return Text(f"cluster  {'; '.join(parts) or 'not asked yet'}", "dim")


def size_view(driver: DriverStatus, standing: Standing, now: float) -> list[RenderableType]:
    """One size at work."""
    if standing.phase == COMPARING:
        what = "base, guided base, control and finalists on fresh noise"
        below: RenderableType = Text(f" {what}, for {duration(now - standing.at)}")
    else:
        below = trials_table(standing.at_work, now, max(1, MOST_ROWS // len(driver.standings)))
    return [headline(standing, now), below, best_line(standing)]


def last_lines(driver: DriverStatus) -> list[RenderableType]:
    """What all sizes share: the cluster, and what is amiss with MLflow."""
    searching = any(standing.phase != COMPARING for standing in driver.standings)
    lines: list[RenderableType] = [cluster_line(driver)] if searching else []
    return lines + ([Text(f"MLflow   {driver.mlflow}", "yellow")] if driver.mlflow else [])


def view(driver: DriverStatus, now: float) -> RenderableType:
    """The study at work. `now`: Unix time."""
    parts = [part for standing in driver.standings for part in size_view(driver, standing, now)]
    return Group(*parts, *last_lines(driver)) if parts else Text("")


class Window:
    """Shows how a study stands: on the terminal, and in `status.json`, which goes when the driver ends.

    `mlflow` says what is amiss with it. A context manager.
    """

    def __init__(self, console: Console, folder: Path, driver: DriverStatus, mlflow: Callable[[], str] = str):
        self.console, self.folder, self.driver, self.mlflow = console, folder, driver, mlflow
        self.lock = threading.Lock()  # sizes may run side by side
        self.asked = -math.inf
        self.seen: dict[str, tuple[float, set[str]]] = {}  # of each size: when, and Tune's ids of its trials
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self.beat, name="status", daemon=True)

    def __enter__(self) -> "Window":
        self.thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.console.clear()
        self.ending.set()
        self.thread.join()
        with suppress(OSError):
            remove(self.folder / STATUS)

    def beat(self) -> None:
        """The thread: a sign of life."""
        pushed = -math.inf
        while True:
            with suppress(OSError):  # a full disk is for those to tell who need it
                self.driver.model_copy(update={"at": time.time()}).write(self.folder)
                if time.monotonic() - pushed > PUSH_S:
                    push(self.folder / STATUS)
                    pushed = time.monotonic()
            if self.ending.wait(BEAT_S):
                return

    def tell(self, **changes: Any) -> None:
        """What has changed of the driver's status."""
        with self.lock:
            self.driver = self.driver.model_copy(update=changes)

    def show(self, ledger: Ledger) -> bool:
        """Whether trials' steps are seen on the terminal."""
        size, now, at_work = ledger.config.name, time.monotonic(), set(ledger.running)
        looked, before = self.seen.get(size, (-math.inf, None))
        if at_work != before or now - looked > OFTEN_S:
            self.seen[size] = now, at_work
            kept = self.driver.of(size) if at_work and at_work == before else None
            self.replace(size, standing_of(ledger, kept))
            self.tell(mlflow=self.mlflow())
        if now - self.asked > CLUSTER_S:
            self.asked = now
            with suppress(RayError):
                self.tell(cluster=in_use_now())
        self.console.keep_below(lambda: view(self.driver, time.time()))
        return self.console.terminal

    def replace(self, size: str, standing: Standing | None) -> None:
        """How this size stands; None: it is not at work."""
        with self.lock:
            by_size = {s.size: s for s in self.driver.standings if s.size != size}
            by_size |= {size: standing} if standing else {}
            ordered = tuple(by_size[name] for name in self.driver.sizes if name in by_size)
            self.driver = self.driver.model_copy(update={"standings": ordered})

    def hide(self, size: str) -> None:
        """It has ended."""
        self.seen.pop(size, None)
        self.replace(size, None)
        if not self.driver.standings:
            self.console.clear()
