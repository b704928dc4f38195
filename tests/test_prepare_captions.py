"""Token sets with captions, by the verb: from images, their texts, and features that a text encoder left."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cca_ray import prepare
from cca_ray.data.captions import FEATURES
from cca_ray.data.pairs import gather, plan_epoch
from cca_ray.data.tokens import UNREADABLE, read_token_set
from cca_ray.models.likelihood import Scorer
from cca_ray.models.official import build
from tests.captioned import WIDTH, embedded
from tests.commands import assert_refused, invoke

TEXTS = ["one cat", "two very small dogs", "an emu", "one cat", "a dog"]
COUNT = 10
SIZES = ["--image-size", "16", "--part-images", "4"]


def text(i: int) -> str:
    return TEXTS[i % len(TEXTS)]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten images in two folders, which are no classes, a text beside each; the eighth is no image."""
    folder = tmp_path_factory.mktemp("captioned") / "photos"
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        (folder / str(i // 5)).mkdir(parents=True, exist_ok=True)
        path = folder / str(i // 5) / f"{i}.png"
        Image.fromarray(rng.integers(0, 256, (20, 25, 3), dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(text(i))
    (folder / "1" / "7.png").write_bytes(b"no")
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As LlamaGen's script leaves them, below the folders of the images."""
    folder = tmp_path_factory.mktemp("features") / "t5"
    for i in range(COUNT):
        (folder / str(i // 5)).mkdir(parents=True, exist_ok=True)
        np.save(folder / str(i // 5) / f"{i}.npy", embedded(text(i))[None].astype(np.float32))
    return folder


def options(tokenizer: Path, features: Path, out: Path) -> list[str]:
    return ["--family", "llamagen_t2i", "--tokenizer", str(tokenizer), "--text-features", str(features),
            "--out", str(out), *SIZES]  # fmt: skip


@pytest.fixture(scope="module")
def made(
    photos: Path, features: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, ray_here: None
) -> Path:  # fmt: skip
    out = tmp_path_factory.mktemp("made") / "tokens"
    prepare.prepare(photos, "llamagen_t2i", tokenizer=tokenizer, out=out, image_size=16, text_features=features,
                    part_images=4, quiet=True)  # fmt: skip
    return out


def test_every_image_has_its_caption_and_every_caption_its_features(made: Path):
    data = read_token_set(made)
    assert data.captions is not None
    assert data.captions.texts == ("a dog", "an emu", "one cat", "two very small dogs")
    expected = [text(i) for i in range(COUNT) if i != 7]
    assert [data.captions.texts[label] for label in data.labels] == expected
    assert data.tokens.shape == (9, 1, 64)
    assert (data.meta.class_names, data.meta.conditions) == ((), 4)
    assert data.meta.kind == f"captions of 120 x {WIDTH} features"
    found = data.captions.of(data.labels, np.zeros(9, bool))
    for row, words in enumerate(expected):
        count = len(words.split())
        assert found.mask[row].sum() == count
        np.testing.assert_array_equal(found.features[row, -count:], embedded(words).astype(np.float32))
    assert (made / UNREADABLE).read_text().endswith("7.png: not an image of any known kind\n")


def test_a_model_scores_what_was_made(made: Path):
    data = read_token_set(made)
    model = build("llamagen_t2i", "S", vocab_size=64, block_size=64, caption_dim=WIDTH)
    torch.nn.init.normal_(model.output.weight, std=0.1)
    batch = gather(data, plan_epoch(data.labels, 1, model.null_label, 0.3, seed=0, epoch=0), np.arange(9))
    condition, tokens, places = batch.both()
    with torch.inference_mode():
        positive, negative = Scorer(model)(condition, tokens, None, places).chunk(2)
    same = batch.null | (batch.labels == batch.negative_labels)
    assert ((positive - negative).abs() > 1e-5).tolist() == (~same).tolist()


def test_an_unfinished_set_goes_on_and_tells_of_captions_not_of_classes(
    photos: Path, features: Path, tokenizer: Path, tmp_path: Path, made: Path, ray_here: None, capsys
):  # fmt: skip
    """Its captions are not made again, and it ends as if nothing had happened."""
    shutil.copytree(made, out := tmp_path / "tokens")
    (out / "manifest.json").unlink()
    (out / "part-00001.parquet").unlink()
    before = (out / FEATURES).stat().st_mtime_ns
    outcome = invoke(prepare.main, [str(photos), *options(tokenizer, features, out)], capsys)
    assert outcome.code == 0
    assert "10 images with 4 captions" in outcome.out
    assert "6 of 10 images were done before" in outcome.out
    assert "10 images: 9 taken, 1 unreadable; 4 captions\n" in outcome.out
    assert "class" not in outcome.out
    assert (out / FEATURES).stat().st_mtime_ns == before
    for path in made.iterdir():
        assert path.name.startswith(".") or (out / path.name).read_bytes() == path.read_bytes(), path.name


def test_other_captions_are_not_mixed_into_a_folder(
    photos: Path, features: Path, tokenizer: Path, tmp_path: Path, made: Path, ray_here: None, capsys
):  # fmt: skip
    table = {str(path.relative_to(photos)): "a photo" for path in photos.rglob("*.png")}
    (tmp_path / "t.json").write_text(json.dumps({**table, "0/0.png": "one cat"}))
    arguments = [str(photos), *options(tokenizer, features, made), "--captions", str(tmp_path / "t.json")]
    outcome = invoke(prepare.main, arguments, capsys)
    assert outcome.code == 2
    assert "holds another token set (images differs)" in outcome.err
    assert outcome.err.count("\n") == 1


T2I = ["PHOTOS", "--family", "llamagen_t2i", "--tokenizer", "TOKENIZER", "--out", "t"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (T2I, "a token set for llamagen_t2i needs features of its captions: give either --text-features FOLDER"),
        ([*T2I, "--text-features", "f", "--text-encoder", "e"], "give either --text-features FOLDER"),
        ([*T2I, "--text-features", "f", "--label-key", "k"], "--label-key: llamagen_t2i takes captions, not classes"),
        ([*T2I, "--text-features", "nowhere"], "--text-features nowhere: no such folder"),
        ([*T2I, "--text-features", "PHOTOS"], "4.npy: no such file, nor one that ends in .npz"),
        ([*T2I, "--text-features", "f", "--captions", "no.csv"], "--captions no.csv: no such file or folder"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--captions", "c"], "--captions is for the token set"),
        ([*T2I[:3], "--features", "f", "--reference", "r.npz", "--caption-key", "k"], "--caption-key is for the token"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, photos: Path, tokenizer: Path, tmp_path: Path, capsys
):
    with chdir(tmp_path):
        assert_refused(prepare.main, arguments, message, capsys, PHOTOS=photos, TOKENIZER=tokenizer)
