"""Files that all trials of a size share, made once, by all workers of the cluster: reference table, base's samples."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import ray
from ray.util import ActorPool

from cca_ray.cluster.placement import accelerator_of, ways
from cca_ray.cluster.queue import as_worker, nodes_now, slots
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.data.tokens import TokenSet
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import to_uri
from cca_ray.training.job import Job
from cca_ray.training.objectives import objective_of
from cca_ray.training.reference_logps import making, missing_parts, parts_of
from cca_ray.training.setup import reference_key
from cca_ray.training.tasks import TableMaker, draw_base

PAIRING = {"null_ratio", "seed"}  # what the pairs, and so the reference's table, depend on
SAY_EVERY_S = 10.0


@dataclass(frozen=True)
class BaseGrid:
    """The picture of the base's samples, which a worker draws while other files are made."""

    path: Path
    drawing: ray.ObjectRef | None  # None: it is there

    @classmethod
    def begun(cls, config: ResolvedStudy, storage: Path, made_of: str) -> "BaseGrid":
        """`made_of` names weights and protocol, and so the file."""
        path = storage / config.name / f"base-{made_of}.png"
        if pull(path):
            return cls(path, None)
        packed = Job(config, config.train, storage).packed()
        return cls(path, as_worker(draw_base, config.placement).remote(packed, to_uri(path)))

    def ready(self, stop: Stop) -> Path:
        """Its file, once it is drawn."""
        if self.drawing is not None:
            stop.get([self.drawing])
            pull(self.path)
        return self.path


def workers_now(config: ResolvedStudy) -> int:
    """How many workers of a trial the cluster can hold now; at least one, for which it may have to grow."""
    nodes, kinds = nodes_now(), {accelerator_of(way): way for way in ways(config.placement)}
    return max(1, sum(slots(way, nodes) for way in kinds.values()))


def reference_table(
    config: ResolvedStudy, base_digest: str, data: TokenSet, root: Path, say: Callable[[str], None], stop: Stop
) -> Path | None:
    """The folder with the reference's log-likelihoods, below `root`; what is missing is made now.

    None where the objective wants no reference, and where the table would have to be another for every trial: they
    score the reference themselves.
    """
    train, space = config.train, config.search.space
    if train.reference == "live" or PAIRING & set(space) or not objective_of(train).reference:
        return None
    epochs = round(space["epochs"].high) if "epochs" in space else train.epochs
    folder = root / reference_key(base_digest, config, train, data)
    parts = parts_of(len(data.labels), epochs)
    pull(folder)
    if not missing_parts(folder, parts):
        return folder
    with making(folder):
        missing = missing_parts(folder, parts)  # another study may have made it in the meantime
        packed = Job(config, train, root).packed()
        maker = as_worker(TableMaker, config.placement, max_restarts=2, max_task_retries=2)
        pool = ActorPool([maker.remote(packed, to_uri(folder)) for _ in range(min(len(missing), workers_now(config)))])
        total, done, said = sum(part.stop - part.start for part in missing), 0, time.monotonic()
        for pairs in stop.map_unordered(pool, lambda actor, part: actor.make.remote(part), missing):
            done += pairs
            if time.monotonic() - said > SAY_EVERY_S:
                say(f"{config.name}  reference: {done:,}/{total:,} pairs scored")
                said = time.monotonic()
    return folder
