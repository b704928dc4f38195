"""Scores on blocks of fresh noise: made where a worker has room, kept in files, and chosen by."""

import math
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import ray

from cca_ray.cluster.queue import as_worker
from cca_ray.cluster.stopping import LOOK_S, Stop
from cca_ray.config import ResolvedStudy, StudyConfig
from cca_ray.contracts import FID, OLD_METRICS, MetricInfo
from cca_ray.evaluation.scoring import Scored
from cca_ray.placement_config import Placement
from cca_ray.search.blocks import Wanted, at_scales, choosing, few_samples, rivals
from cca_ray.search.cards import OnCard
from cca_ray.search.standings import Contender, Standing, contested
from cca_ray.search.widening import next_scale
from cca_ray.storage.uris import to_uri
from cca_ray.training.job import Job
from cca_ray.training.tasks import score_checkpoint


class Block(NamedTuple):
    """A model, with its guidance; the number of a block of noise; how many of its images."""

    contender: Contender
    number: int
    samples: int


def headline_of(config: StudyConfig, measured: Collection[str]) -> str:
    """The metric that chooses: the first that the search goes by; FID where that is 0.1.0's other metric.

    `measured`: names of metrics; of those of `score.metrics` some may not be had.
    """
    searched = config.search.metrics
    return FID.name if FID.name in measured and set(searched) <= set(OLD_METRICS) else searched[0]


class Room(Protocol):
    """Where a worker may score a block now."""

    def take(self, name: str) -> Placement | None:
        """None: nowhere, for now."""
        ...

    def give_back(self, name: str) -> None: ...


@dataclass(frozen=True)
class Anywhere:
    """All that the cluster holds: Ray keeps the queue."""

    placement: Placement

    def take(self, name: str) -> Placement:
        return self.placement

    def give_back(self, name: str) -> None:
        pass


@dataclass(frozen=True)
class Nowhere:
    """Nothing is begun, for now."""

    def take(self, name: str) -> None:
        pass

    def give_back(self, name: str) -> None:
        pass


class Scores:
    """Scores of contenders on blocks of fresh noise, made by workers wherever there is room, kept in files."""

    def __init__(self, config: ResolvedStudy, storage: Path, stop: Stop, study: str, room: Room | None = None):
        """`study`: its id, which another study of the same name would not have. `room`: all of the cluster."""
        self.config, self.storage, self.stop, self.study = config, storage, stop, study
        self.room = room or Anywhere(config.placement)  # another thread may give another one
        self.packed = Job(config, config.train, storage).packed()
        self.on_cards = list[OnCard]()  # what was scored so far, by the metric that chooses
        self.known = dict[Block, Scored]()
        self.running = dict[ray.ObjectRef, tuple[Block, Room]]()
        self.left = threading.Event()  # set: nobody wants them any more

    def of(self, wanted: Sequence[Wanted]) -> list[list[list[Scored]]]:
        """In order: of each one's models on its blocks. KeyboardInterrupt if it was asked to stop."""
        whole = self.config.score.samples
        asked = [[[Block(c, n, w.samples or whole) for n in w.numbers] for c in w.models] for w in wanted]
        unknown = dict.fromkeys(b for rows in asked for row in rows for b in row if b not in self.known)
        self.known |= self.make(list(unknown))
        return [[[self.known[block] for block in row] for row in rows] for rows in asked]

    def make(self, wanted: Sequence[Block]) -> dict[Block, Scored]:
        try:
            found = self.made(list(wanted))
        except BaseException:
            self.end_running()
            raise
        for block in wanted:
            if block.samples == self.config.score.samples:  # of fewer all FIDs are higher
                model, values = f"{block.contender.key} {block.contender.guidance_scale:g}", found[block].score.values
                value = values[headline_of(self.config, values)]
                self.on_cards.append(OnCard(model, block.number, found[block].card, value))
        return found

    def made(self, waiting: list[Block]) -> dict[Block, Scored]:
        found, tasks = dict[Block, Scored](), dict[Placement, Any]()  # Ray takes a task's code along once
        while waiting or self.running:
            self.stop.check()
            if self.left.is_set():
                raise CancelledError
            room = self.room
            while waiting and (way := room.take(self.name(waiting[0]))) is not None:
                block = waiting.pop(0)
                if way not in tasks:
                    tasks[way] = as_worker(score_checkpoint, way)
                self.running[self.begin(block, tasks[way])] = (block, room)
            if not self.running:
                time.sleep(LOOK_S)
                continue
            for ref in ray.wait(list(self.running), timeout=LOOK_S)[0]:
                block, taken = self.running.pop(ref)
                taken.give_back(self.name(block))
                found[block] = ray.get(ref)
        return found

    def name(self, block: Block) -> str:
        contender, number, samples = block
        return f"{contender.key}-{contender.guidance_scale:g}-{number}-{samples}"

    def begin(self, block: Block, task: Any) -> ray.ObjectRef:
        contender, number, samples = block
        seed, folder = self.config.score.seed, to_uri(self.storage / "scores")
        weights = to_uri(contender.checkpoint) if contender.checkpoint else None
        noise = (contender.guidance_scale, samples, seed + number)
        ref: ray.ObjectRef = task.remote(self.packed, folder, contender.key, weights, *noise, self.study)
        return ref

    def leave(self) -> None:
        """Begin nothing more, and end what runs: whoever waits for it gets CancelledError."""
        self.left.set()
        self.end_running()

    def end_running(self) -> None:
        for ref, (block, room) in list(self.running.items()):
            ray.cancel(ref, force=True)
            room.give_back(self.name(block))
        self.running.clear()

    def standings(self, wanted: Sequence[Wanted]) -> list[Standing]:
        """For every setting, given as all models that were trained with it, how it did on its blocks."""
        return [
            Standing.of(w.models[0], [[scored.score for scored in row] for row in rows], rows[0][0].images)
            for w, rows in zip(wanted, self.of(wanted), strict=True)
        ]


@dataclass(frozen=True)
class Chooser:
    """Chooses among contenders by their scores on one block of noise; where there is no choice, nothing is scored."""

    scores: Scores
    metric: MetricInfo

    def costs_of(self, contenders: Sequence[Contender]) -> list[float]:
        found = self.scores.standings(choosing(self.scores.config, contenders))
        return [self.metric.cost(standing.mean(self.metric.name)) for standing in found]

    def best_of(self, contenders: Sequence[Contender]) -> Contender:
        if not rivals(contenders):
            return contenders[0]
        return min(zip(self.costs_of(contenders), contenders, strict=True), key=lambda pair: pair[0])[1]

    def contested(self, contenders: Sequence[Contender]) -> Sequence[Contender]:
        """Those that may be the best: the others are surely behind already by a block's first images, if it is long."""
        few = few_samples(self.scores.config)
        if few is None:
            return contenders
        found = self.scores.standings(choosing(self.scores.config, contenders, few))
        return [standing.contender for standing in contested([s.unbiased() for s in found], self.metric)]

    def costs_by_scale(self, contenders: Sequence[Contender]) -> dict[float, float]:
        """Infinite of those that are surely behind; of one that is left alone it does not matter."""
        left = self.contested(contenders)
        costs = self.costs_of(left) if rivals(left) else [0.0]
        known = {c.guidance_scale: cost for c, cost in zip(left, costs, strict=True)}
        return {c.guidance_scale: known.get(c.guidance_scale, math.inf) for c in contenders}

    def guided(self, contender: Contender, given: Sequence[float], widen: int) -> tuple[Contender, tuple[float, ...]]:
        """At the best of these scales, and of at most `widen` larger ones while the largest is the best; all tried."""
        tried = at_scales(contender, given)
        if not rivals(tried):
            return tried[0], tuple(given)
        costs = self.costs_by_scale(tried)
        while (further := next_scale(costs, given, widen)) is not None:
            tried += at_scales(contender, [further])
            costs = self.costs_by_scale(tried)
        return min(tried, key=lambda c: costs[c.guidance_scale]), tuple(costs)
