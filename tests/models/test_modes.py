"""Layers of a plug-in that are random, or mix the rows of a batch, while they train: only training has them so."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
from torch import Tensor, nn

from cca_ray.cluster.device import local_device
from cca_ray.models.dropout import Dropout
from cca_ray.models.family import Parts
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.llamagen_family import LlamaGenFamily
from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig
from cca_ray.models.official import build, load_official, save_official
from cca_ray.models.parallel import whole_model
from cca_ray.registry import FAMILIES
from cca_ray.testing.family_conformance import FamilyConformance
from tests.models.small_settings import GRID, GRID_CODES


class MixingTokenizer(LlamaGenVQ):
    def __init__(self, config: VQConfig):
        super().__init__(config)
        self.decoder.norm_out = nn.BatchNorm2d(self.decoder.norm_out.num_channels)


class RandomModel(LlamaGen):
    def hidden(self, condition: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        return nn.functional.dropout(super().hidden(condition, tokens, dropout), 0.5, self.training)


class Mixing(LlamaGenFamily):
    name = "mixing"

    def parts(self) -> Parts:
        ours = super().parts()
        return dataclasses.replace(ours, model=RandomModel, tokenizer=MixingTokenizer)


@pytest.fixture(scope="module", autouse=True)
def registered() -> Iterator[None]:
    FAMILIES.add(Mixing(), __name__)
    yield
    del FAMILIES.found["mixing"], FAMILIES.owners["mixing"]


class TestFiles(FamilyConformance):
    """Of all promises those of loading."""

    family, tokenizer_config, model_config = Mixing(), GRID_CODES, GRID


for name in dir(FamilyConformance):
    if name.startswith("test_") and "loaded" not in name:
        setattr(TestFiles, name, None)


def test_what_is_loaded_or_made_whole_is_for_sampling(tmp_path: Path):
    model = build("mixing", "S", **GRID)
    assert model.training
    save_official(model, tmp_path / "model.pt")
    assert not load_official("mixing", "S", tmp_path / "model.pt").training
    assert not whole_model(model, {}, local_device()).training
    assert model.training
