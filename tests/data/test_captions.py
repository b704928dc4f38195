from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.data.captions import FEATURES, TEXTS, Captions, write_captions
from cca_ray.data.pairs import gather, plan_epoch
from cca_ray.data.tokens import TokenMeta, TokenSet, read_token_set
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
        (("a", "b"), [one], "2 captions, but not as many arrays"),
        (("a", "b"), [one, one, one], "2 captions, but not as many arrays"),
        (("a", "b"), [one, one[:, 1:]], r"'b' has features float16 \[words, 15\], others float16 \[words, 16\]"),
        (("a", "b"), [one, one.astype(np.float32)], "'b' has features float32"),
        (("a", "b"), [one, one[:0]], "the caption 'b' has no features"),
    ):
        with pytest.raises(ValueError, match=message):
            write_captions(tmp_path, texts, features, WORDS, "")
    assert list(tmp_path.iterdir()) == []


def test_features_are_written_one_after_the_other_as_numpy_reads_them(tmp_path: Path):
    """However many: the header, which comes first, says how many words there were."""
    one = embedded("one")
    write_captions(tmp_path, [str(i) for i in range(1000)], (one for _ in range(1000)), WORDS, "")
    features = np.load(tmp_path / FEATURES)
    np.testing.assert_array_equal(features, np.tile(one, (1000, 1)))


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
