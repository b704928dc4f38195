from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.data.captions import FEATURES, TEXTS, Captions, read_t5, write_captions
from cca_ray.data.pairs import gather, plan_epoch
from cca_ray.data.tokens import MANIFEST, TokenMeta, TokenSet, read_token_set
from cca_ray.models.condition import joined
from cca_ray.models.likelihood import Scorer
from cca_ray.models.llamagen_t2i import LlamaGenT2I, LlamaGenT2IConfig
from tests.captioned import WIDTH, WORDS, embedded, write_captioned

TEXTS_OF = ("one six, thin", "two sixes, thick", "two very nearly square zeros, thin")
NUMBERS = np.array([2, 0, 1, 1, 0, 2, 1, 1, 1, 0])
META = TokenMeta(
    tokenizer="abc", codebook_size=32, length=4, crops=1, image_size=8, augmentations=("centre",), class_names=("x",)
)
CODES = np.random.default_rng(0).integers(0, 32, (10, 4)).astype(np.uint16)


@pytest.fixture
def made(tmp_path: Path) -> TokenSet:
    write_captioned(tmp_path, NUMBERS, CODES, TEXTS_OF, META)
    return read_token_set(tmp_path)


def captions_of(data: TokenSet) -> Captions:
    assert data.captions is not None
    return data.captions


def test_captions_are_read_with_their_token_set(made: TokenSet):
    captions = captions_of(made)
    assert captions.texts == TEXTS_OF
    assert (made.meta.conditions, made.meta.kind) == (3, f"captions of {WORDS} x {WIDTH} features")
    np.testing.assert_array_equal(made.labels, NUMBERS)
    found = captions.of(np.array([0, 2]), np.array([False, True]))
    assert found.features.dtype == torch.float32
    assert found.mask.tolist() == [[False, True, True, True], [True, True, True, True]]
    assert not found.features[0, 0].any()
    np.testing.assert_array_equal(found.features[0, 1:], embedded(TEXTS_OF[0]))
    np.testing.assert_array_equal(found.features[1], embedded(TEXTS_OF[2])[:WORDS])  # a longer one is cut
    assert found.null.tolist() == [False, True]


def test_a_set_of_classes_is_what_it_was_in_earlier_versions():
    assert "captions" not in META.model_dump()
    assert META.model_dump_json() == (
        '{"tokenizer":"abc","codebook_size":32,"length":4,"crops":1,"image_size":8,"augmentations":["centre"],'
        '"class_names":["x"]}'
    )
    assert (META.conditions, META.kind) == (1, "1 classes")


@pytest.mark.parametrize("name", [TEXTS, FEATURES])
@pytest.mark.parametrize("damage", ["altered", "missing"])
def test_altered_captions_are_an_error(made: TokenSet, tmp_path: Path, name: str, damage: str):
    file = tmp_path / name
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.unlink()
    if damage == "altered":
        file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: missing, or not what the manifest says") as error:
        read_token_set(tmp_path)
    assert "\n" not in str(error.value)


def test_other_captions_are_another_token_set(tmp_path: Path):
    one = write_captioned(tmp_path / "a", NUMBERS, CODES, TEXTS_OF, META)
    assert write_captioned(tmp_path / "b", NUMBERS, CODES, TEXTS_OF, META) == one
    other = ("one six, thick", *TEXTS_OF[1:])
    assert write_captioned(tmp_path / "c", NUMBERS, CODES, other, META) != one


def test_an_image_without_a_caption_is_an_error(tmp_path: Path):
    write_captioned(tmp_path, NUMBERS + 1, CODES, TEXTS_OF, META)
    with pytest.raises(ValueError, match="an image's caption is none of the 3"):
        read_token_set(tmp_path)


def test_captions_and_features_come_in_pairs(tmp_path: Path):
    one = embedded("one")
    for texts, features, message in (
        (("a", "b"), [one], "2 captions and 1 arrays"),
        (("a", "b"), [one, one[:, 1:]], "of them: expected one each"),
        (("a", "b"), [one, one[:0]], "the caption 'b' has no features"),
    ):
        with pytest.raises(ValueError, match=message):
            write_captions(tmp_path, texts, features, WORDS, "")
    assert not (tmp_path / MANIFEST).exists()


def test_features_of_a_t5_are_read_from_the_official_files(tmp_path: Path):
    """`[1, words, width]` each, as its script saves them."""
    one, two = (np.random.default_rng(i).standard_normal((1, 3 + i, 8)).astype(np.float32) for i in range(2))
    for name, array in (("0", one), ("1", two), ("flat", one[0]), ("whole", np.ones((1, 2, 8), np.int64)),
                        ("nan", np.full((1, 2, 8), np.nan)), ("wide", np.ones((1, 2, 9)))):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", array)
    found = read_t5([tmp_path / "0.npy", tmp_path / "1.npy"])
    for array, expected in zip(found, (one, two), strict=True):
        np.testing.assert_array_equal(array, expected[0])
    for name, message in (("flat", "not features"), ("whole", "int64"), ("nan", "no number"),
                          ("wide", "is 9 wide, but"), ("none", "none.npy")):  # fmt: skip
        with pytest.raises(ValueError, match=message) as error:
            read_t5([tmp_path / "0.npy", tmp_path / f"{name}.npy"])
        assert f"{name}.npy" in str(error.value)


def test_a_negative_is_another_images_caption_and_null_is_of_ones_own(made: TokenSet):
    plan = plan_epoch(made.labels, 1, -1, 0.4, seed=3, epoch=0)
    assert 0 < plan.null.sum() < 10
    index = np.arange(10)
    batch = gather(made, plan, index)
    texts, negative = batch.texts, batch.negative_texts
    assert texts is not None
    assert negative is not None
    captions = captions_of(made)
    following = np.empty(10, int)
    following[plan.order] = np.roll(plan.order, -1)
    for i in index:
        expected = captions.of(made.labels[[i, i if plan.null[i] else following[i]]], np.repeat(plan.null[i], 2))
        pair = joined(texts[i : i + 1], negative[i : i + 1])
        for name in ("features", "mask", "null"):
            assert torch.equal(getattr(pair, name), getattr(expected, name))
    assert (batch.labels[batch.null] == -1).all()
    moved = batch.to(torch.device("cpu"))
    assert moved.texts is not None
    assert torch.equal(moved.texts.features, texts.features)


def test_pairs_with_null_conditions_have_one_likelihood(made: TokenSet):
    """Under either condition: the loss takes such a pair for a positive, which is only right if they are the same."""
    config = LlamaGenT2IConfig(
        dim=16, n_layer=2, n_head=2, multiple_of=32, vocab_size=32, block_size=4, cls_token_num=WORDS, caption_dim=WIDTH
    )
    model = LlamaGenT2I(config).requires_grad_(False)
    model.initialize(torch.Generator().manual_seed(0))
    torch.nn.init.normal_(model.output.weight, generator=torch.Generator().manual_seed(1))
    plan = plan_epoch(made.labels, 1, model.null_label, 0.4, seed=3, epoch=0)
    batch = gather(made, plan, np.arange(10))
    condition, tokens, places = batch.both()
    positive, negative = Scorer(model)(condition, tokens, None, places).chunk(2)
    torch.testing.assert_close(positive[batch.null], negative[batch.null])
    other = ~batch.null & (batch.labels != batch.negative_labels)
    assert other.any()
    assert (positive[other] - negative[other]).abs().min() > 1e-5
