"""Every test here has two forms: on a card, official shapes (`-m gpu`); on the CPU, tiny ones, in the default suite."""

import os
from collections.abc import Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path

import pytest
import torch

from cca_ray.cluster.device import PRETENDED, free_memory
from tests.gpu.places import OnCard, OnCpu, Place

CARD = pytest.param("card", marks=[pytest.mark.gpu, pytest.mark.timeout(1800)])


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnCard]:
    """A card, for one test at a time; the others of this run wait here. Without one it is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("wants a GPU")
    monkeypatch.delenv(PRETENDED)
    run = tmp_path_factory.getbasetemp()
    shared: Path = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    with (shared / "card").open("w") as lock:
        flock(lock, LOCK_EX)
        yield OnCard()
        free_memory(OnCard.device)


@pytest.fixture(params=["cpu", CARD])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = OnCpu() if request.param == "cpu" else request.getfixturevalue("card")
    return found
