"""Who trains where: trials wait in one queue, and each takes the first way of its table that fits free capacity.

A worker group, all workers of one trial, is on one type of card. Ray's placement groups know neither preference nor
order; so the queue is kept here, by one actor for all studies on a cluster, and only who has been granted a way asks
Ray for it.
"""

import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
import torch
from ray.util.placement_group import PlacementGroup, get_placement_group, placement_group, remove_placement_group

from cca_ray.cluster.placement import CARDS, TYPE, accelerator_of, devices, ways, worker_resources
from cca_ray.cluster.ray_compat import ON_THE_HEAD
from cca_ray.placement_config import CPU, Placement

NODE_GROUP = "ray.io/node-group"  # the one of nodes that an autoscaler manages
DEMAND_S = 600.0  # how long the autoscaler is asked for one way before it is asked for the next
REFUSED_S = 60.0  # how long a way is not tried again that Ray could not start, as when other jobs hold the cards
GONE_S = 60.0  # after which who no longer asks is out of the queue
QUIET_S = 60.0  # in which no trial came or went before a card is idle: the next trial takes some time to start
DEAD_S = 120.0  # after which a study that was not heard of is dead, and holds nothing
NAME = "queue-5"  # of the actor; the number is that of its methods: studies of other versions wait in their own queue


@dataclass(frozen=True)
class Node:
    """What a living node has in all."""

    type: str
    cpus: float
    gpus: float
    managed: bool = False  # by an autoscaler


def nodes_now() -> list[Node]:
    """Of the cluster that this process is connected to."""
    return [
        Node(
            node["Labels"].get(TYPE, CPU),
            node["Resources"].get("CPU", 0.0),
            node["Resources"].get("GPU", 0.0),
            NODE_GROUP in node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"]
    ]


def node_here() -> Node:
    """This machine, as it would be a node of a Ray of its own."""
    cards, name = torch.cuda.device_count(), torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    type_ = next((type_ for type_ in CARDS if re.search(rf"\b{type_}\b", name)), CPU)
    return Node(type_, float(os.cpu_count() or 1), float(cards))


def may_grow(nodes: Sequence[Node]) -> bool:
    """Whether an autoscaler may bring more."""
    return any(node.managed for node in nodes)


def in_use_now() -> dict[str, tuple[float, float]]:
    """Of the cluster's CPUs and GPUs: in use, by whomever, and in all."""
    every, free = ray.cluster_resources(), ray.available_resources()
    return {kind: (every[kind] - free.get(kind, 0.0), every[kind]) for kind in ("CPU", "GPU") if every.get(kind)}


def slots(way: Placement, nodes: Sequence[Node]) -> int:
    """How many workers of this way all nodes together could hold."""
    type_ = accelerator_of(way)
    fits = (n for n in nodes if n.type == type_ or not type_)
    return sum(int(min(n.cpus // way.cpus, n.gpus // way.gpus if way.gpus else n.cpus // way.cpus)) for n in fits)


def in_use(way: Placement, held: Sequence[Placement]) -> float:
    """How many workers of this way would fit where the held worker groups of the same type are."""
    same = [other for other in held if accelerator_of(other) == accelerator_of(way)]
    return sum(map(devices, same)) / (way.gpus or way.cpus)


def grant(
    waiting: Mapping[str, Sequence[Placement]], held: Sequence[Placement], nodes: Sequence[Node]
) -> dict[str, Placement]:
    """Who of those that wait, first come first, may start now, and in which way: the first of its own that fits.

    Who cannot start keeps for itself every type on which it could once run: those behind it may only take others.
    So a large trial is not starved by small ones, and no card idles that only they want.
    """
    granted: dict[str, Placement] = {}
    kept: set[str] = set()
    for key, wanted in waiting.items():
        taken = [*held, *granted.values()]
        for way in wanted:
            if accelerator_of(way) not in kept and slots(way, nodes) - in_use(way, taken) >= way.workers:
                granted[key] = way
                break
        else:
            kept |= {accelerator_of(way) for way in wanted if slots(way, nodes) >= way.workers}
    return granted


def impossible(placement: Placement, nodes: Sequence[Node]) -> str:
    """Why no way of this placement can ever fit these nodes, in a clause; empty if one can, or if nodes may come."""
    if any(slots(way, nodes) >= way.workers for way in ways(placement)) or may_grow(nodes):
        return ""
    have = {node.type: 0.0 for node in nodes}
    for node in nodes:
        have[node.type] += node.cpus if node.type == CPU else node.gpus
    asked = " or ".join(f"{way.workers} × {in_words(way)}" for way in ways(placement))
    return f"placement asks for {asked}, the cluster has {', '.join(f'{have[t]:g} {t}' for t in sorted(have))}"


def in_words(way: Placement) -> str:
    """What a worker holds: `1 A40`, `2 CPU`."""
    kind = accelerator_of(way) or ("GPU" if way.gpus else CPU)
    return f"{way.cpus if kind == CPU else way.gpus:g} {kind}"


def selector(way: Placement) -> dict[str, str]:
    """Ray's label selector for the workers of one way; empty where any node will do."""
    type_ = accelerator_of(way)
    if type_ != CPU:
        return {TYPE: type_} if type_ else {}
    others = sorted({node.type for node in nodes_now()} - {CPU})
    return {TYPE: f"!in({','.join(others)})"} if others else {}


def first_way(placement: Placement) -> Placement:
    """For a fine-tuning outside a search: the first way that fits the cluster. ValueError if none ever can."""
    nodes = nodes_now()
    if why := impossible(placement, nodes):
        raise ValueError(why)
    return grant({"": ways(placement)}, [], nodes).get("", ways(placement)[0])


def as_worker(work: Callable[..., Any], placement: Placement, **options: int) -> Any:
    """A function as a Ray task, or a class as an actor: it holds what a trial's worker holds, on any card of a trial.

    GPUs are said to `ray.remote`, never to `.options`: only so does the process of a task end with it. One that is
    reused keeps gigabytes on a card that Ray calls free, and computes on its first card for ever.
    """
    way, types = ways(placement)[0], [""]
    if placement.accelerators:
        nodes = nodes_now()
        possible = [way for way in ways(placement) if slots(way, nodes)] or ways(placement)
        way = possible[0]
        types = sorted({accelerator_of(other) for other in possible if other.gpus})
    where = {TYPE: f"in({','.join(types)})"} if way.gpus and types[0] else selector(way)
    resources = worker_resources(way)
    gpus = resources.get("GPU", 0)
    return ray.remote(num_cpus=resources["CPU"], num_gpus=gpus, label_selector=where, **options)(work)


def demand(way: Placement, name: str) -> PlacementGroup:
    """A worker group that waits, as an autoscaler sees it. It goes with the job that asks, unlike `request_resources`.

    One of this name that a lost process left is replaced.
    """
    with suppress(ValueError):  # there is none
        remove_placement_group(get_placement_group(name))
    bundles = [worker_resources(way)] * way.workers
    return placement_group(bundles, name=name, bundle_label_selector=[selector(way)] * way.workers)


@dataclass
class Waiting:
    """One in the queue."""

    ways: tuple[Placement, ...]
    since: float  # when it began to wait
    asked: float  # when it last asked


@dataclass(frozen=True)
class Answer:
    """`granted`: the way that a trial may take; None: it asks again in a second.

    `demanded`: the way for which it asks the autoscaler meanwhile, if there is one.
    """

    granted: Placement | None = None
    demanded: Placement | None = None


class CardQueue:
    """The queue, and those who have been granted a way. See `queue_of_the_cluster`.

    Keys are paths: that of a trial's folder, and of its parent the study's.
    """

    def __init__(self, nodes: Callable[[], list[Node]] = nodes_now) -> None:
        self.nodes = nodes
        self.order: dict[str, int] = {}  # the place in the queue, which a trial that lost its nodes has still
        self.waiting: dict[str, Waiting] = {}
        self.held: dict[str, Placement] = {}
        self.refused: dict[tuple[str, int], float] = {}  # type and number of workers -> until when
        self.heard: dict[str, float] = {}  # study -> when it gave its last sign of life
        self.moved = time.monotonic()  # when a trial last came or went

    def begin(self, study: str) -> None:
        """It has a new driver, so that none of its trials runs: what the one before held and waited for is free."""
        for key in [key for key in self.order if study_of(key) == study]:
            self.forget(key)

    def ask(self, key: str, placement: Placement) -> Answer:
        """Whether a trial may start now."""
        if way := self.way_of(key, placement):
            return Answer(way)
        now = time.monotonic()
        if key not in self.waiting:
            self.moved = now
        waiting = self.waiting.setdefault(key, Waiting(ways(placement), now, now))
        waiting.ways, waiting.asked = ways(placement), now
        nodes = self.serve(key, now)
        if key in self.held or not may_grow(nodes):
            return Answer(self.held.get(key))
        return Answer(demanded=waiting.ways[int((now - waiting.since) / DEMAND_S) % len(waiting.ways)])

    def ask_last(self, key: str, placement: Placement) -> Placement | None:
        """The way that what is no trial may take now: it comes behind all trials, and no node is started for it."""
        now = time.monotonic()
        if not self.way_of(key, placement) and now - self.moved >= QUIET_S:
            self.serve(key, now, {key: ways(placement)})
        return self.held.get(key)

    def way_of(self, key: str, placement: Placement) -> Placement | None:
        """The way that it holds. One that its placement does not list, or no longer, is given back."""
        if key in self.held and self.held[key] not in ways(placement):
            self.release(key)
        return self.held.get(key)

    def serve(self, key: str, now: float, last: Mapping[str, Sequence[Placement]] = MappingProxyType({})) -> list[Node]:
        """Now that `key` asks, grant what can be: to those that wait, then to `last`. The nodes that there are."""
        self.alive(study_of(key))
        self.order.setdefault(key, 1 + max(self.order.values(), default=0))  # some may have left
        for other in [k for k, w in self.waiting.items() if now - w.asked > GONE_S]:
            self.leave(other)
        for other in [k for k in self.order if now - self.heard[study_of(k)] > DEAD_S]:
            self.forget(other)
        nodes = self.nodes()
        self.held |= (granted := grant({**self.wanted(now), **last}, list(self.held.values()), nodes))
        for other in granted:
            self.leave(other)
        return nodes

    def wanted(self, now: float) -> dict[str, list[Placement]]:
        """In the order of the queue, what each would take now."""
        keys = sorted(self.waiting, key=lambda key: self.order[key])
        return {
            key: [
                way for way in self.waiting[key].ways if self.refused.get((accelerator_of(way), way.workers), 0) < now
            ]
            for key in keys
        }

    def leave(self, key: str) -> None:
        """The queue."""
        self.waiting.pop(key, None)

    def release(self, key: str) -> None:
        """Its cards are free. If it asks again, it has its old place in the queue."""
        self.held.pop(key, None)
        self.moved = time.monotonic()
        self.leave(key)

    def refuse(self, key: str) -> None:
        """Ray could not start the way that this trial was granted."""
        if way := self.held.get(key):
            self.refused[accelerator_of(way), way.workers] = time.monotonic() + REFUSED_S
        self.release(key)

    def forget(self, key: str) -> None:
        """The trial has ended."""
        self.release(key)
        self.order.pop(key, None)

    def alive(self, study: str) -> None:
        """Its driver is."""
        self.heard[study] = time.monotonic()


def study_of(key: str) -> str:
    return key.rpartition("/")[0]


def queue_of_the_cluster() -> Any:
    """The actor in whose queue all trials of this cluster wait that list accelerators, of whatever study.

    It outlives the study that needed it first, and every node but the head.
    """
    where = {"name": NAME, "namespace": "cca_ray", "lifetime": "detached", "get_if_exists": True}
    alone = {"num_cpus": 0, "resources": ON_THE_HEAD, "max_restarts": -1, "max_task_retries": -1}
    return ray.remote(CardQueue).options(**where, **alone).remote()


def begin_in_queue(trials: Path) -> None:
    """Say that the study of this folder of trials has a new driver, and no trial of it runs. See `CardQueue.begin`."""
    ray.get(queue_of_the_cluster().begin.remote(str(trials)))


def wait_in_queue(placer: Any, key: str, placement: Placement) -> Placement:
    """Until a way is free; where an autoscaler manages the cluster it hears of it."""
    demanded: Placement | None = None
    group: PlacementGroup | None = None
    while True:
        answer: Answer = ray.get(placer.ask.remote(key, placement))
        if group is not None and answer.demanded != demanded:
            remove_placement_group(group)
            group = None
        if answer.granted is not None:
            return answer.granted
        if group is None and answer.demanded is not None:
            group, demanded = demand(answer.demanded, key), answer.demanded
        time.sleep(1.0)
