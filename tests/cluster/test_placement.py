import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from cca_ray.cluster.placement import (
    CARDS,
    USABLE,
    Load,
    accelerator_of,
    autocast,
    check_cuts,
    epoch_hours,
    exchange_seconds,
    in_this_process,
    memory_gib,
    micro_batch_size,
    ways,
    ways_by_arithmetic,
    worker_resources,
)
from cca_ray.errors import is_out_of_memory
from cca_ray.inputs import SPACES
from cca_ray.models.family import family_of
from cca_ray.models.official import configure, parameters
from cca_ray.placement_config import Placement
from cca_ray.space_file import load_config


@pytest.mark.parametrize(("workers", "micro_batch", "size"), [(1, None, 24), (1, 8, 8), (2, None, 12), (2, 4, 4)])
def test_the_global_batch_is_cut_evenly(workers: int, micro_batch: int | None, size: int):
    assert micro_batch_size(Placement(workers=workers, micro_batch=micro_batch), 24) == size


@pytest.mark.parametrize(("workers", "micro_batch"), [(5, None), (1, 7), (2, 24)])
def test_an_uneven_cut_is_refused(workers: int, micro_batch: int | None):
    with pytest.raises(ValueError, match="global_batch 24"):
        micro_batch_size(Placement(workers=workers, micro_batch=micro_batch), 24)


def test_resources_name_a_gpu_only_if_there_is_one():
    assert worker_resources(Placement(cpus=2)) == {"CPU": 2}
    assert worker_resources(Placement(gpus=1)) == {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_bfloat16_on_a_cpu_only_if_asked_for(precision: str, dtype: torch.dtype):
    x = torch.ones(2, 2)
    with autocast(Placement.model_validate({"precision": precision}), torch.device("cpu")):
        assert (x @ x).dtype == dtype


MIXED = Placement.model_validate_json(
    '{"cpus": 2, "micro_batch": 12, "precision": "float32", "accelerators": ['
    '{"type": "H100", "workers": 2, "strategy": "fsdp"}, {"type": "CPU", "workers": 4, "cpus": 1, "micro_batch": 6}]}'
)


def test_a_way_takes_from_the_placement_what_it_does_not_say():
    on_cards, on_cpus = ways(MIXED)
    assert (on_cards.workers, on_cards.gpus, on_cards.cpus, on_cards.micro_batch) == (2, 1.0, 2, 12)
    assert (on_cards.strategy, accelerator_of(on_cards)) == ("fsdp", "H100")
    assert (on_cpus.workers, on_cpus.gpus, on_cpus.cpus, on_cpus.micro_batch) == (4, 0, 1, 6)
    assert ways(Placement()) == (Placement(),)
    assert in_this_process(Placement())
    assert not in_this_process(ways(Placement.model_validate({"accelerators": ({"type": "A40"},)}))[0])


def test_the_precision_that_all_ways_say_is_the_studys():
    table = [{"type": type_, "precision": "bfloat16"} for type_ in ("CPU", "A40")]
    placement = Placement.model_validate_json(json.dumps({"accelerators": table}))
    assert {placement.precision, *(way.precision for way in ways(placement))} == {"bfloat16"}


def test_every_way_must_cut_the_global_batch_evenly():
    check_cuts(MIXED, 24)
    with pytest.raises(ValueError, match=r"global_batch 16 over 2 worker\(s\) is 8 each"):
        check_cuts(MIXED, 16)


@pytest.mark.parametrize(
    ("placement", "told"),
    [
        ({"accelerators": [{"type": "CPU"}, {"type": "A40"}]}, "precision must be given"),
        ({"accelerators": [{"type": "CPU", "gpus": 1.0}]}, "type CPU has no gpus"),
        ({"accelerators": [{"type": "A40", "gpus": 0.0}]}, "type A40 needs gpus above 0"),
        ({"accelerators": [{"type": "an A40"}]}, "type"),
        ({"workers": 2, "gpus": 0.5}, "NCCL refuses two workers on one card"),
        ({"gpus": 0.5, "accelerators": [{"type": "A40"}, {"type": "H100", "workers": 4}]}, "gpus 0.5 with 4 workers"),
        ({"workers": 2, "gpus": 1, "accelerators": [{"type": "A40", "gpus": 0.25}]}, "gpus 0.25 with 2 workers"),
        ({"gpus": 1.5}, "gpus 1.5: expected a share of one card, or whole cards"),
        ({"accelerators": [{"type": "A40", "precision": "float32"}, {"type": "H100"}]}, "auto and float32"),
        (
            {"precision": "float32", "accelerators": [{"type": "A40"}, {"type": "H100", "precision": "bfloat16"}]},
            "bfloat16 and float32: a result must not depend on the card",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(placement: dict[str, Any], told: str):
    with pytest.raises(ValueError, match=told):
        Placement.model_validate_json(json.dumps(placement))


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes",
    ],
)
def test_memory_runs_out_in_many_words(said: str):
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(torch.AcceleratorError(said))
    assert not is_out_of_memory(ValueError(said))
    assert not is_out_of_memory(torch.AcceleratorError("CUDA error: device-side assert triggered"))


def test_one_worker_or_gloo_may_share_a_card():
    for sound in ({"gpus": 0.5}, {"gpus": 2.0}, {"workers": 2, "gpus": 0.5, "backend": "gloo"}, {"workers": 2}):
        Placement.model_validate(sound)


OF_TEXTS = "llamagen_t2i"  # tests/models/test_llamagen_t2i.py has its table
OFFICIAL = [
    path
    for family in ("llamagen", "var", "rar")
    for path in SPACES.glob(f"{family}_*.yaml")
    if not path.stem.startswith(OF_TEXTS)
]


@pytest.mark.parametrize("path", OFFICIAL, ids=lambda path: path.stem)
def test_the_shipped_tables_are_what_the_arithmetic_gives(path: Path):
    config = load_config(path)
    shape = configure(
        config.base.family, config.base.size, **({"image_size": 384} if config.base.family == "llamagen" else {})
    )
    with torch.device("meta"):
        model = family_of(config.base.family).parts().model(shape)
    kept = family_of(config.base.family).kept_bytes(shape)
    load = Load(parameters(model), len(model.stack), shape.dim, model.config.block_size, activation_bytes=kept)
    assert config.placement.accelerators == ways_by_arithmetic(load, config.train.global_batch)
    assert config.placement.accelerators
    for way in ways(config.placement):
        needs = memory_gib(load, way.workers, way.micro_batch or 0, way.strategy, way.activation_checkpointing)
        assert needs <= USABLE * CARDS[accelerator_of(way)].memory_gib


def test_a_model_is_not_parted_over_cards_that_would_wait_for_each_other():
    """3B fits eight A40s or L40S, but a micro-batch of four pairs is done long before the next weights are there."""
    load = Load(parameters=3_096_659_200, layers=24, width=3200, tokens=576)
    for type_, times in (("L40S", 2.7), ("A40", 4.3)):
        assert memory_gib(load, 8, 4, "fsdp", False) < USABLE * CARDS[type_].memory_gib
        arithmetic = epoch_hours(load, CARDS[type_], 1) * 3600 * 4 / 1_281_167
        assert exchange_seconds(load, CARDS[type_], 8) / arithmetic == pytest.approx(times, abs=0.05)
    assert [(way.type, way.workers) for way in ways_by_arithmetic(load, 256)] == [("H100", 4), ("A100", 8)]


def test_cards_that_exchange_slowly_take_a_larger_micro_batch_if_more_of_them_have_room():
    load = Load(parameters=1_410_972_672, layers=48, width=1536, tokens=576)
    (way,) = (way for way in ways_by_arithmetic(load, 256) if way.type == "L40S")
    assert memory_gib(load, 4, 4, "fsdp", False) < USABLE * CARDS["L40S"].memory_gib
    assert (way.workers, way.micro_batch, way.strategy, way.activation_checkpointing) == (8, 8, "fsdp", None)


def test_what_needs_less_memory_and_what_more():
    load = Load(parameters=10**9, layers=24, width=1536, tokens=576)
    plain = memory_gib(load, 4, 16, "ddp", False)
    assert memory_gib(load, 4, 32, "ddp", False) > plain
    assert memory_gib(load, 4, 16, "fsdp", False) < plain
    assert memory_gib(load, 4, 16, "ddp", True) < plain
    assert memory_gib(replace(load, activation_bytes=83), 4, 16, "ddp", False) > plain
    # Weights, gradients, moments and EMA of 10⁹ parameters, and what a rung's scoring takes beside them.
    assert memory_gib(load, 1, 1, "ddp", True) == pytest.approx((20e9 + 2e9 + 20 * 2**30) / 2**30)
