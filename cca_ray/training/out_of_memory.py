"""When memory runs out the micro-batch is halved and the accumulation doubled, which changes no result."""

from dataclasses import replace
from pathlib import Path

from pydantic import Field

from cca_ray.cluster.placement import accelerator_of, even_cut, micro_batch_size, smaller_micro_batch
from cca_ray.contracts import Contract
from cca_ray.errors import reading
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import patiently, pull
from cca_ray.training.job import Job

HALVINGS = 2  # of the micro-batch, when memory runs out


class Halved(Contract):
    """What such a file says: the micro-batch, and after how many halvings."""

    micro_batch: int = Field(ge=1)
    halvings: int


def read_halved(marker: Path) -> Halved:
    """ValueError, naming the file, if it is damaged."""
    with reading(marker, "damaged; delete it"):
        return Halved.model_validate_json(marker.read_bytes())


def halvings_of(job: Job) -> Path:
    """The file that says how far the micro-batch was halved, in this way of placing the trial."""
    way = f"-{accelerator_of(job.config.placement)}-{job.config.placement.workers}"
    return job.folder / f"micro_batch{way if job.config.placement.accelerators else ''}"


def smaller(job: Job) -> Job:
    """The job with the micro-batch that it was given after memory had run out, if it had.

    Its user may have placed it anew since: a smaller micro-batch of theirs holds, and what no longer cuts a worker's
    share evenly becomes the next size that does. ValueError if the global batch cannot be cut evenly.
    """
    marker, placement, total = halvings_of(job), job.config.placement, job.train.global_batch
    if not pull(marker):
        return job
    share, most = total // placement.workers, min(micro_batch_size(placement, total), read_halved(marker).micro_batch)
    placement = placement.model_copy(update={"micro_batch": even_cut(share, most)})
    return replace(job, config=job.config.model_copy(update={"placement": placement}))


def shrink(job: Job, tried: Job | None = None) -> bool:
    """After memory has run out: the next attempt takes half the micro-batch. False if it did so often enough.

    `tried`: the job as it was attempted; its workers, to whom one event may happen at once, halve its micro-batch once.
    """

    def size_of(some: Job) -> int:
        return micro_batch_size(some.config.placement, job.train.global_batch)

    marker, present = halvings_of(job), smaller(job)
    if tried is not None and size_of(present) < size_of(tried):
        return True
    kept = read_halved(marker) if pull(marker) else None
    # What the user has placed anew with no more than the kept size has not been halved yet.
    halvings = kept.halvings if kept is not None and kept.micro_batch < size_of(job) else 0
    size = smaller_micro_batch(present.config.placement, job.train.global_batch)
    if size is None or halvings >= HALVINGS:
        return False
    content = Halved(micro_batch=size, halvings=halvings + 1).model_dump_json()
    patiently(lambda: atomically(marker, lambda partial: partial.write_text(content)))
    return True
