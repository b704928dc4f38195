"""The cluster's simulation: its arithmetic agrees with the models, its event loop keeps its rules."""

import math
from collections import Counter
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.cluster_sim import (
    CARDS,
    HOUR,
    SIZES,
    USABLE,
    Cluster,
    Entry,
    Outcome,
    Phase,
    Plan,
    entry_of,
    memory_gb,
    stops,
    table_of,
    training_seconds,
)
from cca_ray.ledger import Mark, goes_on
from cca_ray.models import FAMILIES, configure, parameters

SMALL = (SIZES[0], SIZES[2], SIZES[5])  # B, XL and d16
MIXED = {"A40": 1, "A100-40": 1, "H100": 1}
CALM, STORMY = Plan(), Plan(preemptions=0.5)
JOBS = 40 + 19 + 9 + 4 + 3 + 18  # of a size: parts of the reference, trials, blocks of the four stages


@cache
def ran(plan: Plan, **nodes: int) -> Cluster:
    return Cluster({name.replace("_", "-"): count for name, count in nodes.items()} or MIXED, plan, SMALL).run()


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
def test_parameters_widths_and_tokens_are_those_of_the_models(size):
    family, name = size.name.split("_")
    name = name if family == "var" or name == "3B" else name.upper()
    config = configure(family, name, **({"image_size": 384} if family == "llamagen" else {}))
    with torch.device("meta"):
        model = FAMILIES[family].model(config)
    assert parameters(model) == size.parameters
    assert (config.dim, len(model.stack), config.block_size) == (size.width, size.layers, size.tokens)
    assert (config.vocab_size, len(model.decode_steps)) == (size.codes, size.passes)


def test_a_forward_pass_takes_what_torch_counts():
    with torch.device("meta"):
        model = FAMILIES["llamagen"].model(configure("llamagen", "B", image_size=384))
        with FlopCounterMode(display=False) as counter:
            model(torch.zeros(1, dtype=torch.long), torch.zeros(1, 576, dtype=torch.long))
    assert SIZES[0].forward_flop == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_training_is_six_flop_a_parameter_and_token_and_eight_with_recomputation():
    size, entry = SIZES[4], Entry(CARDS["H100"], 8, 4, "fsdp", False)
    rate = 8 * 0.35 * 989e12
    assert training_seconds(size, entry, 1) == pytest.approx(2 * 6 * size.parameters * size.tokens / rate, rel=0.04)
    again = training_seconds(size, replace(entry, recompute=True), 1)
    assert again == pytest.approx(8 / 6 * training_seconds(size, entry, 1))


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.name)
@pytest.mark.parametrize("card", CARDS.values(), ids=lambda card: card.name)
def test_what_is_placed_fits_and_cuts_the_global_batch_evenly(size, card):
    entry = entry_of(size, card)
    assert entry is not None
    assert memory_gb(size, entry) <= USABLE * card.memory_gb
    assert 256 % (entry.workers * entry.micro_batch) == 0


def test_fsdp_ema_and_recomputation_change_memory_as_they_should():
    size, entry = SIZES[4], Entry(CARDS["H100"], 8, 4, "fsdp", False)
    assert memory_gb(size, replace(entry, strategy="ddp")) > 20 * size.parameters / 1e9
    assert memory_gb(size, replace(entry, recompute=True)) <= memory_gb(size, entry)
    assert memory_gb(size, entry, ema=True) - memory_gb(size, entry) == pytest.approx(4 * size.parameters / 8e9)


def test_a_table_leaves_out_cards_that_take_too_long_unless_there_is_no_other():
    cards = [CARDS["A40"], CARDS["H100"]]
    assert [entry.card.name for entry in table_of(SIZES[0], cards, 6 * HOUR)] == ["H100", "A40"]
    assert [entry.card.name for entry in table_of(SIZES[4], cards, 6 * HOUR)] == ["H100"]
    assert [entry.card.name for entry in table_of(SIZES[4], cards[:1], 6 * HOUR)] == ["A40"]


def test_the_rule_at_a_rung_is_the_ledgers():
    scores = np.random.default_rng(0).normal(size=60).tolist()
    marks = [Mark(np.array([score]), np.full((10, 1), score)) for score in scores]
    for count in range(60):
        for keep in (0.5, 0.9):
            stop = stops(scores[count], scores[:count], keep, 4, 0.0)
            assert stop is not goes_on(marks[count], marks[:count], keep, 4)


@pytest.mark.parametrize("plan", [CALM, STORMY, replace(CALM, max_concurrent=16, side_by_side=True)])
def test_every_job_ends_and_work_is_conserved(plan):
    cluster = ran(plan)
    last = [s for s in cluster.segments if not s.rework and s.job.segment is None]
    assert len({id(s.job) for s in last}) == JOBS * len(SMALL)
    by_card, by_job = Counter[str](), Counter[int]()
    for s in cluster.segments:
        by_card[s.node.card.name] += s.gpus * (s.end - s.begin)
        by_job[id(s.job)] += s.gpus * (s.end - s.begin)
    assert sum(by_card.values()) == pytest.approx(sum(by_job.values()))
    assert all(by_card[name] <= cluster.paid[name] + 1 for name in by_card)


def test_a_calm_trial_takes_as_long_as_its_phases():
    cluster = ran(CALM)
    for s in cluster.segments:
        if s.job.gang and s.job.at == len(s.job.phases):  # was not stopped
            phases = sum(phase.seconds(s.job.study.size, s.entry, CALM) for phase in s.job.phases)
            checkpoints = 2 * 12 * s.job.study.size.parameters / 1e9
            assert s.end - s.begin - s.start == pytest.approx(phases + checkpoints, abs=1)


@pytest.mark.parametrize("plan", [CALM, STORMY])
def test_no_node_holds_more_than_it_has_and_a_gang_is_on_one_node(plan):
    events = [
        (time, change, s.node) for s in ran(plan).segments for time, change in ((s.begin, s.gpus), (s.end, -s.gpus))
    ]
    held = Counter[int]()
    for _, change, node in sorted(events, key=lambda event: event[:2]):
        held[id(node)] += change
        assert 0 <= held[id(node)] <= node.card.node
    assert all(s.gpus == (s.node.card.node if s.job.gang else 1) for s in ran(plan).segments)


def test_twice_the_gpus_are_never_slower():
    plan = replace(CALM, keep=1.0, max_concurrent=16, side_by_side=True)  # the load does not depend on the order
    hours = [ran(plan, H100=count).now for count in (1, 2, 4)]
    assert hours == sorted(hours, reverse=True)
    assert hours[1] < 0.6 * hours[0]


def test_a_lost_node_costs_a_trial_no_more_than_what_came_after_its_last_checkpoint():
    lost = [s for s in ran(STORMY).segments if s.rework]
    assert len(lost) > 3
    for s in lost:  # scoring, and the tasks that are no trials, write no checkpoint
        phases = [p for p in s.job.phases if p.samples or not s.job.gang]
        scoring = max(phase.seconds(s.job.study.size, s.entry, STORMY) for phase in phases)
        assert s.rework <= (STORMY.checkpoint if s.job.gang else 0) + scoring + 1e-6


def test_preemptions_cost_money_and_the_outcome_says_how_much():
    prices = {card.name: card.usd_an_hour for card in CARDS.values()}
    calm, stormy = Outcome.of(ran(CALM), prices), Outcome.of(ran(STORMY), prices)
    assert calm.losses == calm.lost == 0
    assert stormy.losses > 0
    assert 0 < stormy.lost < 0.2
    assert 0 < calm.busy <= 1


def test_the_same_seed_gives_the_same_run_and_another_one_another():
    def trace(plan):
        cluster = Cluster(MIXED, plan, SMALL).run()
        return [(s.node.card.name, s.gpus, s.begin, s.end) for s in cluster.segments]

    assert trace(STORMY) == trace(STORMY)
    assert trace(STORMY) != trace(replace(STORMY, seed=1))


def test_trials_of_a_size_are_never_more_at_a_time_than_allowed():
    events = [(t, c) for s in ran(CALM).segments if s.job.gang and s.job.study.size is SIZES[0]
              for t, c in ((s.begin, 1), (s.end, -1))]  # fmt: skip
    assert max(np.cumsum([change for _, change in sorted(events)])) <= 4


def waiting_cluster(waited: float) -> tuple[Cluster, Cluster]:
    """One node, half taken; a trial has waited for all of it, then a one-GPU task came."""
    cluster = Cluster({"H100": 1}, CALM, SMALL[:1])
    study, node = cluster.studies[0], cluster.nodes[0]
    node.state, node.free, study.began, cluster.now = "up", 4, 0.0, 1e5
    trial, block = study.trials()[0], next(study.comparison())[0]
    trial.waits_since, block.waits_since = cluster.now - waited, cluster.now
    cluster.queue = [block, trial]
    cluster.place()
    return cluster, block


def test_small_ones_pass_a_trial_that_waits_but_not_for_ever():
    cluster, block = waiting_cluster(CALM.bound / 2)
    assert block.segment is not None  # it would not have helped the trial to leave the GPU idle so soon
    cluster, block = waiting_cluster(CALM.bound * 2)
    assert block.segment is None
    assert [job.gang for job in cluster.queue] == [True, False]


def test_the_largest_size_takes_the_fastest_cards_and_the_others_the_smallest():
    cluster = Cluster({"A40": 1, "A100-40": 1, "H100": 1}, CALM, (SIZES[0], SIZES[3]))
    small, large = cluster.studies
    small.began = large.began = 0.0
    assert cluster.preference(small)[0].card.name == "A40"
    assert cluster.preference(large)[0].card.name == "H100"
    large.ended = 1.0
    assert cluster.preference(small)[0].card.name == "H100"


def test_idle_nodes_are_given_back():
    cluster = ran(CALM)
    assert any(cluster.paid[node.card.name] < cluster.now * node.card.node - HOUR for node in cluster.nodes)


def test_a_phase_scores_in_rounds_of_whole_shards():
    size, entry = SIZES[0], entry_of(SIZES[0], CARDS["H100"])
    assert entry is not None
    few, more = (Phase(samples=n).seconds(size, entry, CALM) - CALM.fid for n in (8 * 256, 8 * 256 + 1))
    assert more == pytest.approx(2 * few)
    assert math.isclose(Phase(samples=100).seconds(size, entry, CALM) - CALM.fid, few * 100 / 256)
