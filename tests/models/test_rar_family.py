"""RAR as a family: what `prepare` makes for it, how its search spaces guide, and its smallest size, searched."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cca_ray import prepare
from cca_ray.data.images import centre_crop, crops_of, cut
from cca_ray.models.maskgit_vqgan import MaskGITConfig, MaskGITVQGAN
from cca_ray.models.official import save_official
from cca_ray.prepare_options import Tokens
from cca_ray.reporting.plan import embedded_base
from cca_ray.space_file import load_config
from tests.commands import invoke, verb
from tests.official_studies import settings

ROOT = Path(__file__).resolve().parents[2]
TINY_PARAMETERS = 5_386
# Scale, power and temperature of README_RAR.md, with which the official script samples for the paper's numbers.
OFFICIAL = {"B": (16.0, 2.75, 1.0), "L": (15.5, 2.5, 1.02), "XL": (6.9, 1.5, 1.02), "XXL": (8.0, 1.2, 1.02)}
CORNERS = [(0, 0), (0, 25), (25, 0), (25, 25), (12, 12)]  # of 256 pixels in 281, and the middle: torchvision's TenCrop


@pytest.mark.parametrize("size", OFFICIAL)
def test_the_search_spaces_guide_as_the_official_script_does(size: str):
    """It tries weaker and stronger guidance too, and says which is the official."""
    scale, power, temperature = OFFICIAL[size]
    path = ROOT / "search_spaces" / f"rar_{size.lower()}.yaml"
    config = load_config(path)
    assert (config.base.family, config.base.size) == ("rar", size)
    assert (config.score.guidance_power, config.score.temperature) == (power, temperature)
    assert (config.score.last_temperature, config.score.top_k, config.score.top_p) == (None, 0, 1.0)
    assert scale in sorted(config.score.guidance_scales)[1:-1]
    assert f"# the official script's is {scale:g}, at this power" in path.read_text(encoding="utf-8")
    row = rf"^\| {size} \| [\d,]+ \| \d+ × \d+ \| \d+ \| {scale:g}, {power:g}, {temperature:g} \|"
    assert re.search(row, (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8"), re.MULTILINE)


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """16 pixels a token, as the official one; random weights."""
    torch.manual_seed(0)
    small = MaskGITConfig(codebook_size=64, z_channels=8, hidden_channels=8, num_res_blocks=1, norm_groups=8)
    save_official(MaskGITVQGAN(small), path := tmp_path / "vqgan.pt")
    return path


def test_prepare_makes_the_official_crops_of_256_pixels(
    tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
):
    """Ten of a square of 1.1 times 256 pixels, as the official pretokenization with --ten_crop cuts them."""
    asked = list[Tokens]()
    monkeypatch.setattr(prepare, "from_images", lambda source, texts, tokens, *others: asked.append(tokens))
    command = [str(tmp_path), "--family", "rar", "--tokenizer", str(tokenizer), "--out", str(tmp_path / "tokens")]
    outcome = invoke(prepare.main, command, capsys)
    assert outcome.code == 0, outcome.err
    (tokens,) = asked
    assert (tokens.family, tokens.size, tuple(tokens.augmentations)) == ("rar", 256, ("ten-crop-1.1",))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 340, 3), dtype=np.uint8))
    crops, square = crops_of(tokens.augmentations, tokens.size), centre_crop(image, int(256 * 1.1))
    found = [cut({crop.square.key: crop.square.of(image, 0)[None]}, crop, tokens.size)[0] for crop in crops]
    expected = [side[y : y + 256, x : x + 256] for side in (square, square[:, ::-1]) for y, x in CORNERS]
    np.testing.assert_array_equal(found, expected)


def test_the_small_model_of_the_digits_has_as_many_parameters_as_the_documentation_says():
    assert embedded_base(load_config(ROOT / "search_spaces" / "digits_rar.yaml")) == (TINY_PARAMETERS, 16, 1797)
    assert f"| digits_rar | {TINY_PARAMETERS:,} |" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert f"a tiny RAR of {TINY_PARAMETERS:,} " in (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_small_model_of_the_digits_is_searched(tmp_path: Path):
    said = verb(
        "tune", "digits_rar", "--trials", "2", "--storage", tmp_path / "runs",
        *settings(pretrain__epochs=1, train__epochs=1, rungs=[{"at": 1.0, "samples": 60}], score__samples=100,
                  score__blocks=1, score__finalists=1, score__guidance_scales=[1.5], score__widen_guidance=0,
                  control__learning_rates=[1e-3], control__widen=0),
    )  # fmt: skip
    assert f"| digits_rar | {TINY_PARAMETERS:,} " in said
    (size,) = json.loads((tmp_path / "runs" / "digits_rar" / "summary.json").read_text())["sizes"]
    assert (size["size"], size["family"]) == ("digits_rar", "rar")
    assert (size["parameters"], size["trials"]) == (TINY_PARAMETERS, 2)
    assert (tmp_path / "runs" / "digits_rar" / "digits_rar" / "winner.pt").is_file()
