import numpy as np
import pytest
import torch

from cca_ray.models.files import load_state
from cca_ray.models.official import build_tokenizer
from tests.conftest import golden, golden_state


def test_codes_and_images_are_the_official_ones():
    content = golden("llamagen_vq16.npz")
    tokenizer = build_tokenizer("llamagen").requires_grad_(False)
    load_state(tokenizer, golden_state(content), "golden")
    tokens = tokenizer.encode(torch.from_numpy(content["image"]))
    np.testing.assert_array_equal(tokens, content["indices"].reshape(2, 16))
    np.testing.assert_allclose(tokenizer.decode(tokens), content["decoded"], rtol=1e-4, atol=1e-4)


def test_a_small_tokenizer_has_a_grid_of_its_own():
    tokenizer = build_tokenizer(
        "llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, norm_groups=8
    )
    tokens = tokenizer.encode(torch.rand(2, 3, 8, 8))
    assert tokenizer.config.downsample == 2
    assert tokens.shape == (2, 16)
    assert tokenizer.decode(tokens).shape == (2, 3, 8, 8)


@pytest.mark.parametrize("factor", [torch.nan, 1e30])
def test_latents_that_are_no_numbers_have_no_codes(factor: float):
    tokenizer = build_tokenizer(
        "llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, norm_groups=8
    ).requires_grad_(False)
    for weight in tokenizer.encoder.parameters():
        weight.mul_(factor)
    with pytest.raises(ValueError, match="the tokenizer gives numbers that are not finite"):
        tokenizer.encode(torch.rand(2, 3, 8, 8))
