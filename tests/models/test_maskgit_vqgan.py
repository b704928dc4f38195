import json

import numpy as np
import pytest
import torch

from cca_ray.evaluation.sampler import decode_images
from cca_ray.models.base import Tokenizer
from cca_ray.models.files import load_state
from cca_ray.models.maskgit_vqgan import MaskGITConfig, MaskGITVQGAN
from cca_ray.models.official import build_tokenizer
from tests.conftest import golden, golden_state

DIGITS = MaskGITConfig(
    codebook_size=32, z_channels=8, hidden_channels=8, channel_mult=(1, 2), num_res_blocks=1, norm_groups=8
)


@pytest.fixture(scope="module")
def official() -> Tokenizer:
    with torch.device("meta"):
        tokenizer = build_tokenizer("rar")
    load_state(tokenizer, golden_state(golden("maskgit_vqgan.npz")), "golden")
    return tokenizer.requires_grad_(False)


def test_codes_are_the_official_ones(official: Tokenizer):
    """Images are in [0, 1] there, in [-1, 1] here."""
    content = golden("maskgit_vqgan.npz")
    images = 2 * torch.from_numpy(content["image"]) - 1
    latents = official.latents(images)
    np.testing.assert_allclose(latents.transpose(1, 2).unflatten(2, (4, 4)), content["latent"], rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(official.encode(images), content["codes"])


@pytest.mark.parametrize(("codes", "decoded"), [("codes", "decoded"), ("random_codes", "decoded_random")])
def test_images_are_the_official_ones(official: Tokenizer, codes: str, decoded: str):
    content = golden("maskgit_vqgan.npz")
    tokens = torch.from_numpy(content[codes])
    images = (official.decode(tokens) + 1) / 2
    np.testing.assert_allclose(images, content[decoded], rtol=0, atol=1e-4)
    pixels = torch.from_numpy(content[decoded]).mul(255).byte().permute(0, 2, 3, 1)  # rounded as the official demo does
    found = decode_images(official, tokens)
    np.testing.assert_allclose(found.int(), pixels.int(), rtol=0, atol=1)
    assert (found != pixels).double().mean() < 0.01  # another way of rounding would change many more


def test_images_before_they_are_clamped_are_the_official_ones(official: Tokenizer):
    content = golden("maskgit_vqgan.npz")
    codes = official.get_parameter("quantize.embedding.weight")[torch.from_numpy(content["codes"])]
    np.testing.assert_allclose((official.decode_latents(codes) + 1) / 2, content["decoded_raw"], rtol=1e-4, atol=1e-4)


def test_names_and_shapes_are_the_official_ones(official: Tokenizer):
    manifest = json.loads(str(golden("maskgit_vqgan.npz")["manifest"]))
    assert {name: list(tensor.shape) for name, tensor in official.state_dict().items()} == manifest
    assert sum(parameter.numel() for parameter in official.parameters()) == 54_515_587


def test_a_small_tokenizer_has_a_grid_of_its_own():
    tokenizer = MaskGITVQGAN(DIGITS)
    tokens = tokenizer.encode(torch.rand(2, 3, 8, 8))
    assert (tokenizer.config.downsample, tokenizer.config.length(8)) == (2, 16)
    assert tokens.shape == (2, 16)
    assert tokenizer.decode(tokens).shape == (2, 3, 8, 8)
    assert tokenizer.decode(tokens).abs().max() <= 1
    codes = tokenizer.quantize.embedding.weight
    torch.testing.assert_close(tokenizer.quantize.nearest(codes + 0.01), torch.arange(32))


@pytest.mark.parametrize("factor", [torch.nan, 1e30])
def test_latents_that_are_no_numbers_have_no_codes(factor: float):
    tokenizer = MaskGITVQGAN(DIGITS).requires_grad_(False)
    for weight in tokenizer.encoder.parameters():
        weight.mul_(factor)
    with pytest.raises(ValueError, match="the tokenizer gives numbers that are not finite"):
        tokenizer.encode(torch.rand(2, 3, 8, 8))


def test_settings_that_build_no_tokenizer_are_refused():
    with pytest.raises(ValueError, match="hidden_channels 12 must be a multiple of norm_groups"):
        MaskGITConfig(hidden_channels=12, norm_groups=8)
    with pytest.raises(ValueError, match="image size 250: expected a multiple of the tokenizer's 16 pixels"):
        MaskGITConfig().length(250)
