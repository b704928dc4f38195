import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cca_ray.models.var_vqvae import VARVQVAE, MultiScaleQuantizer, Phi, VARVQConfig
from tests.conftest import golden
from tests.golden.models import TINY_VAR_TOKENIZER, official_tokenizer

DIGITS = VARVQConfig(
    vocab_size=32, z_channels=8, ch=16, ch_mult=(1, 2), num_res_blocks=1, patch_nums=(1, 2, 3, 4), norm_groups=8
)


@pytest.fixture(scope="module")
def tiny() -> VARVQVAE:
    return official_tokenizer(golden("var_tiny.npz"), TINY_VAR_TOKENIZER)


@pytest.fixture
def quantizer() -> MultiScaleQuantizer:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return MultiScaleQuantizer(DIGITS)


def test_names_are_the_official_ones(tiny: VARVQVAE):
    manifest = json.loads(str(golden("var_tiny.npz")["manifest_vae"]))
    assert {name: list(tensor.shape) for name, tensor in tiny.state_dict().items()} == manifest


def test_codes_and_images_are_the_official_ones(tiny: VARVQVAE):
    content = golden("var_tiny.npz")
    tokens = tiny.encode(torch.from_numpy(content["image"]))
    np.testing.assert_array_equal(tokens, content["indices"])
    np.testing.assert_allclose(tiny.decode(tokens), content["decoded"], rtol=1e-4, atol=1e-4)


def test_teacher_input_is_the_official_one(tiny: VARVQVAE):
    content = golden("var_tiny.npz")
    inputs = tiny.quantize.teacher_input(torch.from_numpy(content["indices"]).long())
    np.testing.assert_allclose(inputs, content["teacher_input"], rtol=1e-5, atol=1e-6)


def test_scales_share_phi_as_the_official_ones_do():
    quantizer = MultiScaleQuantizer(VARVQConfig())
    assert quantizer.quant_resi.choice == [0, 0, 1, 1, 1, 2, 2, 3, 3, 3]  # scales 2 and 7 lie midway


def test_scale_by_scale_and_all_at_once_are_the_same_pyramid(quantizer: MultiScaleQuantizer):
    tokens = torch.randint(32, (2, 30))
    f_hat, inputs = quantizer.blank(2), []
    for scale, of_scale in enumerate(quantizer.split(tokens)[:-1]):
        f_hat, following = quantizer.next_input(scale, f_hat, of_scale)
        inputs.append(following)
    torch.testing.assert_close(torch.cat(inputs, dim=1), quantizer.teacher_input(tokens))
    f_hat = f_hat + quantizer.contribution(quantizer.split(tokens)[-1], 3)
    torch.testing.assert_close(f_hat, quantizer.decode(tokens))


def test_encoding_takes_the_nearest_code_of_what_is_left(quantizer: MultiScaleQuantizer):
    latents = torch.randn(2, 8, 4, 4)
    tokens = quantizer.split(quantizer.encode(latents))
    codebook = quantizer.embedding.weight
    coarsest = torch.cdist(latents.mean((2, 3)), codebook).argmin(-1)
    torch.testing.assert_close(tokens[0][:, 0], coarsest)
    before = sum(quantizer.contribution(tokens[scale], scale) for scale in range(3))
    rest = (latents - before).flatten(2).transpose(1, 2)
    torch.testing.assert_close(tokens[3], torch.cdist(rest, codebook.expand(2, -1, -1)).argmin(-1))


def test_training_is_straight_through_and_moves_codes_and_latents(quantizer: MultiScaleQuantizer):
    latents = torch.randn(2, 8, 4, 4, requires_grad=True)
    f_hat, loss = quantizer.train_pass(latents)
    torch.testing.assert_close(f_hat, quantizer.decode(quantizer.encode(latents)))
    (gradient,) = torch.autograd.grad(f_hat.sum(), latents, retain_graph=True)
    torch.testing.assert_close(gradient, torch.ones_like(latents))
    loss.backward()
    moved = [latents, *quantizer.parameters()]
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in moved)


def test_the_losses_are_means_over_scales(quantizer: MultiScaleQuantizer):
    latents = torch.randn(2, 8, 4, 4)
    errors = [F.mse_loss(f_hat, latents) for _, f_hat in quantizer.scales(latents)]
    torch.testing.assert_close(quantizer.train_pass(latents, beta=0.5)[1], 1.5 * torch.stack(errors).mean())


def test_autocast_leaves_the_pyramid_in_full_precision(quantizer: MultiScaleQuantizer):
    latents = torch.randn(2, 8, 4, 4)
    tokens = quantizer.encode(latents)
    inputs = quantizer.teacher_input(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(quantizer.encode(latents), tokens)
        torch.testing.assert_close(quantizer.teacher_input(tokens), inputs)


def test_no_convolution_of_the_pyramid_is_rounded_to_tf32(
    quantizer: MultiScaleQuantizer, monkeypatch: pytest.MonkeyPatch
):
    """cuDNN does so with float32, unless it is told not to."""
    found, real = list[bool](), Phi.forward
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # threads of another test may have left it off

    def watched(self: Phi, x: torch.Tensor) -> torch.Tensor:
        found.append(torch.backends.cudnn.allow_tf32)
        return real(self, x)

    monkeypatch.setattr(Phi, "forward", watched)
    tokens = quantizer.encode(torch.randn(2, 8, 4, 4))
    quantizer.teacher_input(tokens)
    quantizer.decode(tokens)
    assert torch.backends.cudnn.allow_tf32
    assert found == [False] * (4 + 3 + 4)


def test_a_frozen_copy_has_the_codes_but_nothing_to_train_or_save(quantizer: MultiScaleQuantizer):
    tokens = torch.randint(32, (2, 30))
    frozen = quantizer.frozen()
    torch.testing.assert_close(frozen.decode(tokens), quantizer.decode(tokens))
    assert list(frozen.parameters()) == []
    assert frozen.state_dict() == {}
    assert frozen.to(torch.float64).decode(tokens).dtype == torch.float64
    assert len(list(quantizer.parameters())) == 9  # the original keeps its own: codebook, 4 weights, 4 biases


def test_a_small_tokenizer_has_scales_of_its_own():
    tokenizer = VARVQVAE(DIGITS)
    tokens = tokenizer.encode(torch.rand(2, 3, 8, 8))
    assert tokenizer.config.downsample == 2
    assert tokens.shape == (2, 30)
    assert tokenizer.decode(tokens).shape == (2, 3, 8, 8)
    assert tokenizer.decode(tokens).abs().max() <= 1


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="images are 16 x 8 pixels, but the tokenizer's scales are for 8 x 8"):
        VARVQVAE(DIGITS).encode(torch.rand(1, 3, 8, 16))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"patch_nums": (4,)}, "at least two scales"),
        ({"patch_nums": (1, 3, 3)}, "each larger than the one before"),
        ({"patch_nums": (0, 2)}, "at least two scales"),
        ({"ch": 48}, "ch 48 must be a multiple of norm_groups"),
        ({"share_quant_resi": 1}, "share_quant_resi 1 must be at least 2"),
    ],
)
def test_settings_that_build_no_tokenizer_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        VARVQConfig(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("factor", [torch.nan, 1e30])
def test_latents_that_are_no_numbers_have_no_codes(factor: float):
    tokenizer = VARVQVAE(DIGITS).requires_grad_(False)
    for weight in tokenizer.encoder.parameters():
        weight.mul_(factor)
    with pytest.raises(ValueError, match="the tokenizer gives numbers that are not finite"):
        tokenizer.encode(torch.rand(2, 3, 8, 8))
