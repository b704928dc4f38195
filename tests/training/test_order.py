"""A random order of the tokens: the reference's table is of the very order in which each image is trained."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cca_ray.config import StudyConfig
from cca_ray.data.pairs import places_of
from cca_ray.evaluation.scoring import load_base, load_tokens
from cca_ray.models.files import digest_of_weights
from cca_ray.models.parallel import Group
from cca_ray.models.rar import RAR
from cca_ray.storage.uris import to_uri
from cca_ray.training.job import Job
from cca_ray.training.reference_logps import ReferenceTable, parts_of
from cca_ray.training.setup import Loop, prepare, reference_key, settings_of
from cca_ray.training.step import train_step
from cca_ray.training.tasks import TableMaker
from tests.conftest import MakeStudy
from tests.training.recipe import BATCH, RECIPE

IMAGES, EPOCHS, SEED = 240, 2, 5
EPOCH_STEPS = IMAGES // BATCH
GROUP = Group(device=torch.device("cpu"))


class Heard(nn.Module):
    """A scorer that keeps what training asks of the model: conditions, tokens and places."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.asked: list[tuple[Tensor, Tensor, Tensor]] = []

    def forward(self, labels: Tensor, tokens: Tensor, dropout: None, places: Tensor) -> Tensor:
        self.asked.append((labels, tokens, places))
        return self.scale * labels


def ordered(make_study: MakeStudy, order: str) -> StudyConfig:
    train = {**RECIPE, "epochs": EPOCHS, "seed": SEED, "reference": "table"}
    return make_study(family="rar", data={"order": order}, train=train)


def with_table(config: StudyConfig, folder: Path) -> Loop:
    """A fine-tuning that reads its table, which the study's workers' code makes first."""
    (table := folder / "table").mkdir()
    maker = TableMaker(Job(config, config.train, folder).packed(), to_uri(table))
    assert sum(maker.make(part) for part in parts_of(IMAGES, EPOCHS)) == IMAGES * EPOCHS
    return prepare(Job(config, config.train, folder / "trial", table), GROUP)


@torch.no_grad()
def by_hand(model: RAR, labels: Tensor, tokens: Tensor, places: Tensor) -> Tensor:
    """log p [B] from the model's own logits."""
    logits = model.head(model.hidden_in_order(places, labels, tokens))
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2))


def trained(loop: Loop, step: int) -> tuple[np.ndarray, list[tuple[Tensor, Tensor, Tensor]]]:
    """The images of a step, and what it asks of the model."""
    loop.scorer = heard = Heard()
    train_step(loop, step)
    assert loop.plan is not None
    return loop.plan.order[step % EPOCH_STEPS * BATCH :][:BATCH], heard.asked


def test_the_table_is_of_the_order_in_which_each_image_is_trained(make_study: MakeStudy, tmp_path: Path):
    """Of every step of two epochs, under the true, the negative and the null condition."""
    config = ordered(make_study, "random")
    loop, base = with_table(config, tmp_path), load_base(config)
    assert isinstance(base, RAR)
    assert isinstance(loop.table, ReferenceTable)
    nulls = [0] * EPOCHS
    for step in range(EPOCHS * EPOCH_STEPS):
        epoch = step // EPOCH_STEPS
        images, asked = trained(loop, step)
        places = torch.cat([places.chunk(2)[0] for _, _, places in asked])
        np.testing.assert_array_equal(places, places_of(SEED, epoch, images, 16))
        expected = zip(*(by_hand(base, *batch).chunk(2) for batch in asked), strict=True)
        for found, of_base in zip((loop.table.positive, loop.table.negative), expected, strict=True):
            torch.testing.assert_close(found[epoch, images], torch.cat(of_base), rtol=1e-5, atol=1e-4)
        nulls[epoch] += sum(int((labels == base.null_label).sum()) for labels, _, _ in asked)
    assert min(nulls) > 0


def test_a_table_of_another_order_is_never_taken(make_study: MakeStudy, tmp_path: Path):
    """Nor is a checkpoint, which keeps the order among what its weights depend on."""
    random, raster = (ordered(make_study, order) for order in ("random", "raster"))
    data, digest = load_tokens(random.data.tokens), digest_of_weights(load_base(random))
    assert len({reference_key(digest, config, config.train, data) for config in (random, raster)}) == 2
    loop = with_table(raster, tmp_path)
    with pytest.raises(ValueError, match="made for other weights, tokens or pairs"):
        prepare(Job(random, random.train, tmp_path / "trial", tmp_path / "table"), GROUP)
    live = prepare(Job(random, random.train_with({"reference": "live"}), tmp_path / "trial"), GROUP)
    assert [settings_of(prepared).order for prepared in (loop, live)] == ["raster", "random"]
