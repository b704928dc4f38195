from dataclasses import replace

import numpy as np
import pytest
import torch

from cca_ray.data.pairs import gather, micro_batches, places_of, plan_epoch, steps_per_epoch
from cca_ray.data.tokens import TokenMeta, TokenSet

LABELS = np.random.default_rng(0).integers(0, 10, 1000)
NULL = 10


def plan(seed: int = 0, epoch: int = 0, null_ratio: float = 0.1, crops: int = 3):
    return plan_epoch(LABELS, crops, NULL, null_ratio, seed, epoch, "random")


def token_set(count: int = 48, length: int = 2) -> TokenSet:
    meta = TokenMeta(
        tokenizer="", codebook_size=9999, length=length, crops=3, image_size=8, augmentations=("a", "b", "c"),
        class_names=tuple("0123456789"),
    )  # fmt: skip
    tokens = np.arange(count * 3 * length, dtype=np.uint16).reshape(count, 3, length)
    return TokenSet(LABELS[:count], tokens, meta, "")


def test_decisions_are_a_function_of_seed_and_epoch():
    for name in vars(plan()):
        same, other = getattr(plan(), name), getattr(plan(), name)
        np.testing.assert_array_equal(same, other)
        assert not np.array_equal(getattr(plan(seed=1), name), same)
        assert not np.array_equal(getattr(plan(epoch=1), name), same)


def test_the_negative_is_the_label_of_the_next_image_of_the_epoch():
    p = plan(null_ratio=0.0)
    here, following = p.order[:-1], p.order[1:]
    np.testing.assert_array_equal(p.negative_labels[here], LABELS[following])
    assert p.negative_labels[p.order[-1]] == LABELS[p.order[0]]
    assert np.bincount(p.negative_labels).tolist() == np.bincount(LABELS).tolist()


def test_null_masks_both_conditions_at_the_given_rate():
    p = plan(null_ratio=0.3)
    assert 0.25 < p.null.mean() < 0.35
    assert (p.labels[p.null] == NULL).all()
    assert (p.negative_labels[p.null] == NULL).all()
    np.testing.assert_array_equal(p.labels[~p.null], LABELS[~p.null])
    assert not plan(null_ratio=0.0).null.any()


def test_the_null_ratio_moves_no_other_decision():
    a, b = plan(null_ratio=0.1), plan(null_ratio=0.5)
    np.testing.assert_array_equal(a.order, b.order)
    np.testing.assert_array_equal(a.crops, b.crops)
    assert (b.null | ~a.null).all()


def test_an_images_tokens_have_an_order_of_its_own_every_epoch():
    index, length = np.arange(48), 16
    orders = places_of(3, 1, index, length)
    assert (np.sort(orders, axis=1) == np.arange(length)).all()
    assert len({tuple(row) for row in orders.tolist()}) == 48
    np.testing.assert_array_equal(places_of(3, 1, index[::-5], length), orders[::-5])  # whatever the batch
    for seed, epoch in ((4, 1), (3, 2)):
        assert not np.array_equal(places_of(seed, epoch, index, length), orders)
    counts = np.stack([np.bincount(places_of(0, 0, np.arange(4000), 4)[:, t], minlength=4) for t in range(4)])
    assert (abs(counts - 1000) < 5 * 1000**0.5).all()  # every place as often as any other, at every turn


def test_tokens_come_in_the_order_of_their_places():
    data, index = token_set(length=16), np.array([7, 3, 40])
    raster = plan_epoch(data.labels, 3, NULL, 0.1, 5, 2)
    plain, mixed = (gather(data, p, index) for p in (raster, replace(raster, shuffled=(5, 2))))
    assert plain.places is None
    assert plain.to(torch.device("cpu")).places is None
    assert mixed.places is not None
    np.testing.assert_array_equal(mixed.places, places_of(5, 2, index, 16))
    assert torch.equal(mixed.tokens, plain.tokens.gather(1, mixed.places))
    labels, tokens, places = mixed.to(torch.device("cpu")).both()
    assert torch.equal(labels, torch.cat([mixed.labels, mixed.negative_labels]))
    assert torch.equal(tokens[3:], mixed.tokens)  # the same under either condition
    assert places is not None
    assert torch.equal(places[3:], mixed.places)
    assert plain.both()[2] is None


@pytest.mark.parametrize(("micro_batch", "world"), [(24, 1), (8, 1), (12, 2), (2, 2), (3, 4)])
def test_workers_and_micro_batches_cut_the_same_global_batch(micro_batch: int, world: int):
    data = token_set()
    p = plan_epoch(data.labels, 3, NULL, 0.1, 0, 0)
    parts = [b for rank in range(world) for b in micro_batches(data, p, 1, 24, micro_batch, rank, world)]
    assert all(len(b.index) == micro_batch for b in parts)
    index = torch.cat([b.index for b in parts])
    assert sorted(index.tolist()) == sorted(p.order[24:48].tolist())
    for b in parts:
        at = b.index.numpy()
        np.testing.assert_array_equal(b.tokens, data.tokens[at, p.crops[at]])
        np.testing.assert_array_equal(b.labels, p.labels[at])
        np.testing.assert_array_equal(b.negative_labels, p.negative_labels[at])


def test_only_full_batches_count():
    assert steps_per_epoch(1797, 128) == 14
    with pytest.raises(ValueError, match="global_batch 128 is larger than the token set"):
        steps_per_epoch(100, 128)
