"""The sizes of a study: one after another, or side by side; what small ones find, larger ones of the family try."""

import logging
import math
import shutil
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, Queue

import psutil
import ray
from ray.exceptions import RayError

from cca_ray.cluster.placement import GIB, in_this_process
from cca_ray.cluster.stopping import LOOK_S, Stop
from cca_ray.config import StudyConfig
from cca_ray.contracts import SizeSummary
from cca_ray.errors import first_line, user_message, without_secrets
from cca_ray.reporting.lessons import lessons_for
from cca_ray.reporting.results import read_database
from cca_ray.reporting.summary import picture, table, write_summary
from cca_ray.search.accounts import COUNTED, TERMS, Terms, seconds_of_study
from cca_ray.search.arms import Smaller
from cca_ray.search.budget import Limits
from cca_ray.search.learning import Lesson
from cca_ray.search.mlflow_pages import experiment_of, register_champion
from cca_ray.search.records import used_device_seconds
from cca_ray.search.size_study import SizeResult, SizeStudy, StudyContext
from cca_ray.storage.mirror import pull, push
from cca_ray.storage.uris import naming_uris, to_uri
from cca_ray.terminal.console import Console
from cca_ray.terminal.window import Window
from cca_ray.tracking.pyfunc import write_champion
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.bases_ahead import bases_ahead
from cca_ray.training.small_base import resolve
from cca_ray.verdict import noise, verdict

LOG = logging.getLogger(__name__)
GROUP_GIB = 1.12  # what a trial that is a worker group holds on the driver's machine (benchmarks/head.py)


@dataclass(frozen=True)
class UsedBefore:
    """What a study has used. `seconds`: of wall time, in earlier runs; `device_hours`: in all, by size.

    `finished`: what sizes were asked for that are finished; version 0.1.0 did not keep it.
    """

    seconds: float = 0.0
    device_hours: Mapping[str, float] = field(default_factory=dict)
    finished: Mapping[str, Terms] = field(default_factory=dict)


@dataclass(frozen=True)
class Budget:
    """What all sizes together may use, over all runs of the command; None: no bound."""

    minutes: float | None = None  # of wall time, of this run from `started` on
    device_hours: float | None = None
    started: float = field(default_factory=time.monotonic)

    @property
    def bound(self) -> bool:
        return bool(self.minutes or self.device_hours)

    def share(self, used: UsedBefore, size: str, sizes_left: int, side_by_side: bool) -> Limits:
        """What the next size may use: an equal part of what is left, so that what one leaves goes to the next.

        What it has used itself comes on top, for its limits count all that it uses. Side by side all have the same
        time.
        """
        here = time.monotonic() - self.started
        seconds = 60 * self.minutes - used.seconds - here if self.minutes else math.inf
        hours = self.device_hours - sum(used.device_hours.values()) if self.device_hours else math.inf
        in_all = hours / sizes_left + used.device_hours.get(size, 0.0)
        return Limits(seconds / (1 if side_by_side else sizes_left), 3600 * in_all)


def used_before(database: Path, at: float) -> UsedBefore:
    """By the study's database, if there is one. `at`: when this run began, in seconds since 1970."""
    if not pull(database):
        return UsedBefore()
    sizes = read_database(database)
    accounts = {size: arms["control"].attributes for size, arms in sizes.items() if "control" in arms}
    finished = {
        size: Terms.model_validate(kept[TERMS]) for size, kept in accounts.items() if {TERMS, COUNTED} <= {*kept}
    }
    hours = {
        size: sum(used_device_seconds(t for arm in arms.values() for t in arm.trials).values()) / 3600
        for size, arms in sizes.items()
    }
    return UsedBefore(seconds_of_study(accounts.values(), at), hours, finished)


@dataclass(frozen=True)
class Study:
    """One study: its name, where it lies, and who is told of it. `trackers`: by experiment."""

    name: str
    folder: Path
    trackers: Mapping[str, Tracker]
    console: Console
    window: Window


def smaller_sizes(sizes: Sequence[SizeSummary], family: str) -> list[Smaller]:
    """Those of a family, of sizes that are done; the last one first."""
    found = [size for size in reversed(sizes) if size.family == family]
    return [Smaller(size.size, size.winner.params, size.parameters) for size in found]


def too_many_at_once(configs: Sequence[StudyConfig], side_by_side: bool, have_gib: float) -> str:
    """What to tell of a machine of so much memory that cannot drive all trials that may run at a time; else nothing."""
    groups = [0 if in_this_process(config.placement) else config.search.max_concurrent for config in configs]
    most = sum(groups) if side_by_side else max(groups)
    if GROUP_GIB * most < 0.9 * have_gib:  # the rest is the driver's, Ray's and MLflow's
        return ""
    return (
        f"{most} trials at a time hold about {GROUP_GIB * most:.0f} GiB on this machine, which has {have_gib:.0f}: "
        "use a larger one, or a smaller --max-concurrent"
    )


def finish_size(result: SizeResult, folder: Path, tracker: Tracker) -> SizeSummary:
    """Keep the winner and the picture of one size, in the study's folder and in MLflow; where the winner is then."""
    folder.mkdir(parents=True, exist_ok=True)
    winner = folder / "winner.pt"
    if (weights := Path(result.summary.checkpoint)) != winner:
        pull(weights)
        shutil.copyfile(weights, winner)
    size = result.summary.model_copy(update={"checkpoint": to_uri(winner)})
    write_champion(folder, folder.parent.parent, result.sampling, Path(result.tokenizer))
    tracker.file(size.mlflow.key, picture(folder / "samples.png", size, result.images))
    register_champion(tracker, size, f"{table([size])}\n\n{noise([size])}.")
    push(folder)
    return size


class Sizes:
    """The sizes at work. Each runs in a thread, so that the main thread is free for signals."""

    def __init__(self, study: Study, configs: Sequence[StudyConfig], budget: Budget, side_by_side: bool, stop: Stop):
        self.study, self.configs, self.budget, self.side_by_side, self.stop = study, configs, budget, side_by_side, stop
        self.began = time.time()
        self.done: dict[str, SizeSummary] = {}
        self.ended: Queue[tuple[StudyConfig, SizeResult | BaseException]] = Queue()
        self.ahead: dict[str, ray.ObjectRef] = {}  # bases that are made meanwhile, by their size's name
        self.over = frozenset[str]()  # sizes that an earlier run finished, with a budget that was no smaller

    def sizes(self, upto: int | None = None) -> list[SizeSummary]:
        """The summaries of those of the first sizes that are done, in order."""
        return [self.done[config.name] for config in self.configs[:upto] if config.name in self.done]

    def run(self) -> list[SizeSummary]:
        """The summaries of all sizes.

        Raises KeyboardInterrupt if it was stopped. ValueError if a size cannot go on: others at work end first. Of
        several that cannot, the first.
        """
        have_gib = psutil.virtual_memory().total / GIB
        if warning := too_many_at_once(self.configs, self.side_by_side, have_gib):
            self.study.console.say(warning)
        self.over = self.finished_before()
        at_once = len(self.configs) if self.side_by_side else 1
        begun, over, errors = 0, 0, list[BaseException]()
        while True:
            while begun < len(self.configs) and begun - over < at_once and not errors:
                self.begin(begun)
                begun += 1
                if begun == 1 and not self.side_by_side:
                    self.ahead = bases_ahead(self.configs[1:], self.study.folder.parent)
            if over == begun:
                break
            ended, error = self.await_one()
            over += 1
            if error is not None:
                errors.append(error)
                self.tell_failed(ended, error, others=begun > over)
        if errors:
            self.stop.check()
            raise errors[0]
        return self.sizes()

    def terms(self, config: StudyConfig) -> Terms:
        return Terms.of(config, self.budget.minutes, self.budget.device_hours)

    def finished_before(self) -> frozenset[str]:
        """The sizes that an earlier run finished, if no more is asked of them now, nor more given to them.

        Only a budget makes a difference between these and others.
        """
        if not self.budget.bound:
            return frozenset()
        finished = used_before(self.study.folder / "study.db", self.began).finished
        known = [config for config in self.configs if config.name in finished]
        return frozenset(config.name for config in known if finished[config.name].covers(self.terms(config)))

    def limits_of(self, number: int) -> Limits:
        """What this size may use: a share of what is left, or nothing more if it is finished."""
        config = self.configs[number]
        if not self.budget.bound:
            return Limits()
        if config.name in self.over:
            return Limits(seconds=0.0)
        left = sum(c.name not in self.over for c in (self.configs if self.side_by_side else self.configs[number:]))
        used = used_before(self.study.folder / "study.db", self.began)
        return self.budget.share(used, config.name, left, self.side_by_side)

    def begin(self, number: int) -> None:
        """Start the thread of this size. Its base is made before, if it is an embedded one."""
        config, study = self.configs[number], self.study

        def progress(what: str, done: int, total: int) -> None:
            self.stop.check()
            study.console.progress(what, done, total)

        try:
            study.window.doing(config.name, "getting its base ready")
            self.await_base(config)
            resolved = resolve(config, study.folder.parent, progress)
            limits = self.limits_of(number)
        except (ValueError, OSError, KeyboardInterrupt) as error:
            self.ended.put((config, error))
            return

        tracker = study.trackers[experiment_of(config)]
        window = study.window
        context = StudyContext(
            study.name,
            study.folder,
            tracker,
            study.console.say,
            window.show,
            window.doing,
            self.stop,
            self.terms(config),
        )

        def smaller() -> list[Smaller]:
            return smaller_sizes(self.sizes(number), config.base.family)

        def lessons() -> Sequence[Lesson]:
            taught = lessons_for(config, study.folder)
            for line in taught.left_out:
                study.console.say(f"{config.name}  cannot learn from {line}")
            return taught.lessons

        def work() -> None:
            try:
                outcome: SizeResult | BaseException = SizeStudy(resolved, context, limits, smaller, lessons).run()
            except BaseException as error:
                outcome = error
            self.ended.put((config, outcome))

        threading.Thread(target=work, name=config.name, daemon=True).start()

    def await_base(self, config: StudyConfig) -> None:
        """Until the other process that makes it has ended. If it failed, this one meets the same and says what ails."""
        if (made := self.ahead.pop(config.name, None)) is None:
            return
        if not ray.wait([made], timeout=0)[0]:
            self.study.console.say(f"{config.name}  its base is still being made")
            self.study.window.doing(config.name, "making its base")
        with suppress(RayError):
            self.stop.get([made])

    def tell_failed(self, size: str, error: BaseException, others: bool) -> None:
        """Who runs several side by side hears of each at once. `others`: whether there are any left."""
        if not self.side_by_side or self.stop.wished.is_set() or isinstance(error, KeyboardInterrupt):
            return
        why = user_message(error)
        if why is None:  # a fault of ours
            LOG.error("%s", size, exc_info=error)
        why = without_secrets(naming_uris(why or f"{type(error).__name__}: {first_line(error)}")).removeprefix(
            f"{size}: "
        )
        self.study.window.failed(size, why)
        self.study.console.say(f"{size}  failed: {why}" + "; the others go on" * others)

    def await_one(self) -> tuple[str, BaseException | None]:
        """Wait for the next size to end, and keep what it found: its name, and what ended it, if it found nothing."""
        patience = math.inf
        while True:
            with suppress(Empty):
                config, outcome = self.ended.get(timeout=LOOK_S)
                break
            if self.stop.wished.is_set():
                patience = min(patience, time.monotonic() + self.stop.patience_s)
                if time.monotonic() > patience:
                    self.stop.leave()
                    raise KeyboardInterrupt
        study = self.study
        try:
            if isinstance(outcome, BaseException):
                return config.name, outcome
            study.window.doing(config.name, "writing its results")
            size = finish_size(outcome, study.folder / config.name, study.trackers[experiment_of(config)])
            self.done[config.name] = size
            write_summary(study.folder, self.sizes())
        except OSError as error:  # others may be at work
            return config.name, error
        finally:
            study.window.hide(config.name)
        study.console.say(verdict(size))
        return config.name, None
