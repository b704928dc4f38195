import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cca_ray.config import Pretrain
from cca_ray.data.labelled_images import digits, read_folder
from cca_ray.data.tokens import read_token_set
from cca_ray.errors import ConfigError
from cca_ray.evaluation.scoring import load_base, protocol_of, score, scoring_of
from cca_ray.inputs import find_space
from cca_ray.models.family import OWN_SIZES, family_of
from cca_ray.models.llamagen_family import LlamaGenFamily
from cca_ray.models.official import load_official, load_tokenizer, parameters
from cca_ray.models.parallel import Group
from cca_ray.pretrain import known_size, main, size_of_the_digits
from cca_ray.space_file import load_config
from cca_ray.terminal.console import Console
from cca_ray.training.small_base import BaseFiles, build_base, files_of, resolve
from cca_ray.training.small_networks import blank_model, blank_tokenizer
from tests.commands import invoke
from tests.conftest import TINY, some_digits


def silent(what: str, done: int, total: int) -> None:
    pass


def test_the_embedded_images_are_all_the_digits():
    data = digits()
    assert data.images.shape == (1797, 8, 8, 3)
    assert (data.images.min(), data.images.max()) == (0, 255)
    assert data.class_names == tuple("0123456789")


def test_a_base_can_be_scored(base_files: BaseFiles):
    data = read_token_set(base_files.tokens)
    assert data.tokens.shape == (240, 1, 16)
    tokenizer = load_tokenizer("llamagen", base_files.tokenizer)
    model = load_official("llamagen", "S", base_files.checkpoint, base_files.tokenizer)
    images = tokenizer.decode(torch.from_numpy(data.tokens[:, 0].astype(np.int64)))
    original = torch.from_numpy(some_digits().images).permute(0, 3, 1, 2) / 127.5 - 1
    assert torch.nn.functional.mse_loss(images, original) < 0.5 * original.var()
    assert model.null_label == 10


def test_a_base_is_made_once_and_the_same_by_seed(tmp_path: Path):
    made: list[str] = []
    data = some_digits(96)
    settings = TINY.model_copy(update={"feature_epochs": 1, "epochs": 1})

    def files(root: Path, seed: int = 0) -> BaseFiles:
        made.clear()
        seeded = settings.model_copy(update={"seed": seed})
        return build_base(data, "digits", "llamagen", "S", seeded, root, lambda what, done, total: made.append(what))

    first = files(tmp_path / "a")
    assert set(made) == {"tokenizer", "feature network", "llamagen S"}
    assert files(tmp_path / "a") == first
    assert not made
    again, other = files(tmp_path / "b"), files(tmp_path / "a", seed=1)

    def state(base: BaseFiles) -> list[torch.Tensor]:
        return list(torch.load(base.checkpoint)["model"].values())

    assert all(torch.equal(a, b) for a, b in zip(state(first), state(again), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(state(first), state(other), strict=True))


def test_a_step_that_was_cut_short_is_made_again(tmp_path: Path, base_files: BaseFiles):
    data = some_digits(96)
    settings = TINY.model_copy(update={"feature_epochs": 1, "epochs": 1})

    def breaks(what: str, done: int, total: int) -> None:
        if what == "llamagen S":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_base(data, "digits", "llamagen", "S", settings, tmp_path, breaks)
    made: list[str] = []
    files = build_base(data, "digits", "llamagen", "S", settings, tmp_path, lambda what, done, of: made.append(what))
    assert set(made) == {"llamagen S"}
    assert files.checkpoint.is_file()


def test_an_embedded_base_is_made_in_one_thread_and_the_others_are_given_back(tmp_path: Path):
    tiny = ["pretrain.tokenizer_epochs=1", "pretrain.feature_epochs=1", "pretrain.epochs=1", "pretrain.batch=1797"]
    seen: set[int] = set()
    torch.set_num_threads(2)
    try:
        resolve(
            load_config(find_space("digits_s"), tiny),
            tmp_path,
            lambda what, done, of: seen.add(torch.get_num_threads()),
        )
        assert (seen, torch.get_num_threads()) == ({1}, 2)
    finally:
        torch.set_num_threads(1)


def test_of_the_digits_the_verb_makes_what_a_study_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    """In one thread, of the size that the shipped search space has, with its ranges. Of a few digits, here."""
    seen: set[int] = set()
    monkeypatch.setattr("cca_ray.pretrain.digits", lambda: some_digits(64))
    monkeypatch.setattr(Console, "progress", lambda *said: seen.add(torch.get_num_threads()))
    monkeypatch.setattr("cca_ray.pretrain.check_guidance", lambda *asked: "helps")
    torch.set_num_threads(2)
    try:
        assert invoke(main, ["--epochs", "1", "--out", str(tmp_path)], capsys).code == 0
    finally:
        torch.set_num_threads(1)
    assert seen == {1}
    (space,) = tmp_path.glob("*/*/digits_tiny.yaml")
    config, shipped = load_config(space), load_config(find_space("digits_s"))
    assert (config.base.size, config.search.space) == (shipped.base.size, shipped.search.space)
    made = shipped.pretrain.model_copy(update={"epochs": 1})
    files = files_of(some_digits(64), "digits", "llamagen", shipped.base.size, made, tmp_path)
    assert config.base.checkpoint == str(files.checkpoint)
    edited = f"# mine\n{space.read_text().replace('trials: 12', 'trials: 3')}"
    space.write_text(edited)
    assert invoke(main, ["--epochs", "1", "--out", str(tmp_path)], capsys).code == 0
    assert space.read_text() == edited


@pytest.mark.parametrize("family", ["llamagen", "var", "rar"])
def test_the_base_of_the_digits_is_that_of_the_shipped_search_space(family: str):
    kind = family_of(family)
    assert size_of_the_digits(kind) == load_config(find_space(kind.template("S"))).base.size


def test_a_base_of_the_digits_of_another_size_has_a_search_space_that_is_not_called_as_a_shipped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Their studies would be called alike, and refuse each other."""
    monkeypatch.setattr("cca_ray.pretrain.digits", lambda: some_digits(64))
    monkeypatch.setattr("cca_ray.pretrain.check_guidance", lambda *asked: "helps")
    assert invoke(main, ["--size", "S", "--epochs", "1", "--out", str(tmp_path)], capsys).code == 0
    (space,) = tmp_path.glob("*/*/*.yaml")
    assert (space.stem, load_config(space).base.size) == ("digits_s_own", "S")


@pytest.mark.parametrize("option", ["--image-size", "--downsample"])
def test_the_digits_have_a_size_of_their_own(option: str, tmp_path: Path, capsys):
    outcome = invoke(main, [option, "16", "--out", str(tmp_path)], capsys)
    assert outcome.code == 2
    assert outcome.err == "error: --image-size and --downsample are for --images; the digits are 8 pixels wide\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two classes of images of many kinds."""
    rng = np.random.default_rng(0)
    for name, high in (("dark", 90), ("light", 255)):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(24):
            image = Image.fromarray(rng.integers(high - 60, high, (20 + i, 30, 3), dtype=np.uint8))
            image.convert(["RGB", "L", "P", "RGBA"][i % 4]).save(tmp_path / "photos" / name / f"{i}.png")
        image.convert("RGB").save(tmp_path / "photos" / name / "last.JPEG")
    return tmp_path / "photos"


def test_images_of_any_kind_are_read(folder: Path):
    said: list[str] = []
    data = read_folder(str(folder), 16, said.append)
    assert said == []
    assert data.images.shape == (50, 16, 16, 3)
    assert data.class_names == ("dark", "light")
    assert data.images[data.labels == 0].mean() < data.images[data.labels == 1].mean()


def test_files_that_are_no_images_by_their_names_are_told(folder: Path):
    said: list[str] = []
    for i in range(3):
        (folder / "dark" / f"phone{i}.HEIC").write_bytes(b"an image, for a phone")
    assert len(read_folder(str(folder), 16, said.append).images) == 50
    assert said == ["3 files are no images by their names: 3 .heic"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        ("absent", "no such folder or file"),
        ("one class", "one subfolder per class, at least 2; found 1"),
        ("empty class", "no image in the class folder middle"),
        ("corrupt", r"3\.png: not an image|3\.png: not a readable image"),
    ],
)
def test_a_bad_folder_is_one_line(folder: Path, harm: str, message: str):
    if harm == "absent":
        folder = folder / "nowhere"
    elif harm == "one class":
        (folder / "light").rename(folder / "dark" / "inner")
    elif harm == "empty class":
        (folder / "middle").mkdir()
    elif harm == "corrupt":
        (folder / "dark" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\nno")
    with pytest.raises(ValueError, match=message) as error:
        read_folder(str(folder), 16, print)
    assert "\n" not in str(error.value)


def test_anybodys_images_become_a_base_and_a_search_space(folder: Path, tmp_path: Path, capsys):
    arguments = ["--images", str(folder), "--image-size", "8", "--downsample", "2"]
    arguments += ["--epochs", "1", "--out", str(tmp_path / "bases")]
    made = invoke(main, arguments, capsys)
    assert made.code == 0, made.err
    said = [line.split(" s  ")[1] for line in made.out.splitlines()]
    assert said[1].startswith("size S, 0.11 M parameters: 50 images of 16 tokens are 0.0074 tokens per parameter; ")
    assert re.search(r"guidance.* this base: FID [\d.]+ without, [\d.]+ at scale", said[-3])
    (space,) = (tmp_path / "bases").glob("*/*/photos_small.yaml")
    assert said[-1] == f"search: python -m cca_ray.tune {space}"
    config = load_config(space)
    assert (config.base.size, config.score.samples) == ("small", 50)
    assert read_token_set(Path(config.data.tokens or "")).tokens.shape[-1] == (8 // 2) ** 2
    text = space.read_text()
    assert text.count("beta: 0.32") == 2  # of `train`, and of the first point
    space.write_text(text.replace("beta: 0.32", "beta: 0.05", 1))  # an edit outlives the next base
    assert invoke(main, [*arguments, "--epochs", "2"], capsys).code == 0
    assert load_config(space).train.parameters.beta == 0.05
    assert load_config(space).base.checkpoint != config.base.checkpoint
    scoring = scoring_of(config, torch.device("cpu"))
    assert scoring.image_size == 8
    assert score(load_base(config), scoring, protocol_of(config, scoring, 20), Group()).images.shape == (20, 8, 8, 3)


def test_a_size_is_known_by_its_letter_and_by_its_name(folder: Path, tmp_path: Path, capsys):
    """S of the digits is another model than S of someone's images, which files call small."""
    assert [known_size(text, OWN_SIZES) for text in ("S", "M", "L", "small", "large")] == [*OWN_SIZES, "small", "large"]
    assert [known_size(text, ("S", "M")) for text in ("S", "M", None)] == ["S", "M", None]
    for family, digits_size, own_size in (
        ("llamagen", 16_640, 108_384),
        ("var", 4_153, 104_068),
        ("rar", 19_952, 115_496),
    ):
        kind = family_of(family)
        tokenizer = blank_tokenizer(kind, Pretrain(codebook_size=256))
        length = tokenizer.config.length(8)
        found = {
            size: parameters(blank_model(kind, size, tokenizer, 10, length))
            for size in (*kind.small_sizes, *kind.own_sizes())
        }
        assert (found["S"], found["small"]) == (digits_size, own_size)
        assert [round(found[size] / 1e6, 1) for size in OWN_SIZES] in (
            [0.1, 1.1, 5.0],
            [0.1, 1.1, 4.8],
            [0.1, 1.1, 4.9],
        )


def test_a_family_with_sizes_of_its_own_offers_them_for_ones_images_too():
    class Tiny(LlamaGenFamily):
        sizes = {"XS": dict(n_layer=1, n_head=1, dim=8)}  # noqa: RUF012
        small_sizes = ("XS",)

    class Without(LlamaGenFamily):
        sizes, small_sizes = {"XXL": {}}, ()

    assert Tiny().own_sizes() == ("XS",)
    with pytest.raises(ConfigError, match="this family has no small bases"):
        known_size(None, Without().own_sizes())


@pytest.mark.parametrize("size", ["s", "XL", "B", "Small", ""])
def test_another_size_for_ones_images_is_refused_before_they_are_read(size: str, capsys):
    outcome = invoke(main, ["--images", "nowhere", "--size", size], capsys)
    assert (outcome.code, outcome.err) == (2, f"error: --size {size}: one of S, M, L\n")


def test_a_size_that_is_asked_for_is_made_and_guidance_is_tried_on_a_var_too(folder: Path, tmp_path: Path, capsys):
    arguments = ["--images", str(folder), "--image-size", "8", "--downsample", "2", "--family", "var", "--size", "M"]
    made = invoke(main, [*arguments, "--epochs", "1", "--ema-decay", "0.5", "--out", str(tmp_path)], capsys)
    assert made.code == 0, made.err
    assert "size M, 1.1 M parameters: 50 images of 30 tokens are 0.0014 tokens per parameter; as asked, " in made.out
    assert "var medium  100 %, validation loss " in made.out
    assert "this base: FID " in made.out
    (space,) = tmp_path.glob("*/*/photos_var_medium.yaml")
    config = load_config(space)
    model = load_official("var", "medium", config.base.checkpoint or "", config.base.tokenizer)
    assert model.config.block_size == 30
