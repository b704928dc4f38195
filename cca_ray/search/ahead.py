"""The base's part of the final comparison, which needs no trial: it is scored while trials run, where there is room."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import ray

from cca_ray.cluster.placement import ways, worker_resources
from cca_ray.cluster.queue import nodes_now, queue_of_the_cluster, slots
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import MetricInfo
from cca_ray.placement_config import Placement
from cca_ray.search import blocks
from cca_ray.search.fresh_scores import Anywhere, Chooser, Nowhere, Room, Scores, headline_of
from cca_ray.search.ledger import Ledger
from cca_ray.search.standings import Contender, Standing
from cca_ray.training.trial import trial_folder


@dataclass
class BesideTrials:
    """On workers that no trial of this size wants, where trials stand in no queue.

    `at_once`: how many trials run or may begin.
    """

    placement: Placement
    at_once: Callable[[], int]
    taken: set[str] = field(default_factory=set)

    def take(self, name: str) -> Placement | None:
        left = slots(self.placement, nodes_now()) - self.placement.workers * self.at_once() - len(self.taken)
        if left < 1 or not free_now(self.placement):
            return None
        self.taken.add(name)
        return self.placement

    def give_back(self, name: str) -> None:
        self.taken.discard(name)


def free_now(placement: Placement) -> bool:
    """Whether Ray has what one worker holds: others may be on this cluster."""
    free = ray.available_resources()
    return all(free.get(kind, 0.0) >= amount for kind, amount in worker_resources(placement).items())


@dataclass(frozen=True)
class LastInQueue:
    """On one card, behind all trials that wait for cards, of whatever study.

    Not before the last trial of this size has begun: one that finds a card less takes a slower way for hours.
    """

    placer: Any  # the actor that keeps the queue
    placement: Placement
    storage: Path
    all_begun: Callable[[], bool]

    def take(self, name: str) -> Placement | None:
        if not self.all_begun():
            return None
        ones = [way.model_copy(update={"workers": 1}) for way in self.placement.accelerators]
        alone = self.placement.model_copy(update={"accelerators": tuple(ones)})
        way: Placement | None = ray.get(self.placer.ask_last.remote(self.key(name), alone))
        return way

    def give_back(self, name: str) -> None:
        self.placer.forget.remote(self.key(name))

    def key(self, name: str) -> str:
        return str(trial_folder(self.storage, name))


def room_beside(ledger: Ledger, placement: Placement, storage: Path) -> Room:
    if placement.accelerators:
        return LastInQueue(queue_of_the_cluster(), placement, storage, lambda: ledger.all_begun)
    return BesideTrials(ways(placement)[0], ledger.at_once)


@dataclass(frozen=True)
class BaseStandings:
    """The base without guidance, and at its best scale; all scales that were tried."""

    alone: Standing
    guided: Standing
    scales: tuple[float, ...]


class Ahead:
    """Scores the base in a thread of its own: beside trials as long as they run, then anywhere.

    `metrics`: that are measured; the first one chooses.
    """

    def __init__(self, config: ResolvedStudy, measured: Sequence[MetricInfo], storage: Path, stop: Stop, study: str):
        """`study`: its id."""
        self.config, self.storage = config, storage
        headline = headline_of(config, [metric.name for metric in measured])
        self.metrics = tuple(sorted(measured, key=lambda metric: metric.name != headline))
        self.scores, self.of_trials = (Scores(config, storage, stop, study, Nowhere()) for _ in range(2))
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="ahead")
        self.future: Future[BaseStandings] | None = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.scores.leave()
        self.thread.shutdown(wait=False)

    @contextmanager
    def beside(self, ledger: Ledger) -> Iterator[None]:
        """Meanwhile where its trials leave room."""
        self.scores.room = room_beside(ledger, self.config.placement, self.storage)
        self.begin()
        try:
            yield
        finally:
            self.scores.room = Nowhere()

    def open(self) -> Scores:
        """No trial is at work. The scores that the rest of the comparison makes."""
        self.scores.room = self.of_trials.room = Anywhere(self.config.placement)
        self.begin()
        return self.of_trials

    def result(self) -> BaseStandings:
        assert self.future is not None
        return self.future.result()

    def begin(self) -> None:
        """Once; and again if that has failed, as on a node that was lost."""
        if self.future is None or (self.future.done() and self.future.exception()):
            self.future = self.thread.submit(self.score)

    def score(self) -> BaseStandings:
        config, base = self.config, Contender(f"{self.config.name}-base")
        chooser = Chooser(self.scores, self.metrics[0])
        alone, *_ = self.scores.standings(blocks.of_base(config, base))
        guided, scales = chooser.guided(base, config.score.guidance_scales, config.score.widen_guidance)
        (at_best,) = self.scores.standings(blocks.of_guided_base(config, guided))
        return BaseStandings(alone, at_best, scales)
