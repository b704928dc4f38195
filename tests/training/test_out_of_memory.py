"""What an attempt after memory had run out makes of a placement that its user has changed since."""

from pathlib import Path

import pytest

from cca_ray.cluster.placement import micro_batch_size
from cca_ray.inputs import find_space
from cca_ray.space_file import load_config
from cca_ray.training.job import Job
from cca_ray.training.out_of_memory import HALVINGS, shrink, smaller


def job_of(folder: Path, *settings: str) -> Job:
    config = load_config(find_space("digits_s"), list(settings))
    return Job(config, config.train.model_copy(update={"global_batch": 240}), folder)


def size_of(job: Job) -> int:
    return micro_batch_size(smaller(job).config.placement, job.train.global_batch)


@pytest.mark.parametrize(
    ("setting", "size"),
    [
        ("placement.workers=4", 60),  # a worker's whole share is below the kept 120
        ("placement.workers=5", 48),
        ("placement.micro_batch=16", 16),
        ("placement.micro_batch=240", 120),  # what memory had run out with
    ],
)
def test_a_placement_that_was_changed_after_memory_had_run_out_still_cuts_the_batch(
    tmp_path: Path, setting: str, size: int
):
    assert shrink(job_of(tmp_path))
    assert size_of(job_of(tmp_path)) == 120
    assert size_of(job_of(tmp_path, setting)) == size


def test_a_kept_size_that_no_longer_cuts_a_workers_share_becomes_the_next_that_does(tmp_path: Path):
    assert shrink(job_of(tmp_path, "placement.micro_batch=80"))
    assert size_of(job_of(tmp_path)) == 40
    assert size_of(job_of(tmp_path, "placement.workers=2")) == 40
    assert size_of(job_of(tmp_path, "placement.workers=4")) == 30


def test_a_smaller_size_that_the_user_gives_is_halved_as_often_as_any(tmp_path: Path):
    for _ in range(HALVINGS):
        assert shrink(job_of(tmp_path))
    given = job_of(tmp_path, "placement.micro_batch=16")
    assert [shrink(given), size_of(given)] == [True, 8]
    assert [shrink(given), size_of(given)] == [True, 4]
    assert not shrink(given)
