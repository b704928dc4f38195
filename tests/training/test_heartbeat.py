"""When the workers of a trial pause to write a checkpoint."""

import time
from pathlib import Path

import pytest
import torch

from cca_ray.models.parallel import Group
from cca_ray.training.heartbeat import Pulse
from cca_ray.training.job import Job
from tests.conftest import MakeStudy

CPU = torch.device("cpu")


@pytest.fixture
def job(make_study: MakeStudy, tmp_path: Path) -> Job:
    config = make_study(placement={"checkpoint_minutes": 0.001})
    folder = tmp_path / "trials" / "one"
    folder.mkdir(parents=True)
    return Job(config, config.train, folder)


def saves(pulse: Pulse) -> bool:
    """Whether a checkpoint is due now."""
    pulse.every = 1
    time.sleep(0.1)
    return pulse.beat()[1]


def test_checkpoints_that_take_long_come_less_often(job: Job):
    pulse = Pulse(job, Group(device=CPU))
    assert saves(pulse)
    pulse.wrote(0.001)  # a twentieth of 0.06 s is more
    assert saves(pulse)
    pulse.wrote(3.0)
    assert not saves(pulse)
    pulse.wrote(0.001)  # one that was quick, such as to a cache, says little of the next
    assert not saves(pulse)
    pulse.saved -= 60
    assert saves(pulse)


def test_only_the_first_worker_which_writes_them_says_when(job: Job):
    assert not saves(Pulse(job, Group(1, 1, CPU)))
