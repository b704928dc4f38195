"""Placements as tests need them: from a table of cards and workers, and a way of one as docs/imagenet.md tells it."""

import json

from cca_ray.cluster.placement import Load, memory_gib
from cca_ray.placement_config import Accelerator, Placement


def table(*entries: tuple[str, int]) -> Placement:
    accelerators = [{"type": type_, "workers": workers} for type_, workers in entries]
    return Placement.model_validate_json(json.dumps({"accelerators": accelerators, "cpus": 2}))


def in_words(way: Accelerator, load: Load) -> str:
    """As docs/imagenet.md has it."""
    assert way.workers
    assert way.micro_batch
    assert way.strategy
    needed = memory_gib(load, way.workers, way.micro_batch, way.strategy, recompute=False)
    return f"{way.workers} × {way.micro_batch}{', parted' * (way.strategy == 'fsdp')}: {needed:.0f}"
