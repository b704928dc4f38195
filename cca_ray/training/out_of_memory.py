"""When memory runs out the micro-batch is halved and the accumulation doubled, which changes no result."""

import json
from dataclasses import replace
from pathlib import Path

from cca_ray.cluster.placement import (
    accelerator_of,
    smaller_micro_batch,
)
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import patiently, pull
from cca_ray.training.job import Job

HALVINGS = 2  # of the micro-batch, when memory runs out


def halvings_of(job: Job) -> Path:
    """The file that says how far the micro-batch was halved, in this way of placing the trial."""
    way = f"-{accelerator_of(job.config.placement)}-{job.config.placement.workers}"
    return job.folder / f"micro_batch{way if job.config.placement.accelerators else ''}"


def smaller(job: Job) -> Job:
    """The job with the micro-batch that it was given after memory had run out, if it had."""
    marker = halvings_of(job)
    if not pull(marker):
        return job
    placement = job.config.placement.model_copy(update={"micro_batch": json.loads(marker.read_text())["micro_batch"]})
    return replace(job, config=job.config.model_copy(update={"placement": placement}))


def shrink(job: Job) -> bool:
    """After memory has run out: the next attempt takes half the micro-batch. False if it did so often enough."""
    marker = halvings_of(job)
    halvings = json.loads(marker.read_text())["halvings"] if pull(marker) else 0
    size = smaller_micro_batch(smaller(job).config.placement, job.train.global_batch)
    if size is None or halvings >= HALVINGS:
        return False
    content = json.dumps({"micro_batch": size, "halvings": halvings + 1})
    patiently(lambda: atomically(marker, lambda partial: partial.write_text(content)))
    return True
