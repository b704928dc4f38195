"""How long, and how much: the search over the nine sizes of the paper, or RAR's four, on a mixed cluster, simulated.

    python -m benchmarks.cluster_sim            8, 64 and 512 GPUs, on demand and spot
    python -m benchmarks.cluster_sim --sizes    what a trial takes on each card, and a study on H100s alone
    python -m benchmarks.cluster_sim --families rar     RAR's four sizes instead
    python -m benchmarks.cluster_sim --scoring  what the scores of a study take on H100s alone
    python -m benchmarks.cluster_sim --cluster H100=2,L40S=4 --max-concurrent 8 --side-by-side

Nothing is trained. Lengths come from arithmetic, with the constants below; ways to place a trial, trials, rungs,
samples and blocks from the search-space files; who may start from `cluster.queue.grant`; the driver's times from
benchmarks/README.md. An autoscaler starts nodes as it is asked to by the queue, and gives back idle ones.
"""

import heapq
import itertools
import math
import random
import statistics
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import numpy as np

from benchmarks.common import Raw, options
from cca_ray.cluster.placement import CARDS, IMAGES, accelerator_of, memory_gib, ways
from cca_ray.cluster.queue import DEMAND_S, grant, slots
from cca_ray.cluster.queue import Node as Living
from cca_ray.evaluation.protocol import SHARD
from cca_ray.placement_config import Accelerator, Placement
from cca_ray.search import blocks
from cca_ray.search.rungs import Mark, goes_on
from cca_ray.search.standings import Contender
from cca_ray.space_file import load_config
from cca_ray.training import roofline
from cca_ray.training.heartbeat import WRITING_SHARE
from cca_ray.training.reference_logps import PART_PAIRS
from cca_ray.training.roofline import Size, image_seconds, training_seconds

SPACES = Path(__file__).parent.parent / "search_spaces"
PAPER = (  # the sizes of CCA's paper
    *("llamagen_b", "llamagen_l", "llamagen_xl", "llamagen_xxl", "llamagen_3b"),
    *("var_d16", "var_d20", "var_d24", "var_d30"),
)
NAMES = (*PAPER, "rar_b", "rar_l", "rar_xl", "rar_xxl")
DRIVER_A_TRIAL = 0.0032 / 5  # CPU time of a heartbeat, measured (benchmarks/README.md), by seconds between two
TIE = 0.25  # scores nearer than this, in standard deviations of trials, are not told apart; an assumption
HOUR, MINUTE = 3600.0, 60.0


@dataclass(frozen=True)
class Machine:
    """A node of one type of card. The price is an assumption."""

    gpus: int
    usd_an_hour: float  # a GPU, on demand


MACHINES = {
    "A40": Machine(4, 1.10),
    "L40S": Machine(8, 1.90),
    "A100": Machine(8, 1.85),
    "H100": Machine(8, 4.90),
}


@cache
def size_of(name: str) -> Size:
    size = roofline.size_of(load_config(SPACES / f"{name}.yaml"))
    assert size is not None
    return size


@dataclass(frozen=True)
class Plan:
    """What is searched, and what the simulation assumes. Seconds, unless the name says otherwise."""

    trials: int | None = None  # of a size; None: as the files say
    max_concurrent: int | None = None  # trials of one size at a time; None: as the files say
    side_by_side: bool = False  # all sizes of a family at once; else from small to large. Families are side by side
    ahead: bool = True  # the base is scored beside the last trials; else after them
    seed: int = 0
    start_delay: float = 5 * MINUTE  # from the autoscaler's wish to a node that works; paid
    idle: float = 10 * MINUTE  # before a node is given back (cluster.yaml)
    storage_gb_s: float = 1.0  # one worker writes or reads a checkpoint, 12 bytes a parameter
    gang_start: float = 17.0  # processes of a worker group, measured: overhead.py, documented way
    fid: float = 11 * 0.6  # CPU time of a score and its ten jackknife groups, measured: fid.py
    preemptions: float = 0.0  # of a node and hour
    back: float = 20 * MINUTE  # mean time until a lost node can be had again

    def storing(self, size: Size, bytes_: int = 12) -> float:
        """One worker writes or reads so many bytes a parameter; at a rung and at the start its group waits for it."""
        return bytes_ * size.parameters / (self.storage_gb_s * 1e9)

    def between_checkpoints(self, size: Size, way: Placement) -> float:
        return max(way.checkpoint_minutes * MINUTE, self.storing(size) / WRITING_SHARE)


@dataclass(frozen=True)
class Phase:
    """Training or scoring without a decision in between: one of them is 0."""

    pairs: float = 0.0
    passes: int = 6  # of the model over a sequence, a pair; a backward pass counts as two
    samples: int = 0
    guided: bool = False

    def seconds(self, size: Size, way: Placement, plan: Plan) -> float:
        if not self.samples:
            return training_seconds(size, way, self.pairs, self.passes)
        rounds = math.ceil(math.ceil(self.samples / SHARD) / way.workers)
        images = min(rounds * SHARD, self.samples)
        return images * image_seconds(size, accelerator_of(way), self.guided) + plan.fid


@dataclass
class Segment:
    """A stay of a job on its GPUs."""

    job: "Job"
    way: Placement
    seats: list[tuple["Node", int]]  # GPUs by node
    begin: float
    start: float  # seconds that only set up
    end: float = math.nan
    rework: float = 0.0  # seconds at the end that were lost with the node
    again: bool = False  # after a loss

    @property
    def gpu_seconds(self) -> float:
        return self.way.workers * (self.end - self.begin)


@dataclass
class Job:
    """A trial, a part of the reference's table or a block of the final comparison."""

    study: "Study"
    ways: Sequence[Placement]
    phases: list[Phase]
    gang: bool = False  # a trial; else a task on one GPU
    number: int = 0
    of_base: bool = False  # a block that needs no trial
    place: int = -1  # in the line, which it keeps
    since: float = 0.0  # waits
    at: int = 0  # the phase
    done: float = 0.0  # share of it
    began: float = 0.0  # the phase, here
    late: float = 0.0  # seconds that it trained after its last checkpoint, before it was scored
    segment: Segment | None = None
    losses: int = 0
    attempt: int = 0  # tells events of this stay from those of earlier ones

    @property
    def last(self) -> bool:
        """Whether it only takes what no trial wants, as `search.ahead.LastInQueue` does."""
        return self.of_base and self.study.searches

    @property
    def trains(self) -> bool:
        return self.gang and self.phases[self.at].pairs > 0

    def phase_seconds(self, way: Placement, plan: Plan) -> float:
        return self.phases[self.at].seconds(self.study.size, way, plan)


@dataclass
class Node:
    type: str
    number: int
    gpus: int
    state: str = "off"  # off, starting, up, lost
    free: int = 0
    since: float = 0.0  # paid from then on
    idle_since: float = 0.0
    launches: int = 0
    jobs: list[Job] = field(default_factory=list)


class Draw(Mark):
    """A score that is drawn: the ledger's rule at a rung applies as it is, but for what cannot be told apart."""

    def surely_better(self, other: Mark) -> bool:
        return bool(self.costs[0] < other.costs[0] - TIE)


AFTER_TRIALS = 3  # stages: first blocks of the finalists, further ones, table


class Study:
    """The search of one size: reference, trials with rungs, final comparison in stages; hands out jobs.

    Beside the trials and what comes after them, the base is scored in stages of its own.
    """

    def __init__(self, size: Size, plan: Plan):
        self.size, self.config, self.plan = size, size.config, plan
        self.ways = ways(self.config.placement)
        self.single = [way.model_copy(update={"workers": 1}) for way in self.ways]  # as cca_ray.cluster.queue.as_worker
        self.scored: defaultdict[int, list[Mark]] = defaultdict(list)  # by rung
        self.stages = deque(self.all_stages())  # one after the other
        self.base_stages = deque(self.all_base_stages())
        self.open = self.base_open = 0  # jobs that have begun and not ended
        self.ended = math.nan

    def all_stages(self) -> Iterator[tuple[deque[Job], int]]:
        """Jobs, and how many may run at a time. All but trials are tasks on one GPU."""
        parts = [min(PART_PAIRS, IMAGES - start) for start in range(0, IMAGES, PART_PAIRS)]
        yield deque(Job(self, self.single, [Phase(pairs=pairs, passes=2)]) for pairs in parts), IMAGES
        config, score, controls = self.config, self.config.score, len(self.config.control.learning_rates)
        # Controls first, as the ledger does; a control has no negatives and is never stopped.
        numbers = range(-controls, self.plan.trials or config.search.trials)
        trials = deque(Job(self, self.ways, self.trial(3 if number < 0 else 6), True, number) for number in numbers)
        yield trials, self.plan.max_concurrent or config.search.max_concurrent
        # As many blocks as there are if no finalist is surely behind.
        best = [[Contender(f"finalist {number}")] for number in range(score.finalists)]
        rates = [Contender(f"control {number}") for number in range(controls)]
        first, table = blocks.first(config, best, rates), blocks.of_trials(config, rates[:1], best, best[0][0])
        for stage in self.scored_once(first, blocks.further(config, best), table):
            yield stage, IMAGES

    def all_base_stages(self) -> Iterator[deque[Job]]:
        """Two guidance scales, an assumption, are not told apart by few images."""
        config, base = self.config, Contender("base")
        scales = blocks.at_scales(base, config.score.guidance_scales)
        contested = blocks.choosing(config, scales[:2])
        guided = blocks.of_guided_base(config, scales[0])
        return self.scored_once(blocks.of_base(config, base), contested, guided, of_base=True)

    def scored_once(self, *stages: Sequence[blocks.Wanted], of_base: bool = False) -> Iterator[deque[Job]]:
        """Each block as a task on one GPU."""
        known = set[tuple[Contender, int, int]]()
        for stage in stages:
            whole = self.config.score.samples
            asked = dict.fromkeys((c, n, w.samples or whole) for w in stage for c in w.models for n in w.numbers)
            new = [one for one in asked if one not in known]
            known |= asked.keys()
            phases = [Phase(samples=samples, guided=c.guidance_scale != 1) for c, _, samples in new]
            yield deque(Job(self, self.single, [phase], of_base=of_base) for phase in phases)

    @property
    def searches(self) -> bool:
        """Whether there are trials to come, or at work."""
        return len(self.stages) > AFTER_TRIALS

    def trial(self, passes: int) -> list[Phase]:
        """From rung to rung, with so many forward passes a pair."""
        befores = [0.0, *(rung.at for rung in self.config.rungs)]
        return [
            phase
            for before, rung in zip(befores, self.config.rungs, strict=False)
            for phase in (Phase(pairs=(rung.at - before) * IMAGES, passes=passes), Phase(samples=rung.samples))
        ]

    def next(self, now: float) -> list[Job]:
        """What may begin now. When there is nothing more, and nothing open, the study has ended."""
        while self.stages and not self.open and not self.stages[0][0]:
            self.stages.popleft()
        jobs: list[Job] = []
        if self.stages:
            waiting, most = self.stages[0]
            jobs = [waiting.popleft() for _ in range(min(most - self.open, len(waiting)))]
            self.open += len(jobs)
        jobs += self.next_of_base()
        if not self.stages and not self.base_stages:
            self.ended = now
        return jobs

    def next_of_base(self) -> list[Job]:
        """Once all trials have begun, or after the last."""
        while self.base_stages and not self.base_open and not self.base_stages[0]:
            self.base_stages.popleft()
        all_begun = len(self.stages) == AFTER_TRIALS + 1 and not self.stages[0][0]
        if not self.base_stages or (self.searches and not (self.plan.ahead and all_begun)):
            return []
        jobs = list(self.base_stages[0])
        self.base_stages[0].clear()
        self.base_open += len(jobs)
        return jobs

    def goes_on(self, job: Job, rung: int) -> bool:
        """A search trial's score is a draw of its own, the same at all rungs and on every cluster."""
        if job.number < 0 or rung == len(self.config.rungs) - 1:
            return True
        drawn = random.Random(f"{self.plan.seed} {self.size.name} {job.number}").gauss(0, 1)  # noqa: S311
        mark, others, search = Draw(np.array([drawn]), np.empty((1, 0))), self.scored[rung], self.config.search
        others.append(mark)
        return goes_on(mark, others[:-1], self.config.rungs[rung].keep or search.keep, search.grace_trials)


def in_all(type_: str, gpus: int) -> Living:
    """All nodes of a type as one, which is the same to `grant`; CPUs there are enough."""
    return Living(type_, cpus=64 * gpus, gpus=gpus)


class Cluster:
    """The event loop: nodes come, go and are lost, jobs are placed, phases end."""

    def __init__(self, nodes: Mapping[str, int], plan: Plan, names: Sequence[str] = PAPER):
        self.plan, self.now, self.random = plan, 0.0, random.Random(plan.seed)  # noqa: S311
        self.nodes = [Node(type_, i, MACHINES[type_].gpus) for type_ in MACHINES for i in range(nodes.get(type_, 0))]
        self.studies = [Study(size_of(name), plan) for name in names]
        all_nodes = [in_all(type_, MACHINES[type_].gpus * count) for type_, count in nodes.items()]
        for study in self.studies:
            if not any(slots(way, all_nodes) >= way.workers for way in study.ways):
                raise ValueError(f"{study.size.name}: fits none of these nodes")
        self.events: list[tuple[float, int, Callable[[int], None], int]] = []
        self.order, self.places = itertools.count(), itertools.count()
        self.queue: list[Job] = []
        self.changed = False  # since jobs were last placed
        self.segments: list[Segment] = []
        self.paid: Counter[str] = Counter()  # GPU-seconds by type
        self.losses, self.running, self.most_running = 0, 0, 0

    def run(self) -> "Cluster":
        chains: defaultdict[str, list[Study]] = defaultdict(list)
        for study in self.studies:
            chains[study.size.name if self.plan.side_by_side else study.size.family].append(study)
        self.after = {id(a): b for chain in chains.values() for a, b in itertools.pairwise(chain)}
        for chain in chains.values():
            self.advance(chain[0])
        self.place()
        while not all(study.ended == study.ended for study in self.studies):
            self.now, _, react, attempt = heapq.heappop(self.events)
            react(attempt)
            if self.changed:
                self.place()
        for node in self.nodes:
            self.stop_paying(node)
        return self

    def at(self, time: float, react: Callable[[int], None], attempt: int) -> None:
        heapq.heappush(self.events, (time, next(self.order), react, attempt))

    def advance(self, study: Study) -> None:
        """Queue what may begin now; when a size has ended, that of the next size of its family."""
        for job in study.next(self.now):
            job.place = next(self.places)
            self.wait(job)
        if study.ended == self.now and (later := self.after.get(id(study))):
            self.advance(later)

    def wait(self, job: Job) -> None:
        """In the line, where a job that lost its node has its old place."""
        job.since, self.changed = self.now, True
        self.queue.append(job)
        if job.gang:
            self.at(self.now + DEMAND_S + 1e-3, partial(self.on_demand, job), job.attempt)

    # Placement

    def place(self) -> None:
        """By the product's rule, and what waits then asks for nodes."""
        self.changed = False
        self.queue.sort(key=lambda job: (job.last, job.place))
        up = [node for node in self.nodes if node.state == "up"]
        free = sum(node.free for node in up)
        if self.queue and free:
            all_, used = Counter[str](), Counter[str]()
            for node in up:
                all_[node.type] += node.gpus
                used[node.type] += node.gpus - node.free
            held = [
                Placement(gpus=1, workers=n, accelerators=(Accelerator(type=type_),)) for type_, n in used.items() if n
            ]
            # Of each kind as many as could start, and one that cannot: those behind it wait for the same.
            seen, jobs = Counter[int](), dict[str, Job]()
            for job in self.queue:
                seen[id(job.ways)] += 1
                if seen[id(job.ways)] <= free + 1:
                    jobs[str(job.place)] = job
            line = {key: job.ways for key, job in jobs.items()}
            for key, way in grant(line, held, [in_all(*type_) for type_ in all_.items()]).items():
                self.start(jobs[key], way)
            self.queue = [job for job in self.queue if job.segment is None]
        self.scale_up()

    def seats(self, way: Placement) -> list[tuple[Node, int]]:
        """On one node if one has room, of several the fullest; else on as few as possible."""
        need, taken = way.workers, list[tuple[Node, int]]()
        nodes = [node for node in self.nodes if node.state == "up" and node.type == accelerator_of(way)]
        for node in sorted(nodes, key=lambda n: (n.free < need, n.free if n.free >= need else -n.free, n.number)):
            if gpus := min(need - sum(n for _, n in taken), node.free):
                taken.append((node, gpus))
        return taken

    def scale_up(self) -> None:
        """Start the nodes that waiting jobs ask for. A trial asks for one way at a time, as `CardQueue` does."""
        coming, off = Counter[str](), defaultdict[str, list[Node]](list)
        for node in self.nodes:
            coming[node.type] += node.free if node.state == "up" else node.gpus * (node.state == "starting")
            if node.state == "off":
                off[node.type].append(node)
        for job in [job for job in self.queue if not job.last] if off else ():
            number = int((self.now - job.since) / DEMAND_S) % len(job.ways)
            for way in job.ways[number : number + 1] if job.gang else job.ways:
                type_ = accelerator_of(way)
                more = max(0, math.ceil((way.workers - coming[type_]) / MACHINES[type_].gpus))
                if more <= len(off[type_]):
                    for node in off[type_][:more]:
                        node.state, node.since, node.launches = "starting", self.now, node.launches + 1
                        self.at(self.now + self.plan.start_delay, partial(self.on_up, node), node.launches)
                    del off[type_][:more]
                    coming[type_] += more * MACHINES[type_].gpus - way.workers
                    break

    def start(self, job: Job, way: Placement) -> None:
        job.attempt += 1
        for node, gpus in (seats := self.seats(way)):
            node.free -= gpus
            node.jobs.append(job)
        self.running += job.gang
        self.most_running = max(self.most_running, self.running)
        reading = self.plan.storing(job.study.size, 12 if job.at or job.done else 4)
        setup = (self.plan.gang_start if job.gang else 0.0) + reading
        job.segment = Segment(job, way, seats, self.now, setup, again=job.losses > 0)
        self.begin_phase(job, self.now + setup)

    def begin_phase(self, job: Job, time: float) -> None:
        assert job.segment is not None
        job.began = time
        seconds = (1 - job.done) * job.phase_seconds(job.segment.way, self.plan)
        self.at(time + seconds, partial(self.on_phase_end, job), job.attempt)

    # Events

    def on_phase_end(self, job: Job, attempt: int) -> None:
        if attempt != job.attempt or job.segment is None:
            return
        goes_on, saving = True, 0.0
        if job.trains:
            job.late = (self.now - job.began) % self.plan.between_checkpoints(job.study.size, job.segment.way)
        elif job.gang:
            goes_on, saving = job.study.goes_on(job, job.at // 2), self.plan.storing(job.study.size)
        job.at, job.done = job.at + 1, 0.0
        if goes_on and job.at < len(job.phases):
            self.begin_phase(job, self.now + saving)
            return
        self.release(job)
        job.study.open -= not job.of_base
        job.study.base_open -= job.of_base
        self.advance(job.study)

    def release(self, job: Job) -> None:
        segment = job.segment
        assert segment is not None
        segment.end, self.changed = self.now, True
        self.segments.append(segment)
        self.running -= job.gang
        job.segment = None
        for node, gpus in segment.seats:
            node.jobs.remove(job)
            node.free += gpus
            if not node.jobs:
                node.idle_since = self.now
                self.at(self.now + self.plan.idle, partial(self.on_idle, node), node.launches)

    def on_demand(self, job: Job, attempt: int) -> None:
        """It has waited so long that it asks for its next way."""
        if attempt == job.attempt:
            self.changed = True
            self.at(self.now + DEMAND_S, partial(self.on_demand, job), attempt)

    def on_up(self, node: Node, launch: int) -> None:
        node.state, node.free, node.idle_since = "up", node.gpus, self.now
        self.changed = True
        self.at(self.now + self.plan.idle, partial(self.on_idle, node), launch)
        if self.plan.preemptions:
            after = self.random.expovariate(self.plan.preemptions / HOUR)
            self.at(self.now + after, partial(self.on_lost, node), launch)

    def on_idle(self, node: Node, launch: int) -> None:
        idle = node.state == "up" and not node.jobs and self.now - node.idle_since >= self.plan.idle - 1e-6
        if launch == node.launches and idle:
            self.stop_paying(node)
            self.changed = True

    def on_lost(self, node: Node, launch: int) -> None:
        """Its jobs go back to where they were in the queue, with what their last checkpoint holds."""
        if launch != node.launches or node.state != "up":
            return
        self.losses += 1
        for job in list(node.jobs):
            assert job.segment is not None
            ran, way = max(0.0, self.now - job.began), job.segment.way
            after = ran
            if job.trains:
                after %= self.plan.between_checkpoints(job.study.size, way)
                job.done += (ran - after) / job.phase_seconds(way, self.plan)
            elif job.gang:
                after, job.at = ran + job.late, job.at - 1
                job.done = 1 - job.late / job.phase_seconds(way, self.plan)
            job.segment.rework = after
            job.segment.start = min(job.segment.start, self.now - job.segment.begin)
            job.losses, job.attempt = job.losses + 1, job.attempt + 1
            self.release(job)
            self.wait(job)
        self.stop_paying(node)
        node.state = "lost"
        self.at(self.now + self.random.expovariate(1 / self.plan.back), partial(self.on_back, node), launch)

    def on_back(self, node: Node, _: int) -> None:
        node.state, self.changed = "off", True

    def stop_paying(self, node: Node) -> None:
        if node.state in ("starting", "up"):
            self.paid[node.type] += round((self.now - node.since) * node.gpus)
        node.state, node.free = "off", 0


# What is printed

CLUSTERS = (  # nodes by type; the second is cluster.yaml's
    {"H100": 1},
    {"L40S": 4, "A100": 2, "H100": 2},
    {"A40": 32, "L40S": 16, "A100": 16, "H100": 16},
)


def shares(cluster: Cluster) -> tuple[float, float]:
    """Of the paid time that in which a job held the GPU; of this what was done, or set up, again after a loss."""
    held = sum(s.gpu_seconds for s in cluster.segments)
    lost = sum(s.way.workers * (s.rework + s.again * s.start) for s in cluster.segments)
    return held / cluster.paid.total(), lost / held


def hours_of(cluster: Cluster, name: str) -> tuple[float, float]:
    """GPU-hours that a size held, and those of them that went into samples."""
    held, samples = 0.0, 0.0
    for s in (s for s in cluster.segments if s.job.study.size.name == name):
        held += s.gpu_seconds
        done = [phase for phase in s.job.phases[: s.job.at] if phase.samples]
        samples += s.way.workers * sum(phase.seconds(s.job.study.size, s.way, cluster.plan) for phase in done)
    return held / HOUR, samples / HOUR


def print_sizes() -> None:
    """What a trial takes, undisturbed and to its end, the ways in their order; and a study on H100s alone."""
    print(
        "| size | way | memory, GiB | trial, h | GPU-hours | 50,000 images on one GPU, h |\n|---|---|---|---|---|---|"
    )
    for size in map(size_of, NAMES):
        for way in ways(size.config.placement):
            type_, trial = accelerator_of(way), training_seconds(size, way, IMAGES) / HOUR
            need = memory_gib(size, way.workers, way.micro_batch or 1, way.strategy, way.activation_checkpointing)
            print(
                f"| {size.name} | {way.workers} {type_} × {way.micro_batch} {way.strategy} "
                f"| {need:.0f} of {CARDS[type_].memory_gib:.0f} | {trial:.2f} | {trial * way.workers:.1f} "
                f"| {50_000 * image_seconds(size, type_) / HOUR:.2f} |"
            )
    print("\n| size, ten seeds on H100s | training, GPU-hours | samples | together |\n|---|---|---|---|")
    runs = [Cluster({"H100": 16}, Plan(seed=seed, side_by_side=True), NAMES).run() for seed in range(10)]
    for name in NAMES:
        held, samples = zip(*(hours_of(run, name) for run in runs), strict=True)
        both, of_samples = statistics.mean(held), statistics.mean(samples)
        print(f"| {name} | {both - of_samples:.0f} | {of_samples:.0f} | {both:.0f} ± {statistics.stdev(held):.0f} |")


def print_scoring() -> None:
    """H100-hours of a whole search in which no trial is stopped, by what they are for; sampling and features alone.

    The last column is of a search whose winner leaves all other finalists surely behind on the first block, and whose
    best guidance scale the other ones by few images.
    """
    print("| size | training | rungs | choosing | guidance scales | table | scoring, share of all | clear winner |")
    print("|---|---|---|---|---|---|---|---|")
    plan = Plan(fid=0.0)
    for size in map(size_of, NAMES):
        study = Study(size, plan)
        way, single = (next(w for w in some if accelerator_of(w) == "H100") for some in (study.ways, study.single))
        score = study.config.score

        def hours(jobs: Iterable[Job], samples: bool, size: Size = size, way: Placement = way) -> float:
            phases = [phase for job in jobs for phase in job.phases if bool(phase.samples) == samples]
            return way.workers * sum(phase.seconds(size, way, plan) for phase in phases) / HOUR

        reference, trials, first, further, of_trials = (jobs for jobs, _ in study.stages)
        of_base, contested, of_guided = study.base_stages
        alone, few = ([job for job in of_base if job.phases[0].guided == guided] for guided in (False, True))
        scales = [*few, *contested]
        training = hours([*reference, *trials], samples=False)
        parts = (trials, [*first, *further], scales, [*alone, *of_guided, *of_trials])
        scored = [hours(jobs, True, way=single) for jobs in parts]
        spared = (score.finalists - 1) * (score.blocks - 1) * hours([first[0]], True, way=single)
        spared += hours(contested, True, way=single)
        cells = [f"{h:.1f}" for h in scored]
        shares = [f"{h / (training + h):.0%}" for h in (sum(scored), sum(scored) - spared)]
        print(f"| {' | '.join([size.name, f'{training:.0f}', *cells, *shares])} |")


def print_runs(
    clusters: Sequence[Mapping[str, int]],
    plans: Sequence[Plan],
    rate: float,
    raw: Raw,
    spot: float = 0.4,
    names: Sequence[str] = PAPER,
) -> None:
    """`rate`: preemptions of a spot node and hour; `spot`: its price, as a share."""
    print("| nodes | GPUs | trials | nodes are | days | GPU-hours paid, by card | busy | lost | USD "
          "| most trials at once | driver busy |\n|---|---|---|---|---|---|---|---|---|---|---|")  # fmt: skip
    for nodes, plan, preempted in itertools.product(clusters, plans, (False, True)):
        cluster = Cluster(nodes, replace(plan, preemptions=rate if preempted else 0.0), names).run()
        busy, lost = shares(cluster)
        paid = {type_: cluster.paid[type_] / HOUR for type_ in MACHINES if cluster.paid[type_]}
        usd = sum(hours * MACHINES[type_].usd_an_hour for type_, hours in paid.items()) * (spot if preempted else 1)
        gpus = sum(MACHINES[type_].gpus * count for type_, count in nodes.items())
        days, most = cluster.now / HOUR / 24, cluster.most_running
        raw.add(nodes, cluster.plan, cluster.losses, days, paid, busy, lost, usd, most)
        print(
            f"| {' + '.join(f'{count} {type_}' for type_, count in nodes.items())} | {gpus:,} "
            f"| {plan.max_concurrent or 4} a size, {'all sizes at once' if plan.side_by_side else 'size after size'} "
            f"| {f'spot, {cluster.losses} lost' if preempted else 'on demand'} | {days:.1f} "
            f"| {', '.join(f'{type_} {hours:,.0f}' for type_, hours in paid.items())} | {busy:.0%} | {lost:.1%} "
            f"| {usd:,.0f} | {most} | {most * DRIVER_A_TRIAL:.0%} |",
            flush=True,
        )


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--cluster", help="nodes by type instead, such as H100=2,L40S=4")
    parser.add_argument("--families", default="llamagen,var", help="whose sizes are searched; else those of the paper")
    parser.add_argument("--sizes", action="store_true", help="print what a trial takes on each card, and stop")
    parser.add_argument("--scoring", action="store_true", help="print what the scores of a study take, and stop")
    parser.add_argument("--trials", type=int, help="of a size, besides the controls; else as the files say")
    parser.add_argument("--max-concurrent", type=int, help="trials of a size at a time; else 4 and 16")
    parser.add_argument("--side-by-side", action="store_true", help="all sizes at once; else with the 16 above only")
    parser.add_argument("--preemptions", type=float, default=0.1, help="of a spot node and hour")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    raw = Raw(
        arguments.raw, "nodes", "plan", "losses", "days", "hours by card", "busy", "lost", "usd", "trials at once"
    )
    if arguments.smoke:
        print_runs(CLUSTERS[:1], [Plan(trials=1)], arguments.preemptions, raw, names=("llamagen_b", "var_d16"))
        return
    if arguments.sizes or arguments.scoring:
        (print_sizes if arguments.sizes else print_scoring)()
        return
    plan = Plan(trials=arguments.trials, seed=arguments.seed)
    plans = [plan, replace(plan, max_concurrent=16, side_by_side=True)]
    if arguments.max_concurrent or arguments.side_by_side:
        plans = [replace(plan, max_concurrent=arguments.max_concurrent, side_by_side=arguments.side_by_side)]
    clusters: Sequence[Mapping[str, int]] = CLUSTERS
    if arguments.cluster:
        clusters = [{n: int(count) for n, count in (part.split("=") for part in arguments.cluster.split(","))}]
    names = [name for name in NAMES if name.split("_")[0] in arguments.families.split(",")]
    print_runs(clusters, plans, arguments.preemptions, raw, names=names)


if __name__ == "__main__":
    main()
