"""Embedded bases of the sizes to come, made in idle time while the first one is searched."""

import os
from collections.abc import Sequence
from pathlib import Path

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cca_ray.config import StudyConfig
from cca_ray.storage.uris import local_path, to_uri
from cca_ray.training.small_base import is_made, resolve


def make(config: str, storage: str, before: object) -> None:
    """The base of a search space, given as JSON. `before`: what the base that is to be made first gave."""
    os.nice(19)  # trials go first; this process makes one base and ends
    resolve(StudyConfig.model_validate_json(config), local_path(storage), lambda what, done, total: None)


def bases_ahead(configs: Sequence[StudyConfig], storage: Path) -> dict[str, ray.ObjectRef]:
    """Begin to make those that are missing, one after another, on this machine; by the size's name, its end."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    task = ray.remote(num_cpus=0, max_calls=1, max_retries=0)(make).options(scheduling_strategy=here)
    made, before = dict[str, ray.ObjectRef](), None
    for config in configs:
        if config.base.embedded is not None and not is_made(config, storage):
            made[config.name] = before = task.remote(config.model_dump_json(by_alias=True), to_uri(storage), before)
    return made
