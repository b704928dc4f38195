import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cca_ray.data.pairs import gather, plan_epoch
from cca_ray.data.tokens import TokenSet, read_token_set
from cca_ray.models.likelihood import Scorer
from cca_ray.models.official import load_official
from cca_ray.training.reference_logps import (
    Part,
    making,
    missing_parts,
    pair_logps,
    parts_of,
    read_table,
    score_part,
    table_key,
    write_part,
)
from cca_ray.training.small_base import BaseFiles

IMAGES, EPOCHS = 240, 2


@pytest.fixture(scope="module")
def scorer(base_files: BaseFiles) -> Scorer:
    return Scorer(load_official("llamagen", "S", base_files.checkpoint))


@pytest.fixture(scope="module")
def data(base_files: BaseFiles) -> TokenSet:
    return read_token_set(base_files.tokens)


@pytest.fixture
def folder(tmp_path: Path, scorer: Scorer, data: TokenSet) -> Path:
    """A whole table."""
    for part in parts_of(IMAGES, EPOCHS):
        write_part(tmp_path, part, "key", *score_part(scorer, data, part, null_ratio=0.1, seed=3, batch=50))
    return tmp_path


def test_the_table_holds_what_the_frozen_model_says(scorer: Scorer, data: TokenSet, folder: Path):
    table = read_table(folder, "key", IMAGES, EPOCHS)
    plan = plan_epoch(data.labels, 1, scorer.model.null_label, 0.1, seed=3, epoch=1)
    batch = gather(data, plan, np.array([7, 100, 3]))
    for found, live in zip(table.of(1, batch), pair_logps(scorer, batch), strict=True):
        torch.testing.assert_close(found, live, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(table.positive[0], table.negative[0])


@pytest.mark.parametrize("joined", [torch.mul, torch.maximum, F.mse_loss])
def test_a_live_reference_may_be_multiplied_by_what_is_trained(
    scorer: Scorer, data: TokenSet, joined: Callable[[Tensor, Tensor], Tensor]
):
    """An objective does so that is squared or weighted; only a difference keeps nothing for the backward pass."""
    plan = plan_epoch(data.labels, 1, scorer.model.null_label, 0.1, seed=3, epoch=0)
    trained = torch.zeros(4, requires_grad=True)
    for logps in pair_logps(scorer, gather(data, plan, np.arange(4))):
        assert not logps.requires_grad
        joined(trained, logps).sum().backward()


def test_a_table_of_shuffled_tokens_holds_what_the_frozen_model_says_of_them(rar_files: BaseFiles):
    scorer, data = Scorer(load_official("rar", "S", rar_files.checkpoint, length=16)), read_token_set(rar_files.tokens)
    shuffled, raster = (score_part(scorer, data, Part(1, 0, 40), 0.1, 3, 16, order) for order in ("random", "raster"))
    plan = plan_epoch(data.labels, 1, scorer.model.null_label, 0.1, 3, 1, "random")
    index = np.array([7, 39, 3])
    for found, other, live in zip(shuffled, raster, pair_logps(scorer, gather(data, plan, index)), strict=True):
        np.testing.assert_allclose(found[index], live, rtol=1e-5, atol=1e-5)
        assert not np.allclose(found, other, rtol=1e-3)


def test_parts_cover_every_pair_once():
    assert parts_of(5, 2, 2) == [Part(e, a, b) for e in (0, 1) for a, b in ((0, 2), (2, 4), (4, 5))]
    assert len({part.path(Path()) for part in parts_of(70_000, 3)}) == 9


def test_parts_of_any_size_hold_the_same(scorer: Scorer, data: TokenSet, folder: Path):
    whole = read_table(folder, "key", IMAGES, EPOCHS)
    parts = [score_part(scorer, data, part, 0.1, 3, batch=16) for part in parts_of(IMAGES, EPOCHS, 70)]
    np.testing.assert_allclose(np.concatenate([p for p, _ in parts]), whole.positive.flatten(), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(np.concatenate([n for _, n in parts]), whole.negative.flatten(), rtol=1e-5, atol=1e-5)


def test_fewer_epochs_read_the_first_ones(folder: Path):
    assert torch.equal(read_table(folder, "key", IMAGES, 1).positive, read_table(folder, "key", IMAGES, 2).positive[:1])


def test_a_missing_part_is_known_and_named(folder: Path):
    parts = parts_of(IMAGES, EPOCHS)
    parts[1].path(folder).unlink()
    assert missing_parts(folder, parts) == [parts[1]]
    with pytest.raises(ValueError, match=r"epoch-001-from-000000000\.parquet: missing; run the study again"):
        read_table(folder, "key", IMAGES, EPOCHS)


def test_another_key_is_an_error_never_used(folder: Path):
    with pytest.raises(ValueError, match=r"made for other weights, tokens or pairs \(key key, expected other\)"):
        read_table(folder, "other", IMAGES, EPOCHS)


def test_a_part_of_another_length_is_an_error(folder: Path):
    with pytest.raises(ValueError, match=r"has 240 pairs, expected 250; delete it"):
        read_table(folder, "key", 250, EPOCHS)


def test_a_torn_part_is_an_error_that_names_it(folder: Path):
    path = parts_of(IMAGES, EPOCHS)[0].path(folder)
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(ValueError, match=r"parquet: not part of a reference table; delete it"):
        read_table(folder, "key", IMAGES, EPOCHS)


def test_a_changed_number_is_an_error_that_names_the_file(folder: Path):
    path = parts_of(IMAGES, EPOCHS)[0].path(folder)
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"epoch-000-from-000000000\.parquet: not part of a reference table"):
        read_table(folder, "key", IMAGES, EPOCHS)


def test_who_comes_second_waits_and_finds_it_made(tmp_path: Path):
    order, started = [], threading.Event()

    def second() -> None:
        started.set()
        with making(tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    with making(tmp_path):
        thread.start()
        started.wait()
        thread.join(0.2)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_the_key_follows_all_it_depends_on(data: TokenSet):
    arguments = [("w", 0.1, 0, "auto"), ("v", 0.1, 0, "auto"), ("w", 0.2, 0, "auto"), ("w", 0.1, 1, "auto"),
                 ("w", 0.1, 0, "float32"), ("w", 0.1, 0, "auto", "random"), ("w", 0.1, 0, "auto", "raster", "code"),
                 ("w", 0.1, 0, "auto", "random", "code")]  # fmt: skip
    assert len({table_key(weights, data, *pairing) for weights, *pairing in arguments}) == len(arguments)
    assert table_key("w", data, 0.1, 0, "auto", "raster") == table_key("w", data, 0.1, 0, "auto")
