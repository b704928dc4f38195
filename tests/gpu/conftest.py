"""Every test here has two forms: on a card, official shapes (`-m gpu`); on the CPU, tiny ones, in the default suite."""

from collections.abc import Iterator

import pytest
import torch

from cca_ray.cluster.device import PRETENDED, free_memory
from tests.gpu.places import OnCard, OnCpu, Place

CARD = pytest.param("card", marks=[pytest.mark.gpu, pytest.mark.timeout(1800)])


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch, card_alone: None) -> Iterator[OnCard]:
    """A card, for one test at a time. Without one it is skipped."""
    if not torch.cuda.is_available():
        pytest.skip("wants a GPU")
    monkeypatch.delenv(PRETENDED)
    yield OnCard()
    free_memory(OnCard.device)


@pytest.fixture(params=["cpu", CARD])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = OnCpu() if request.param == "cpu" else request.getfixturevalue("card")
    return found
