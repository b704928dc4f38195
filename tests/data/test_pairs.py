import numpy as np
import pytest
import torch

from cca_ray.data.pairs import micro_batches, plan_epoch, steps_per_epoch
from cca_ray.data.tokens import TokenMeta, TokenSet

LABELS = np.random.default_rng(0).integers(0, 10, 1000)
NULL = 10


def plan(seed: int = 0, epoch: int = 0, null_ratio: float = 0.1, crops: int = 3):
    return plan_epoch(LABELS, crops, NULL, null_ratio, seed, epoch)


def token_set(count: int = 48) -> TokenSet:
    meta = TokenMeta(
        tokenizer="", codebook_size=9999, length=2, crops=3, image_size=8, augmentations=("a", "b", "c"),
        class_names=tuple("0123456789"),
    )  # fmt: skip
    tokens = np.arange(count * 6, dtype=np.uint16).reshape(count, 3, 2)
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
