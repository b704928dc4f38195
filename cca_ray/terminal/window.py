"""The window on a study while it runs: what the terminal shows, and `status.json`."""

import math
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from ray.exceptions import RayError

from cca_ray.cluster.queue import in_use_now
from cca_ray.search.ledger import Ledger
from cca_ray.storage.mirror import push, remove
from cca_ray.terminal.console import Console
from cca_ray.terminal.live_view import in_a_line, view
from cca_ray.terminal.log_file import LOG_FILE
from cca_ray.terminal.snapshot import STATUS, DriverStatus, SizeSnapshot
from cca_ray.terminal.snapshot_of import snapshot_of

BEAT_S = 2.0  # how often `status.json` is written
PUSH_S = 10.0  # how often, at most, it goes to the study's URI
LOG_S = 60.0  # the same of `log.txt`, if it has changed
OFTEN_S = 0.3  # how often, at most, the study is looked at
CLUSTER_S = 5.0  # how often, at most, the cluster is asked


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
        """The thread: a sign of life, and the log as far as it is."""
        log, pushed, logged, length = self.folder / LOG_FILE, -math.inf, -math.inf, 0
        while True:
            with suppress(OSError):  # a full disk is for those to tell who need it
                self.driver.model_copy(update={"at": time.time()}).write(self.folder)
                if time.monotonic() - pushed > PUSH_S:
                    push(self.folder / STATUS)
                    pushed = time.monotonic()
                if time.monotonic() - logged > LOG_S and log.stat().st_size != length:
                    logged, length = time.monotonic(), log.stat().st_size
                    push(log)
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
            self.replace(size, snapshot_of(ledger, kept))
            self.tell(mlflow=self.mlflow())
        if now - self.asked > CLUSTER_S and not ledger.halted:  # a Ray that has ended gives no answer
            self.asked = now
            with suppress(RayError):
                self.tell(cluster=in_use_now())
        self.keep_below()
        return self.console.terminal

    def keep_below(self) -> None:
        """How the study stands, below all lines; where there is no terminal, in a line now and then."""
        self.console.keep_below(lambda: view(self.driver, time.time()), lambda: in_a_line(self.driver, time.time()))

    def doing(self, size: str, what: str) -> None:
        """What is done for a size before its first trial; nothing: it is done."""
        with self.lock:
            others = {name: told for name, told in self.driver.doing.items() if name != size}
            now = {size: (what, time.time())} if what else {}
            self.driver = self.driver.model_copy(update={"doing": {**others, **now}})
        if what:
            self.keep_below()

    def replace(self, size: str, snapshot: SizeSnapshot | None) -> None:
        """How this size stands; None: it is not at work."""
        with self.lock:
            by_size = {s.size: s for s in self.driver.snapshots if s.size != size}
            by_size |= {size: snapshot} if snapshot else {}
            ordered = tuple(by_size[name] for name in self.driver.sizes if name in by_size)
            self.driver = self.driver.model_copy(update={"snapshots": ordered})

    def failed(self, size: str, why: str) -> None:
        """Others may go on."""
        with self.lock:
            self.driver = self.driver.model_copy(update={"failed": {**self.driver.failed, size: why}})

    def hide(self, size: str) -> None:
        """It has ended."""
        self.seen.pop(size, None)
        self.doing(size, "")
        self.replace(size, None)
        if not self.driver.snapshots and not self.driver.doing:
            self.console.clear()
