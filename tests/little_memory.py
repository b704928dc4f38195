"""A fine-tuning in a process of its own that may only take so much more memory: `python -m tests.little_memory`.

Arguments: a file with a packed job, and how many MiB the process may grow by once everything is loaded.
"""

import json
import resource
import sys
from pathlib import Path

from cca_ray.models.parallel import Group
from cca_ray.training.job import Job
from cca_ray.training.loop import fine_tune


def grown() -> int:
    """Bytes of address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def main() -> None:
    job = Job.unpacked(Path(sys.argv[1]).read_text())
    placement = job.config.placement.model_copy(update={"micro_batch": 8})
    warm = Job(job.config.model_copy(update={"placement": placement}), job.train, job.folder / "warm", job.table)
    fine_tune(warm, lambda report: None, Group())  # threads, libraries and caches are there after this
    limit = grown() + int(sys.argv[2]) * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    tried: list[int] = []
    fine_tune(job, lambda report: tried.append(report.micro_batch), Group())
    print(json.dumps(sorted(set(tried))))


if __name__ == "__main__":
    main()
