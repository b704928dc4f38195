"""The cluster's simulation: its arithmetic agrees with the models, its event loop keeps the product's rules."""

import random
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cluster_sim import (
    HOUR,
    IMAGES,
    MACHINES,
    MINUTE,
    NAMES,
    Cluster,
    Phase,
    Plan,
    Study,
    in_all,
    shares,
    size_of,
)
from cca_ray.cluster.placement import (
    CARDS,
    USABLE,
    accelerator_of,
    exchange_seconds,
    memory_gib,
    ways,
    ways_by_arithmetic,
)
from cca_ray.cluster.queue import DEMAND_S, Node, grant
from cca_ray.evaluation.sampler import Decoding, images_at_a_time, pick
from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout
from cca_ray.models.family import Eager, family_of
from cca_ray.models.likelihood import sequence_logps
from cca_ray.models.official import build, build_tokenizer, configure
from cca_ray.placement_config import Accelerator, Placement
from cca_ray.training.roofline import training_seconds
from tests.traffic import traffic

SMALL = ("llamagen_b", "llamagen_xl", "var_d16")
MIXED = {"A40": 3, "A100": 1, "H100": 1}  # XL's eight A40s are on two nodes
CALM, STORMY = Plan(), Plan(preemptions=0.5)
JOBS = 40 + 19 + (6 + 6 + 8) + (7 + 2 + 3)  # of a size: parts of the reference, trials, blocks after them, base's
COUNTED = ("llamagen", "var", "rar")


def eager_of(family: str) -> Eager:
    found = family_of(family).eager
    assert found is not None
    return found


@cache
def ran(plan: Plan, **nodes: int) -> Cluster:
    return Cluster(nodes or MIXED, plan, SMALL).run()


@pytest.mark.parametrize("name", NAMES)
def test_the_files_list_the_ways_of_the_arithmetic_and_all_fit(name):
    size = size_of(name)
    assert size.config.placement.accelerators == ways_by_arithmetic(size, size.config.train.global_batch)
    for way in ways(size.config.placement):
        assert way.micro_batch is not None
        need = memory_gib(size, way.workers, way.micro_batch, way.strategy, way.activation_checkpointing)
        assert need <= USABLE * CARDS[accelerator_of(way)].memory_gib
        assert not way.activation_checkpointing  # whose fourth forward pass the simulation does not count


@pytest.mark.parametrize(("family", "pixels"), [("llamagen", {"image_size": 384}), ("rar", {})])
def test_a_forward_pass_takes_what_torch_counts(family: str, pixels: dict[str, int]):
    with torch.device("meta"):
        model = family_of(family).parts().model(configure(family, "B", **pixels))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, dtype=torch.long), torch.zeros(1, model.config.block_size, dtype=torch.long))
    assert size_of(f"{family}_b").forward_flop == pytest.approx(counter.get_total_flops(), rel=0.01)


@pytest.mark.parametrize(("family", "pixels"), [("llamagen", 384), ("rar", 256)])
def test_decoding_an_image_takes_what_torch_counts(family: str, pixels: int):
    with torch.device("meta"), torch.inference_mode():
        tokenizer = build_tokenizer(family)
        tokens = torch.zeros(1, tokenizer.config.length(pixels), dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            tokenizer.decode(tokens)
    assert counter.get_total_flops() / 1e9 == pytest.approx(eager_of(family).decoder_gflop, rel=0.01)


def test_training_is_six_flop_a_parameter_and_token_and_the_bytes_between():
    size = size_of("llamagen_3b")
    way = ways(size.config.placement)[0]
    assert (accelerator_of(way), way.workers) == ("H100", 4)
    arithmetic = 2 * 6 * size.parameters * size.tokens / (0.6 * 989e12)
    memory = 2 * size.tokens * (981 * 3200 * 24 + 60 * 16384) / (0.8 * 3.35e12)
    assert training_seconds(size, way, 4) == pytest.approx(arithmetic + memory, rel=0.04)


def small_model(family: str, layers: int) -> Model:
    """As wide as a layer must be for what is there once a token to be little."""
    if family == "llamagen":
        own = dict(dim=768, n_head=12, n_layer=layers, multiple_of=256, vocab_size=32, block_size=16)
        return build("llamagen", "S", num_classes=10, **own)
    if family == "rar":
        own = dict(dim=256, n_head=4, n_layer=layers, mlp_dim=1024, vocab_size=32, block_size=256)
        return build("rar", "S", num_classes=10, **own)
    scales = dict(vocab_size=32, patch_nums=(1, 2, 3))
    small = dict(z_channels=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    tokenizer = build_tokenizer("var", **scales, **small)
    return build("var", "M", tokenizer, num_classes=10, code_dim=8, depth=layers, dim=256, n_head=4, **scales)


def bytes_of_training(family: str, layers: int, rows: int) -> int:
    """In bfloat16, with the dropout of the family's files."""
    model, rate = small_model(family, layers), size_of(NAMES_OF[family][0]).config.train.dropout
    labels, tokens = torch.zeros(rows).long(), torch.zeros(rows, model.config.block_size).long()
    dropout = Dropout(rate, torch.arange(rows, dtype=torch.int32)) if rate else None

    def there_and_back() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(labels, tokens, dropout)
        hidden.sum().backward()

    return traffic(there_and_back).bytes


NAMES_OF = {family: [name for name in NAMES if name.startswith(family)] for family in COUNTED}


@pytest.mark.parametrize(("family", "width"), [("llamagen", 768), ("var", 256), ("rar", 256)])
def test_a_layer_moves_as_many_bytes_in_training_as_are_counted(family: str, width: int):
    """What a row more costs in a layer more: not what is there once a weight, or once a batch."""
    two, one = (bytes_of_training(family, layers, 4) - bytes_of_training(family, layers, 2) for layers in (2, 1))
    length = small_model(family, 1).config.block_size
    assert (two - one) / (2 * length * width) == pytest.approx(eager_of(family).channel_bytes, rel=0.002)


def test_the_logits_move_as_many_bytes_as_are_counted():
    def moved(rows: int) -> int:
        head, hidden = nn.Linear(32, 4096, bias=False), torch.randn(rows, 16, 32, requires_grad=True)

        def there_and_back() -> None:
            with torch.autocast("cpu", torch.bfloat16):
                logps = sequence_logps(hidden, head, torch.zeros(rows, 16).long())
            logps.sum().backward()

        return traffic(there_and_back).bytes

    assert {eager_of(family).logit_bytes for family in COUNTED} == {60}
    assert (moved(8) - moved(4)) / (4 * 16 * 4096) == pytest.approx(60, rel=0.01)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("family", COUNTED)
def test_a_decoding_step_launches_as_many_kernels_as_are_counted(family: str, layers: int):
    cut = Decoding(top_k=20, top_p=0.96) if family == "var" else Decoding()
    model = small_model(family, layers).bfloat16()
    before, count = model.decode_steps[-2:]
    labels, last, noise = torch.zeros(4).long(), torch.zeros(4, before).long(), torch.zeros(4, count).double()

    def step() -> None:
        pick(model.decode(labels, last, len(model.decode_steps) - 1, cache), noise, cut, 1.0)

    with torch.inference_mode():
        cache = model.new_cache(4)
        assert traffic(step).kernels == eager_of(family).launches(layers)


def test_as_many_images_are_simulated_at_a_time_as_are_sampled():
    sizes = [size_of(name) for name in NAMES_OF["llamagen"]]
    assert [images_at_a_time(256, s.cache_bytes) for s in sizes] == [256, 256, 128, 64, 64]
    assert [images_at_a_time(256, 2 * s.cache_bytes) for s in sizes] == [256, 128, 64, 32, 32]


def test_what_workers_exchange_is_waited_for_where_it_takes_longer_than_a_micro_batch():
    size = size_of("llamagen_3b")
    parted, whole = (
        Placement(workers=8, micro_batch=4, strategy=strategy, accelerators=(Accelerator(type="A40"),))
        for strategy in ("fsdp", "ddp")
    )
    alone = training_seconds(size, parted.model_copy(update={"workers": 1}), 1)
    exchange = exchange_seconds(size, CARDS["A40"], 8)
    assert exchange == pytest.approx(8 * size.parameters * 7 / 8 / 3.1e9)
    assert training_seconds(size, parted, 32) == pytest.approx(exchange)  # longer than its four pairs
    assert training_seconds(size, whole, 256) == pytest.approx(32 * alone + exchange - 4 * alone)
    fast = parted.model_copy(update={"accelerators": (Accelerator(type="A100"),)})
    assert training_seconds(size, fast, 8) == training_seconds(size, fast.model_copy(update={"workers": 1}), 1)


def test_a_phase_scores_in_rounds_of_whole_shards():
    size = size_of("llamagen_l")
    way = ways(size.config.placement)[0]
    assert way.workers == 4
    few, more = (Phase(samples=n).seconds(size, way, CALM) - CALM.fid for n in (4 * 256, 4 * 256 + 1))
    assert more == pytest.approx(2 * few)
    assert Phase(samples=100).seconds(size, way, CALM) - CALM.fid == pytest.approx(few * 100 / 256)


def test_the_first_four_trials_go_on_and_later_ones_if_enough_are_not_surely_better():
    study = Study(size_of("llamagen_b"), CALM)
    _, (trials, most), *_ = study.all_stages()
    assert (len(trials), most, [job.number for job in trials][:4]) == (19, 4, [-3, -2, -1, 0])
    went_on = [study.goes_on(job, 1) for job in trials]
    assert all(went_on[: 3 + 4])
    costs = [float(mark.costs[0]) for mark in study.scored[1]]
    surely_better = [sum(other < costs[i] - 0.25 for other in costs[:i]) for i in range(16)]
    assert went_on[3 + 4 :] == [surely_better[i] < np.ceil((i + 1) / 2) for i in range(4, 16)]


@pytest.mark.parametrize("plan", [CALM, STORMY, replace(CALM, max_concurrent=16, side_by_side=True)])
def test_every_job_ends_and_work_is_conserved(plan):
    cluster = ran(plan)
    assert len({id(s.job) for s in cluster.segments if s.job.at == len(s.job.phases) or s.job.gang}) == JOBS * 3
    assert not cluster.queue
    assert not any(node.jobs for node in cluster.nodes)
    by_type = Counter[str]()
    for s in cluster.segments:
        assert sum(gpus for _, gpus in s.seats) == s.way.workers
        by_type[accelerator_of(s.way)] += s.gpu_seconds
    assert by_type
    assert all(by_type[type_] <= cluster.paid[type_] + 1 for type_ in by_type)


def test_the_base_is_scored_beside_trials_where_they_leave_room():
    def begin_and_last_trial(plan: Plan) -> tuple[float, float]:
        segments = [s for s in ran(plan, H100=1).segments if s.job.study.size is size_of("llamagen_b")]
        return min(s.begin for s in segments if s.job.of_base), max(s.end for s in segments if s.job.gang)

    begin, last_trial = begin_and_last_trial(CALM)
    assert begin < last_trial
    begin, last_trial = begin_and_last_trial(replace(CALM, ahead=False))
    assert begin >= last_trial


def test_what_needs_no_trial_comes_behind_all_trials_and_asks_for_no_node():
    cluster, small = half_taken(1e5)
    trial = next(iter(list(small.all_stages())[1][0]))
    block = next(iter(small.base_stages[0]))
    trial.place, block.place = 1, 0
    cluster.nodes[0].free = 1
    cluster.queue = [block, trial]
    cluster.place()
    assert cluster.queue == [block]
    cluster.nodes[0].state = "off"
    cluster.place()
    assert cluster.nodes[0].state == "off"


def test_a_calm_trial_takes_as_long_as_its_phases():
    whole = [s for s in ran(CALM).segments if s.job.gang and s.job.at == len(s.job.phases)]  # were not stopped
    assert len(whole) > 12
    for s in whole:
        size = s.job.study.size
        stored = 12 * size.parameters / 1e9
        training = training_seconds(size, s.way, IMAGES, 3 if s.job.number < 0 else 6)
        scoring = sum(phase.seconds(size, s.way, CALM) for phase in s.job.phases if phase.samples)
        assert s.end - s.begin - s.start == pytest.approx(training + scoring + 2 * stored, abs=1)


@pytest.mark.parametrize("plan", [CALM, STORMY])
def test_no_node_holds_more_than_it_has_and_a_gang_is_on_one_type(plan):
    events = [
        (time, change, node)
        for s in ran(plan).segments
        for node, gpus in s.seats
        for time, change in ((s.begin, gpus), (s.end, -gpus))
    ]
    held = Counter[int]()
    for _, change, node in sorted(events, key=lambda event: event[:2]):
        held[id(node)] += change
        assert 0 <= held[id(node)] <= node.gpus
    assert all({node.type for node, _ in s.seats} == {accelerator_of(s.way)} for s in ran(plan).segments)
    assert any(len(s.seats) == 2 for s in ran(plan).segments)
    assert all(s.way.workers == 1 for s in ran(plan).segments if not s.job.gang)


def test_twice_the_gpus_are_never_slower():
    plan = replace(CALM, trials=4, max_concurrent=16, side_by_side=True)  # as few are never stopped
    hours = [ran(plan, H100=count).now for count in (1, 2, 4)]
    assert hours == sorted(hours, reverse=True)
    assert hours[2] < 0.85 * hours[0]


def test_a_lost_node_costs_a_trial_no_more_than_what_came_after_its_last_checkpoint():
    lost = [s for s in ran(STORMY).segments if s.rework]
    assert len(lost) > 3
    for s in lost:  # scoring, and the tasks that are no trials, write no checkpoint
        phases = [p for p in s.job.phases if p.samples or not s.job.gang]
        scoring = max(phase.seconds(s.job.study.size, s.way, STORMY) for phase in phases)
        assert s.rework <= (10 * MINUTE if s.job.gang else 0) + scoring + 1e-6


def test_preemptions_cost_money_and_the_shares_say_how_much():
    (calm_busy, calm_lost), (_, stormy_lost) = shares(ran(CALM)), shares(ran(STORMY))
    assert ran(CALM).losses == calm_lost == 0
    assert ran(STORMY).losses > 0
    assert 0 < stormy_lost < 0.2
    assert 0 < calm_busy <= 1


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    def trace(plan):
        cluster = Cluster(MIXED, plan, SMALL[:1]).run()
        return [(accelerator_of(s.way), s.begin, s.end) for s in cluster.segments]

    assert trace(STORMY) == trace(STORMY)
    assert trace(STORMY) != trace(replace(STORMY, seed=1))


def test_trials_of_a_size_are_never_more_at_a_time_than_allowed():
    events = [(t, c) for s in ran(CALM).segments if s.job.gang and s.job.study.size is size_of(SMALL[0])
              for t, c in ((s.begin, 1), (s.end, -1))]  # fmt: skip
    assert max(np.cumsum([change for _, change in sorted(events)])) <= 4


def random_way(rng: random.Random) -> Placement:
    type_ = rng.choice(list(MACHINES))
    return Placement(gpus=1, cpus=2, workers=rng.choice((1, 2, 4, 8)), accelerators=(Accelerator(type=type_),))


def test_nodes_and_held_cards_of_a_type_taken_together_are_the_same_to_the_line():
    rng = random.Random(0)
    for _ in range(100):
        nodes = [Node(type_, cpus=256, gpus=m.gpus) for type_, m in MACHINES.items() for _ in range(rng.randrange(3))]
        has = Counter[str]()
        for node in nodes:
            has[node.type] += round(node.gpus)
        held, used = list[Placement](), Counter[str]()
        for way in (random_way(rng) for _ in range(6)):
            if used[type_ := accelerator_of(way)] + way.workers <= has[type_]:
                held.append(way)
                used[type_] += way.workers
        line = {str(i): [random_way(rng) for _ in range(3)] for i in range(8)}
        together = [Placement(gpus=1, workers=n, accelerators=(Accelerator(type=t),)) for t, n in used.items() if n]
        assert grant(line, held, nodes) == grant(line, together, [in_all(t, n) for t, n in has.items()])


def half_taken(now: float) -> tuple[Cluster, Study]:
    """One node, half taken, and a study of B, whose trials take one GPU."""
    cluster = Cluster({"H100": 1}, CALM, ("llamagen_b", "llamagen_xxl"))
    cluster.nodes[0].state, cluster.nodes[0].free, cluster.now = "up", 4, now
    return cluster, cluster.studies[0]


def test_who_comes_later_does_not_pass_a_trial_that_could_once_run_there():
    cluster, small = half_taken(1e5)
    gang = [way.model_copy(update={"workers": 8}) for way in cluster.studies[1].ways]
    large, one = (next(iter(list(study.all_stages())[1][0])) for study in (cluster.studies[1], small))
    large.ways, large.place, one.place = gang, 0, 1
    cluster.queue = [one, large]
    cluster.place()
    assert cluster.queue == [large, one]
    large.place, one.place = 1, 0
    cluster.place()
    assert cluster.queue == [large]


def test_a_trial_asks_for_its_next_way_when_the_first_does_not_come():
    cluster = Cluster({"L40S": 1, "H100": 1}, CALM, ("llamagen_b",))
    trial = next(iter(list(cluster.studies[0].all_stages())[1][0]))
    cluster.wait(trial)
    cluster.place()  # asks for an A40, of which there is none
    assert {node.state for node in cluster.nodes} == {"off"}
    cluster.now = DEMAND_S + 1
    cluster.place()
    assert {node.type: node.state for node in cluster.nodes} == {"L40S": "starting", "H100": "off"}


def test_idle_nodes_are_given_back():
    cluster = ran(CALM)
    paid, most = cluster.paid, {type_: cluster.now * MACHINES[type_].gpus * count for type_, count in MIXED.items()}
    assert any(paid[type_] < most[type_] - HOUR for type_ in MIXED)


def test_a_size_that_fits_no_node_is_refused():
    with pytest.raises(ValueError, match="llamagen_3b: fits none"):
        Cluster({"A40": 1}, CALM, ("llamagen_3b",))
