"""How long, and how much: the search over all nine official sizes on a mixed cluster, simulated.

    python benchmarks/cluster_sim.py                                  8, 64 and 512 GPUs, on-demand and spot
    python benchmarks/cluster_sim.py --sizes                          what a trial takes on each card, and where it fits
    python benchmarks/cluster_sim.py --cluster H100=2,L40S=4 --max-concurrent 8 --side-by-side

Nothing is trained. Lengths come from arithmetic, with the constants below; trials, rungs, samples and blocks from the
search-space files; the driver's times from benchmarks/README.md. Placement is this project's rule: a trial takes the
first entry of its size's preference table that fits free capacity, on one node, so never over two types. Who has
waited longest is served first; when that one has waited longer than a bound, the node that is nearest to holding it
takes nothing else (a plain reservation: backfilling by expected ends, as EASY does, would trust lengths that rungs
cut). Nodes come from an autoscaler, which starts what is waited for and gives back what is idle.
"""

import argparse
import heapq
import itertools
import math
import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

from cca_ray.config import StudyConfig, load_config

SPACES = Path(__file__).parent.parent / "search_spaces"
IMAGES = 1_281_167  # of ImageNet's training set
PART_PAIRS = 2**15  # of the reference's table, a task
SHARD = 256  # images that a worker samples at a time (cca_ray.fid)
CACHE_BYTES = 2**34  # of keys and values at a time (cca_ray.sampler)
INCEPTION_GFLOP = 11.4  # an image
HOUR, MINUTE = 3600.0, 60.0


@dataclass(frozen=True)
class Card:
    """A GPU type. Peak: bfloat16 with dense matrices, by NVIDIA's data sheets, as memory (10⁹ bytes) and bandwidth.

    mfu: the share of the peak that training reaches, those of docs/imagenet.md; an assumption, as is the price.
    """

    name: str
    memory_gb: float
    peak_tflops: float
    bandwidth_tb_s: float
    mfu: float
    usd_an_hour: float  # a GPU, on demand
    node: int  # GPUs a node


# From the smallest to the largest, in the order in which small sizes take them.
CARDS = {
    card.name: card
    for card in (
        Card("A40", 48, 150, 0.70, 0.35, 1.10, 4),
        Card("L40S", 48, 362, 0.86, 0.30, 1.90, 4),
        Card("A100-40", 40, 312, 1.56, 0.40, 1.85, 8),
        Card("A100-80", 80, 312, 2.04, 0.40, 2.60, 8),
        Card("H100", 80, 989, 3.35, 0.35, 4.90, 8),
    )
}
SAMPLING_MFU = 0.10  # of the peak, in decoding tokens and images: H100 99 TFLOP/s, as docs/imagenet.md assumes
USABLE = 0.90  # of a card's memory: the rest is CUDA's, NCCL's and the allocator's


@dataclass(frozen=True)
class Size:
    """A model size; parameters as `cca_ray.models` counts them."""

    name: str  # of its search space
    parameters: int
    width: int
    layers: int
    tokens: int  # an image: 384 pixels by LlamaGen, 256 by VAR
    codes: int
    passes: int  # of the model, to decode an image's tokens
    decoder_gflop: float  # tokens -> pixels, an image, counted by torch's FlopCounterMode

    @property
    def family(self) -> str:
        return self.name.split("_")[0]

    @property
    def active(self) -> int:
        """Parameters that every token meets: no embeddings; VAR's AdaLN, a third of it, meets an image only once."""
        classes = 1001 * self.width
        if self.family == "var":
            return self.parameters - classes - (6 * self.layers + 2) * self.width * (self.width + 1)
        return self.parameters - classes - self.codes * self.width

    @property
    def forward_flop(self) -> float:
        """Of one sequence: 2 a parameter and token, and attention. For LlamaGen within 4 % of 2·N·tokens."""
        return self.tokens * (2.0 * self.active + 4.0 * self.tokens * self.width * self.layers)

    @property
    def cache_bytes(self) -> float:
        """Keys and values of one sequence in bfloat16."""
        return 4.0 * self.layers * self.width * self.tokens


def llamagen(name: str, parameters: int, width: int, layers: int) -> Size:
    return Size(f"llamagen_{name}", parameters, width, layers, 576, 16384, 576, 570)


def var(name: str, parameters: int, depth: int) -> Size:
    return Size(f"var_{name}", parameters, 64 * depth, depth, 680, 4096, 10, 394)


SIZES = (
    llamagen("b", 110_888_448, 768, 12),
    llamagen("l", 342_910_976, 1024, 24),
    llamagen("xl", 774_699_520, 1280, 36),
    llamagen("xxl", 1_410_972_672, 1536, 48),
    llamagen("3b", 3_096_659_200, 3200, 24),
    var("d16", 310_283_520, 16),
    var("d20", 600_917_136, 20),
    var("d24", 1_033_399_360, 24),
    var("d30", 2_010_020_356, 30),
)


@dataclass(frozen=True)
class Entry:
    """A line of a preference table: how a trial is cut on a card."""

    card: Card
    workers: int
    micro_batch: int  # pairs
    strategy: str
    recompute: bool


def memory_gb(size: Size, entry: Entry, ema: bool = False) -> float:
    """What a worker holds at most, in 10⁹ bytes: while it trains or while it samples at a rung.

    A parameter takes 4 bytes of weight, 4 of gradient, 8 of AdamW's moments, 4 of EMA, 4 of DDP's buckets
    (`gradient_as_bucket_view` is off), divided by the workers with FSDP; and 2 of bfloat16 copy, which autocast keeps
    from the forward to the backward pass under either strategy. Activations are 57 bytes a channel, layer and token
    (counted on the CPU by saved-tensor hooks; VAR 55), a tenth with recomputation, 2 sequences a pair; log-likelihoods
    come in chunks of 2²⁶ logits, in float32 with gradient and bfloat16.
    """
    n, sharded = size.parameters, entry.strategy == "fsdp"
    state = (16 + 4 * ema) * n / entry.workers if sharded else (20 + 4 * ema) * n
    casts = 2 * n / (size.layers if entry.recompute else 1)
    gathered = 2 * 4 * n / size.layers if sharded else 0.0  # a layer in use and the next
    a_pair = 57.0 * size.width * size.layers * 2 * size.tokens * (0.1 if entry.recompute else 1.0)
    training = casts + gathered + entry.micro_batch * a_pair + 2**26 * 10
    # At a rung: the whole model in float32 while it is gathered, in bfloat16 while it samples; 4 GB to decode images.
    sampling = 2 * n + max(4 * n, min(CACHE_BYTES, SHARD * size.cache_bytes) + 4e9)
    return (state + max(training, sampling)) / 1e9


@cache
def entry_of(size: Size, card: Card) -> Entry | None:
    """How a trial of this size is cut on a node of this card: DDP before FSDP, large micro-batches before small.

    Recomputation, which costs a third of the speed, last. None if it does not fit at all.
    """
    for recompute, strategy, micro_batch in itertools.product((False, True), ("ddp", "fsdp"), (32, 16, 8, 4)):
        entry = Entry(card, card.node, micro_batch, strategy, recompute)
        if memory_gb(size, entry) <= USABLE * card.memory_gb:
            return entry
    return None


def training_seconds(size: Size, entry: Entry, pairs: float, sequences: int = 2) -> float:
    """Three forward passes a sequence (6·N·D), four with recomputation (8·N·D)."""
    flop = pairs * sequences * (4 if entry.recompute else 3) * size.forward_flop
    return flop / (entry.workers * entry.card.mfu * entry.card.peak_tflops * 1e12)


def image_seconds(size: Size, card: Card, guided: bool = False) -> float:
    """Tokens, pixels and features of one image on one GPU; guidance doubles the tokens' part.

    Tokens take the longer of arithmetic (2·N a token) and memory: at every pass the keys and values, half filled on
    average, and the weights, once for as many images as fit into the sampler's cache.
    """
    together = min(SHARD, CACHE_BYTES / size.cache_bytes)
    read = size.passes * (size.cache_bytes / 2 + 2.0 * size.parameters / together)
    compute = SAMPLING_MFU * card.peak_tflops * 1e12
    tokens = max(size.forward_flop / compute, read / (card.bandwidth_tb_s * 1e12))
    return (1 + guided) * tokens + (size.decoder_gflop + INCEPTION_GFLOP) * 1e9 / compute


@dataclass(frozen=True)
class Plan:
    """What is searched, and what the simulation assumes. Seconds, unless the name says otherwise."""

    trials: int | None = None  # of a size; None: as the files say
    max_concurrent: int | None = None  # trials of one size at a time; None: as the files say
    side_by_side: bool = False  # all sizes of a family at once; else from small to large. Families are side by side
    keep: float | None = None  # of every rung; None: as the files say
    seed: int = 0
    spread_of_ties: float = 0.25  # scores nearer than this (in standard deviations of trials) are not told apart
    longest_trial: float = 6 * HOUR  # entries that take longer are left out of a table that has shorter ones
    bound: float = 10 * MINUTE  # that the first of the queue waits before a node is kept for it
    start_delay: float = 5 * MINUTE  # from the autoscaler's wish to a node that works; paid
    idle: float = 5 * MINUTE  # before a node is given back (Ray's idle_timeout_minutes)
    checkpoint: float = 10 * MINUTE  # `placement.checkpoint_minutes`
    storage_gb_s: float = 1.0  # one worker writes or reads a checkpoint, 12 bytes a parameter
    gang_start: float = 17.0  # processes of a gang, measured: overhead.py, documented way
    fid: float = 11 * 0.6  # CPU time of a score and its ten jackknife groups, measured: fid.py
    driver: float = 0.031  # of the driver a report, start or end: 0.124 s a trial of four, measured: scaling.py
    heartbeat: float = 5.0  # a running trial reports as often (cca_ray.worker)
    heartbeat_driver: float = 0.0032  # CPU time of the driver a heartbeat, measured: benchmarks/README.md
    preemptions: float = 0.0  # of a node and hour
    back: float = 20 * MINUTE  # mean time until a lost node can be had again


@dataclass(frozen=True)
class Phase:
    """Training or scoring without a decision in between: one of them is 0."""

    pairs: float = 0.0
    sequences: int = 2
    passes: int = 3  # 1: forward only, as for the reference's table
    samples: int = 0
    guided: bool = False

    def seconds(self, size: Size, entry: Entry, plan: Plan) -> float:
        if self.samples:
            rounds = math.ceil(math.ceil(self.samples / SHARD) / entry.workers)
            return min(rounds * SHARD, self.samples) * image_seconds(size, entry.card, self.guided) + plan.fid
        if self.passes == 1:
            return training_seconds(size, replace(entry, recompute=False), self.pairs / 3, self.sequences)
        writing = 12 * size.parameters / (plan.storage_gb_s * 1e9)  # at every checkpoint all workers wait
        return training_seconds(size, entry, self.pairs, self.sequences) * (1 + writing / plan.checkpoint)


@dataclass
class Segment:
    """A stay of a job on a node."""

    job: "Job"
    node: "Node"
    entry: Entry
    begin: float
    start: float  # seconds that only set up
    end: float = math.nan
    rework: float = 0.0  # seconds at the end that were lost with the node
    again: bool = False  # after a loss

    @property
    def gpus(self) -> int:
        return self.entry.workers


@dataclass
class Job:
    """A trial, a part of the reference's table or a block of the final comparison."""

    study: "Study"
    kind: str
    phases: list[Phase]
    number: int = 0
    waits_since: float = 0.0
    at: int = 0  # the phase
    done: float = 0.0  # share of it
    saved: tuple[int, float] = (0, 0.0)  # phase and share at the last checkpoint
    saved_at: float = 0.0
    phase_began: float = 0.0
    entry: Entry | None = None
    segment: Segment | None = None
    losses: int = 0
    attempt: int = 0  # tells events of this stay from those of earlier ones

    @property
    def gang(self) -> bool:
        return self.kind == "trial"

    def phase_seconds(self, plan: Plan) -> float:
        assert self.entry is not None
        return self.phases[self.at].seconds(self.study.size, self.entry, plan)

    def note_checkpoints(self, now: float, plan: Plan) -> None:
        """Those that were written while this phase trained, until now; scoring and single tasks write none."""
        count = int((now - self.saved_at + 1e-6) // plan.checkpoint)
        if self.gang and self.phases[self.at].pairs and count:
            when = self.saved_at + count * plan.checkpoint
            self.saved = (self.at, self.done + max(0.0, when - self.phase_began) / self.phase_seconds(plan))
            self.saved_at = when


@dataclass
class Node:
    card: Card
    number: int
    state: str = "off"  # off, starting, up, lost
    free: int = 0
    since: float = 0.0  # paid from then on
    idle_since: float = 0.0
    launches: int = 0
    jobs: list[Job] = field(default_factory=list)


def stops(score: float, others: Sequence[float], keep: float, grace: int, tie: float) -> bool:
    """The ledger's rule at a rung (`cca_ray.ledger.goes_on`): enough of those scored there are surely better."""
    count = len(others) + 1
    return count > grace and sum(other < score - tie for other in others) >= math.ceil(count * keep)


class Study:
    """The search of one size: reference, trials with rungs, final comparison in stages; hands out jobs."""

    def __init__(self, size: Size, config: StudyConfig, plan: Plan):
        self.size, self.config, self.plan = size, config, plan
        self.scored: defaultdict[int, list[float]] = defaultdict(list)  # by rung
        at_once = plan.max_concurrent or config.search.max_concurrent
        stages = [(self.reference(), IMAGES), (self.trials(), at_once), *((jobs, IMAGES) for jobs in self.comparison())]
        self.stages = deque((deque(jobs), most) for jobs, most in stages)  # one after the other; jobs at a time
        self.open = 0  # jobs that have begun and not ended
        self.began, self.ended, self.stopped = math.nan, math.nan, 0

    @property
    def active(self) -> bool:
        return self.began == self.began and self.ended != self.ended

    def reference(self) -> list[Job]:
        parts = [min(PART_PAIRS, IMAGES - start) for start in range(0, IMAGES, PART_PAIRS)]
        return [Job(self, "reference", [Phase(pairs=pairs, passes=1)]) for pairs in parts]

    def trials(self) -> list[Job]:
        """Controls first, as the ledger does; a control has no negatives and is never stopped."""
        rungs, jobs = self.config.rungs, list[Job]()
        controls = len(self.config.control.learning_rates)
        for number in range(controls + (self.plan.trials or self.config.search.trials)):
            phases, before = list[Phase](), 0.0
            for rung in rungs:
                pairs = (rung.at - before) * IMAGES
                phases += [Phase(pairs=pairs, sequences=1 + (number >= controls)), Phase(samples=rung.samples)]
                before = rung.at
            jobs.append(Job(self, "trial", phases, number - controls))
        return jobs

    def comparison(self) -> Iterator[list[Job]]:
        """The blocks of cca_ray.finals, a one-GPU task each, in the stages in which it waits for them."""
        score = self.config.score
        plain, guided = (Phase(samples=score.samples, guided=g) for g in (False, True))
        controls = len(self.config.control.learning_rates)
        shown = [plain] * ((2 + score.finalists) * score.blocks) + [guided] * score.blocks
        for stage in ([plain] * (score.finalists * score.blocks), [guided] * len(score.guidance_scales),
                      [plain] * controls, shown):  # fmt: skip
            yield [Job(self, "block", [phase]) for phase in stage]

    def next(self, now: float) -> list[Job]:
        """What may begin now. When there is nothing more, and nothing open, the study has ended."""
        while self.stages and not self.open and not self.stages[0][0]:
            self.stages.popleft()
        if not self.stages:
            self.ended = now
            return []
        waiting, most = self.stages[0]
        jobs = [waiting.popleft() for _ in range(min(most - self.open, len(waiting)))]
        self.open += len(jobs)
        return jobs

    def goes_on(self, job: Job, rung: int) -> bool:
        """A search trial's score is a draw of its own, the same at all rungs and on every cluster."""
        if job.number < 0 or rung == len(self.config.rungs) - 1:
            return True
        score = random.Random(f"{self.plan.seed} {self.size.name} {job.number}").gauss(0, 1)  # noqa: S311
        keep = self.plan.keep or self.config.rungs[rung].keep or self.config.search.keep
        others, search = self.scored[rung], self.config.search
        stop = stops(score, others, keep, search.grace_trials, self.plan.spread_of_ties)
        others.append(score)
        self.stopped += stop
        return not stop


def trial_seconds(size: Size, entry: Entry) -> float:
    """The training of a whole trial, by which entries are compared."""
    return training_seconds(size, entry, IMAGES)


def table_of(size: Size, cards: Iterable[Card], longest: float) -> list[Entry]:
    """The entries that fit, from the fastest to the slowest; those over `longest` only if there is no other."""
    fitting = sorted(filter(None, (entry_of(size, card) for card in cards)), key=lambda e: trial_seconds(size, e))
    if not fitting:
        raise ValueError(f"{size.name}: fits none of {', '.join(card.name for card in cards)}")
    return [entry for entry in fitting if trial_seconds(size, entry) <= longest] or fitting[:1]


class Cluster:
    """The event loop: nodes come, go and are lost, jobs are placed, phases end."""

    def __init__(self, nodes: Mapping[str, int], plan: Plan, sizes: Sequence[Size] = SIZES):
        self.plan, self.now, self.random = plan, 0.0, random.Random(plan.seed)  # noqa: S311
        self.nodes = [Node(CARDS[name], i) for name in CARDS for i in range(nodes.get(name, 0))]
        self.by_card = {name: [node for node in self.nodes if node.card.name == name] for name in CARDS}
        self.studies = [Study(size, load_space(size.name), plan) for size in sizes]
        cards = [card for name, card in CARDS.items() if nodes.get(name, 0)]
        self.tables = {size.name: table_of(size, cards, plan.longest_trial) for size in sizes}
        self.events: list[tuple[float, int, Callable[[int], None], int]] = []
        self.order = itertools.count()
        self.queue: list[Job] = []
        self.segments: list[Segment] = []
        self.paid: Counter[str] = Counter()  # GPU-seconds by card
        self.losses, self.running, self.most_running, self.driver_free, self.most_load = 0, 0, 0, 0.0, 0.0

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
            self.place()
        for node in self.nodes:
            self.stop_paying(node)
        return self

    def at(self, time: float, react: Callable[[int], None], attempt: int) -> None:
        heapq.heappush(self.events, (time, next(self.order), react, attempt))

    def advance(self, study: Study) -> None:
        """Queue what may begin now; when a size has ended, that of the next size of its family."""
        if study.began != study.began:
            study.began = self.now
        for job in study.next(self.now):
            job.waits_since = self.now
            self.queue.append(job)
        if study.ended == self.now and (later := self.after.get(id(study))):
            self.advance(later)

    # Placement

    def preference(self, study: Study) -> list[Entry]:
        """The largest size that runs takes the fastest card first, all others the smallest that holds them."""
        table = self.tables[study.size.name]
        if study.size.forward_flop == max(s.size.forward_flop for s in self.studies if s.active):
            return table
        return [entry for name in CARDS for entry in table if entry.card.name == name]

    def place(self) -> None:
        """First come, first served; others pass who does not fit, but not onto the node that is kept for the first."""
        self.queue.sort(key=lambda job: (job.waits_since, job.losses == 0))
        kept: Node | None = None
        waiting, hopeless = list[Job](), set[tuple[str, bool]]()
        for job in self.queue:
            kind = (job.study.size.name, job.gang)
            if kind in hopeless:
                waiting.append(job)
                continue
            entries = self.preference(job.study)
            if (found := self.fit(job, entries, kept)) is not None:
                self.start(job, *found)
                continue
            hopeless.add(kind)
            waiting.append(job)
            if job is waiting[0] and self.now - job.waits_since > self.plan.bound:
                names = {entry.card.name for entry in entries}
                up = [node for node in self.nodes if node.state == "up" and node.card.name in names]
                kept = max(up, key=lambda node: node.free, default=None)
        self.queue = waiting
        self.scale_up(waiting)

    def fit(self, job: Job, entries: Sequence[Entry], kept: Node | None) -> tuple[Entry, Node] | None:
        """The first entry for which a node has room; of several nodes the fullest."""
        for entry in entries:
            need = entry.workers if job.gang else 1
            nodes = self.by_card[entry.card.name]
            rooms = [n for n in nodes if n.state == "up" and n.free >= need and n is not kept]
            if rooms:
                return replace(entry, workers=need), min(rooms, key=lambda node: (node.free, node.number))
        return None

    def scale_up(self, waiting: Sequence[Job]) -> None:
        """Start what the waiting jobs want first and no starting node will give them."""
        booting = [node for node in self.nodes if node.state == "starting"]
        coming = {id(node): node.card.node for node in booting}
        off = [node for node in self.nodes if node.state == "off"]
        hopeless = set[tuple[str, bool]]()
        for job in waiting:
            if (kind := (job.study.size.name, job.gang)) in hopeless:
                continue
            entries = self.preference(job.study)
            need = {entry.card.name: entry.workers if job.gang else 1 for entry in entries}
            wanted = (n for n in booting if n.card.name in need and coming[id(n)] >= need[n.card.name])
            host = next(wanted, None) or next((n for entry in entries for n in off if n.card is entry.card), None)
            if host is None:
                hopeless.add(kind)
                continue
            if host.state == "off":
                off.remove(host)
                booting.append(host)
                coming[id(host)] = host.card.node
                host.state, host.since, host.launches = "starting", self.now, host.launches + 1
                self.at(self.now + self.plan.start_delay, partial(self.on_up, host), host.launches)
            coming[id(host)] -= need[host.card.name]

    def start(self, job: Job, entry: Entry, node: Node) -> None:
        job.entry, job.attempt = entry, job.attempt + 1
        node.free -= entry.workers
        node.jobs.append(job)
        self.running += job.gang
        self.most_running = max(self.most_running, self.running)
        reading = (12 if job.at or job.done else 4) * job.study.size.parameters / (self.plan.storage_gb_s * 1e9)
        setup = (self.plan.gang_start if job.gang else 0.0) + reading + self.driver_seconds()
        job.segment = Segment(job, node, entry, self.now, setup, again=job.losses > 0)
        job.saved, job.saved_at = (job.at, job.done), self.now + setup
        self.begin_phase(job, self.now + setup)

    def begin_phase(self, job: Job, time: float) -> None:
        job.phase_began = time
        self.at(time + (1 - job.done) * job.phase_seconds(self.plan), partial(self.on_phase_end, job), job.attempt)

    def driver_seconds(self) -> float:
        """Until the driver has dealt with a report: it takes one after the other, heartbeats in between."""
        load = self.running * self.plan.heartbeat_driver / self.plan.heartbeat
        self.most_load = max(self.most_load, load)
        begin = max(self.now, self.driver_free)
        self.driver_free = begin + self.plan.driver / max(0.01, 1 - load)
        return self.driver_free - self.now

    # Events

    def on_phase_end(self, job: Job, attempt: int) -> None:
        if attempt != job.attempt or job.segment is None:
            return
        job.note_checkpoints(self.now, self.plan)
        scored = job.gang and job.phases[job.at].samples > 0
        goes_on = not scored or job.study.goes_on(job, job.at // 2)
        job.at, job.done = job.at + 1, 0.0
        if goes_on and job.at < len(job.phases):
            wait = 0.0
            if scored:  # a checkpoint, and the driver's decision
                wait = self.driver_seconds() + 12 * job.study.size.parameters / (self.plan.storage_gb_s * 1e9)
                job.saved, job.saved_at = (job.at, 0.0), self.now + wait
            self.begin_phase(job, self.now + wait)
            return
        self.release(job)
        job.study.open -= 1
        self.advance(job.study)

    def release(self, job: Job) -> None:
        segment = job.segment
        assert segment is not None
        segment.end = self.now
        self.segments.append(segment)
        segment.node.jobs.remove(job)
        segment.node.free += segment.gpus
        self.running -= job.gang
        job.segment = None
        if not segment.node.jobs:
            segment.node.idle_since = self.now
            self.at(self.now + self.plan.idle, partial(self.on_idle, segment.node), segment.node.launches)

    def on_up(self, node: Node, launch: int) -> None:
        node.state, node.free, node.idle_since = "up", node.card.node, self.now
        self.at(self.now + self.plan.idle, partial(self.on_idle, node), launch)
        if self.plan.preemptions:
            after = self.random.expovariate(self.plan.preemptions / HOUR)
            self.at(self.now + after, partial(self.on_lost, node), launch)

    def on_idle(self, node: Node, launch: int) -> None:
        idle = node.state == "up" and not node.jobs and self.now - node.idle_since >= self.plan.idle - 1e-6
        if launch == node.launches and idle:
            self.stop_paying(node)

    def on_lost(self, node: Node, launch: int) -> None:
        """Its jobs go back to where they were in the queue, with what their last checkpoint holds."""
        if launch != node.launches or node.state != "up":
            return
        self.losses += 1
        for job in list(node.jobs):
            assert job.segment is not None
            job.note_checkpoints(self.now, self.plan)
            began = job.segment.begin + job.segment.start
            job.segment.start = min(job.segment.start, self.now - job.segment.begin)
            job.segment.rework = max(0.0, self.now - max(job.saved_at, began))
            job.at, job.done = job.saved
            job.losses, job.attempt = job.losses + 1, job.attempt + 1
            self.release(job)
            self.queue.append(job)  # waits since it was submitted: it comes before others of its age
        self.stop_paying(node)
        node.state = "lost"
        self.at(self.now + self.random.expovariate(1 / self.plan.back), partial(self.on_back, node), launch)

    def on_back(self, node: Node, launch: int) -> None:
        node.state = "off"

    def stop_paying(self, node: Node) -> None:
        if node.state in ("starting", "up"):
            self.paid[node.card.name] += round((self.now - node.since) * node.card.node)
        node.state, node.free = "off", 0


@cache
def load_space(name: str) -> StudyConfig:
    return load_config(SPACES / f"{name}.yaml")


# What is printed

CLUSTERS = {  # nodes by card
    8: {"H100": 1},
    64: {"L40S": 4, "A100-40": 2, "A100-80": 2, "H100": 2},
    512: {"A40": 16, "L40S": 16, "A100-40": 16, "A100-80": 16, "H100": 16},
    5120: {"A40": 160, "L40S": 160, "A100-40": 160, "A100-80": 160, "H100": 160},
}


@dataclass(frozen=True)
class Outcome:
    """Of a run, for the table. GPU-hours by card are paid ones, from a node's launch to its end."""

    hours: float
    paid: dict[str, float]
    busy: float  # share of the paid time in which a job held the GPU
    lost: float  # share of the busy time that was done again, or set up again, after a loss
    losses: int
    usd: float
    most_trials: int
    driver: float  # the largest share of the driver's time that reports took

    @staticmethod
    def of(cluster: Cluster, prices: Mapping[str, float]) -> "Outcome":
        paid = {name: seconds / HOUR for name, seconds in cluster.paid.items()}
        held = sum(s.gpus * (s.end - s.begin) for s in cluster.segments)
        lost = sum(s.gpus * (s.rework + s.again * s.start) for s in cluster.segments)
        usd = sum(hours * prices[name] for name, hours in paid.items())
        busy = held / HOUR / sum(paid.values())
        hours = cluster.now / HOUR
        return Outcome(hours, paid, busy, lost / held, cluster.losses, usd, cluster.most_running, cluster.most_load)


def print_sizes(plan: Plan) -> None:
    """What a trial takes, undisturbed and to its end, and where it is allowed to run."""
    print("| size | card | workers x micro-batch | memory, GB | trial, h | GPU-hours | 50,000 images on one GPU, h |")
    print("|---|---|---|---|---|---|---|")
    for size in SIZES:
        table = table_of(size, CARDS.values(), plan.longest_trial)
        for card in CARDS.values():
            if (entry := entry_of(size, card)) is None:
                print(f"| {size.name} | {card.name} | does not fit | | | | |")
                continue
            hours = trial_seconds(size, entry) / HOUR
            how = f"{entry.workers} x {entry.micro_batch} {entry.strategy}{', recomputed' * entry.recompute}"
            images = 50_000 * image_seconds(size, card) / HOUR
            print(
                f"| {size.name} | {card.name}{'' if entry in table else ' (too slow)'} | {how} "
                f"| {memory_gb(size, entry):.0f} | {hours:.2f} | {hours * entry.workers:.1f} | {images:.2f} |"
            )


def print_runs(
    clusters: Sequence[Mapping[str, int]], plans: Sequence[Plan], prices: Mapping[str, float], rate: float, spot: float
) -> None:
    """`rate`: preemptions of a spot node and hour; `spot`: its price, as a share."""
    print("| nodes | GPUs | trials | nodes are | days | GPU-hours paid, by card | busy | lost | USD "
          "| most trials at once | driver busy |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|---|")
    for nodes, plan, preempted in itertools.product(clusters, plans, (False, True)):
        cluster = Cluster(nodes, replace(plan, preemptions=rate if preempted else 0.0)).run()
        o = Outcome.of(cluster, {n: price * (spot if preempted else 1) for n, price in prices.items()})
        name = f"{plan.max_concurrent or 4} a size, {'all sizes at once' if plan.side_by_side else 'size after size'}"
        gpus = sum(CARDS[n].node * count for n, count in nodes.items())
        paid = ", ".join(f"{n} {o.paid[n]:,.0f}" for n in CARDS if o.paid.get(n))
        print(
            f"| {' + '.join(f'{count} {n}' for n, count in nodes.items())} | {gpus:,} | {name} "
            f"| {f'spot, {o.losses} lost' if preempted else 'on demand'} | {o.hours / 24:.1f} | {paid} "
            f"| {o.busy:.0%} | {o.lost:.1%} | {o.usd:,.0f} | {o.most_trials} | {o.driver:.0%} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, nargs="+", choices=list(CLUSTERS), default=[8, 64, 512])
    parser.add_argument("--cluster", help="nodes by card instead, such as H100=2,L40S=4")
    parser.add_argument("--sizes", action="store_true", help="print what a trial takes on each card, and stop")
    parser.add_argument("--trials", type=int, help="of a size, besides the controls; else as the files say")
    parser.add_argument("--max-concurrent", type=int, help="trials of a size at a time; else 4 and 16")
    parser.add_argument("--side-by-side", action="store_true", help="all sizes at once; else with the 16 above only")
    parser.add_argument("--preemptions", type=float, default=0.1, help="of a spot node and hour")
    parser.add_argument("--back-minutes", type=float, default=20, help="mean time until a lost node can be had again")
    parser.add_argument(
        "--start-minutes", type=float, default=5, help="from the autoscaler's wish to a node that works"
    )
    parser.add_argument("--spot", type=float, default=0.4, help="price of spot, as a share of that on demand")
    parser.add_argument("--price", action="append", default=[], help="USD a GPU and hour, such as H100=2.5; repeatable")
    parser.add_argument("--longest-trial-hours", type=float, default=6, help="slower cards are left out for a size")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    plan = Plan(
        trials=arguments.trials,
        seed=arguments.seed,
        back=arguments.back_minutes * MINUTE,
        start_delay=arguments.start_minutes * MINUTE,
        longest_trial=arguments.longest_trial_hours * HOUR,
    )
    if arguments.sizes:
        print_sizes(plan)
        return
    plans = [plan, replace(plan, max_concurrent=16, side_by_side=True)]
    if arguments.max_concurrent or arguments.side_by_side:
        plans = [replace(plan, max_concurrent=arguments.max_concurrent, side_by_side=arguments.side_by_side)]
    clusters = [CLUSTERS[gpus] for gpus in arguments.gpus]
    if arguments.cluster:
        clusters = [{n: int(count) for n, count in (part.split("=") for part in arguments.cluster.split(","))}]
    prices = {card.name: card.usd_an_hour for card in CARDS.values()}
    prices |= {name: float(usd) for name, usd in (part.split("=") for part in arguments.price)}
    print_runs(clusters, plans, prices, arguments.preemptions, arguments.spot)


if __name__ == "__main__":
    main()
