import copy
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from cca_ray.evaluation.sampler import Decoding, decode_images, sample_tokens, uniforms
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.var import VAR, VARConfig
from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig
from tests.conftest import golden
from tests.golden.models import (
    TINY_VAR,
    TINY_VAR_TOKENIZER,
    labels_and_tokens,
    official_model,
    official_state,
    official_tokenizer,
)

ENDS = [1, 5, 14, 30]  # of its scales


@pytest.fixture(scope="module")
def tokenizer() -> VARVQVAE:
    return official_tokenizer(golden("var_tiny.npz"), TINY_VAR_TOKENIZER)


@pytest.fixture(scope="module")
def tiny(tokenizer: VARVQVAE) -> VAR:
    return official_model(golden("var_tiny.npz"), TINY_VAR, tokenizer)


def token_logps(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def test_logits_are_the_official_ones(tiny: VAR):
    content = golden("var_tiny.npz")
    labels, tokens = labels_and_tokens(content)
    logits = tiny(labels, tokens)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, content["logits"], rtol=1e-4, atol=2e-6)
    np.testing.assert_allclose(token_logps(logits, tokens), content["logps"], rtol=1e-5)


@pytest.mark.parametrize("cfg", [0.0, 1.5])
def test_greedy_samples_are_the_official_ones(tiny: VAR, tokenizer: VARVQVAE, cfg: float):
    """By the sampler that studies use, at top-k 1; our guidance scale is the official `cfg` and 1."""
    content = golden("var_tiny.npz")
    labels = torch.from_numpy(content["labels"][:2])
    tokens = sample_tokens(tiny, labels, uniforms(0, np.arange(2), 30), Decoding(1 + cfg, top_k=1))
    images, official = tokenizer.decode(tokens), content[f"greedy_cfg{cfg}"]
    np.testing.assert_allclose((images + 1) / 2, official, rtol=0, atol=1e-4)
    pixels = torch.from_numpy(official).mul(255).byte().permute(0, 2, 3, 1)  # rounded as the official script does
    found = decode_images(tokenizer, tokens)
    np.testing.assert_allclose(found, pixels, rtol=0, atol=1)
    assert (found != pixels).double().mean() < 0.01  # another way of rounding would change many more


def test_guidance_grows_from_none_at_the_first_scale_to_all_at_the_last(tiny: VAR):
    assert [tiny.guidance_at(2.5, step) for step in range(4)] == [1.0, 1.5, 2.0, 2.5]
    assert [tiny.guidance_at(1.0, step) for step in range(4)] == [1.0] * 4


@torch.inference_mode()
@pytest.mark.slow
def test_full_size_numbers_are_the_official_ones():
    content = golden("var_d16.npz")
    labels, tokens = labels_and_tokens(content)
    tokenizer = official_tokenizer(content, VARVQConfig())
    np.testing.assert_array_equal(tokenizer.encode(torch.from_numpy(content["image"])), tokens)
    decoded = tokenizer.decode(tokens)[:, :, ::16, ::16]
    np.testing.assert_allclose(decoded, content["decoded_slice"], rtol=0, atol=1e-4)
    logits = official_model(content, VARConfig(depth=16, dim=1024, n_head=16), tokenizer)(labels, tokens)
    np.testing.assert_allclose(logits[:, ::40, :32], content["logits_slice"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(token_logps(logits, tokens), content["logps"], rtol=1e-5)


def test_names_are_the_official_ones(tiny: VAR):
    manifest = json.loads(str(golden("var_tiny.npz")["manifest_var"]))
    assert {name: list(tensor.shape) for name, tensor in tiny.state_dict().items()} == manifest


def test_buffers_are_the_official_ones():
    state, official = VAR(TINY_VAR).state_dict(), official_state(golden("var_tiny.npz"), "var")
    names = ["lvl_1L", "attn_bias_for_masking", *(name for name in official if name.endswith("zero_k_bias"))]
    assert len(names) == 2 + len(VAR(TINY_VAR).stack)
    for name in names:
        assert torch.equal(state[name], official[name]), name


def test_decoding_with_the_cache_equals_the_whole_sequence(tiny: VAR):
    labels, tokens = torch.tensor([3, 10]), torch.randint(64, (2, 30))
    cache, last, steps = tiny.new_cache(2), None, []
    for step, of_scale in enumerate(tokens.split(tiny.decode_steps, dim=1)):
        steps.append(tiny.decode(labels, last, step, cache))
        last = of_scale
    torch.testing.assert_close(torch.cat(steps, dim=1), tiny(labels, tokens), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scale", range(4))
def test_a_token_changes_the_next_scale_and_neither_its_own_nor_a_coarser_one(tiny: VAR, scale: int):
    labels, tokens = torch.tensor([3]), torch.randint(64, (1, 30))
    changed = tokens.clone()
    changed[0, ENDS[scale] - 1] = (changed[0, ENDS[scale] - 1] + 1) % 64
    before, after = tiny(labels, tokens), tiny(labels, changed)
    torch.testing.assert_close(before[:, : ENDS[scale]], after[:, : ENDS[scale]])
    for begin, end in zip(ENDS[scale:], ENDS[scale + 1 :], strict=False):
        assert not torch.allclose(before[:, begin:end], after[:, begin:end])


def test_the_null_label_is_a_condition_of_its_own(tiny: VAR):
    tokens = torch.randint(64, (2, 30))
    tokens[1] = tokens[0]
    logits = tiny(torch.tensor([0, tiny.null_label]), tokens)
    assert tiny.null_label == 10
    assert not torch.allclose(logits[0, 0], logits[1, 0])


def test_logits_are_the_head_of_the_hidden_states(tiny: VAR):
    labels, tokens = torch.tensor([3]), torch.randint(64, (1, 30))
    hidden = tiny.hidden(labels, tokens)
    assert hidden.shape == (1, 30, 128)
    torch.testing.assert_close(tiny.head(hidden), tiny(labels, tokens))


def test_dropout_is_off_unless_asked_for(tiny: VAR):
    labels, tokens = torch.tensor([3]), torch.randint(64, (1, 30))
    torch.testing.assert_close(tiny.train()(labels, tokens), tiny.eval()(labels, tokens))
    dropout = Dropout(0.5, dropout_keys(np.array([3]), 0))
    assert not torch.equal(tiny(labels, tokens, dropout), tiny(labels, tokens))


def test_autocast_computes_nearly_the_same(tiny: VAR):
    labels, tokens = torch.tensor([3, 10]), torch.randint(64, (2, 30))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = tiny(labels, tokens)
        first = tiny.decode(labels, None, 0, tiny.new_cache(2))
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, tiny(labels, tokens), rtol=0.05, atol=0.05)
    torch.testing.assert_close(first, logits[:, :1], rtol=0.05, atol=0.05)


def test_the_codes_are_neither_trained_nor_saved_but_copied_and_moved(tiny: VAR):
    labels, tokens = torch.tensor([3]), torch.randint(64, (1, 30))
    copied = copy.deepcopy(tiny)
    assert torch.equal(copied(labels, tokens), tiny(labels, tokens))
    assert not any("codes" in name for name, _ in tiny.named_parameters())
    assert not any("codes" in name for name in tiny.state_dict())
    assert copied.to(torch.float64).codes.embedding.weight.dtype == torch.float64


def test_the_model_asks_for_its_codes():
    model = VAR(TINY_VAR)
    with pytest.raises(AssertionError, match="attach the tokenizer first"):
        model(torch.tensor([3]), torch.randint(64, (1, 30)))


def test_a_tokenizer_that_does_not_fit_is_refused():
    other = VARVQVAE(replace(TINY_VAR_TOKENIZER, vocab_size=32))
    with pytest.raises(
        ValueError, match=r"has 32 codes of 8 channels at scales \[1, 2, 3, 4\], but the model wants 64"
    ):
        VAR(TINY_VAR).attach(other)


def test_initial_weights_follow_the_generator_and_the_official_scales():
    model, again = VAR(TINY_VAR), VAR(TINY_VAR)
    model.initialize(torch.Generator().manual_seed(1))
    again.initialize(torch.Generator().manual_seed(1))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    std, block = math.sqrt(1 / 128 / 3), model.blocks[1]
    for weight, expected in [
        (model.pos_1LC, std),
        (model.word_embed.weight, std),
        (model.head.weight, 0.02 * std),
        (model.head_nm.ada_lin[1].weight, 0.5 * std),
        (block.attn.mat_qkv.weight, std),
        (block.attn.proj.weight, 0.5 * std),  # 1 / sqrt(2 x depth)
        (block.ffn.fc2.weight, 0.5 * std),
        (block.ada_lin[1].weight[:256], 1e-5 * std),
        (block.ada_lin[1].weight[256:], 0.5 * std),
    ]:
        assert weight.std().item() == pytest.approx(expected, rel=0.1)
    assert block.attn.scale_mul_1H11.exp().flatten().tolist() == pytest.approx([4.0, 4.0])
    assert not model.head.bias.any()


def test_attention_without_l2_norm_has_no_temperature():
    model = VAR(replace(TINY_VAR, attn_l2_norm=False))
    model.initialize(torch.Generator().manual_seed(1))
    model.attach(VARVQVAE(TINY_VAR_TOKENIZER))
    assert not any("scale_mul" in name for name in model.state_dict())
    assert model(torch.tensor([3]), torch.randint(64, (1, 30))).isfinite().all()


def test_the_official_sizes_can_be_built_without_memory():
    with torch.device("meta"):
        model = VAR(VARConfig(depth=30, dim=1920, n_head=30))
        model.initialize(torch.Generator())
    assert model.config.block_size == 680
    assert sum(p.numel() for p in model.parameters()) / 1e9 == pytest.approx(2.0, abs=0.05)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 129}, "dim 129 must be a multiple of n_head"),
        ({"depth": 0}, "at least 1"),
        ({"patch_nums": (4, 2)}, "each larger than the one before"),
    ],
)
def test_settings_that_build_no_model_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        replace(TINY_VAR, **fields)
    assert "\n" not in str(error.value)
