import numpy as np
import pytest
import torch

from cca_ray.evaluation.sampler import (
    Decoding,
    decode_images,
    draw,
    filter_logits,
    image_grid,
    labels_of,
    sample_tokens,
    uniforms,
)
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.official import build, build_tokenizer


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    """Random weights, the output layer too, so that its samples differ."""
    model = build("llamagen", "S", num_classes=10, vocab_size=32, block_size=16)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model.requires_grad_(False)


def sample(model: LlamaGen, index: np.ndarray, decoding: Decoding = Decoding(), seed: int = 0) -> torch.Tensor:  # noqa: B008
    return sample_tokens(model, labels_of("balanced", 0, index, 10), uniforms(seed, index, 16), decoding)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_image_is_the_same_whatever_the_batch(model: LlamaGen, scale: float):
    whole = sample(model, np.arange(30), Decoding(scale))
    parts = [sample(model, np.arange(start, start + 6), Decoding(scale)) for start in range(0, 30, 6)]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(whole[7:8], sample(model, np.array([7]), Decoding(scale)))


def test_another_seed_or_index_is_another_image(model: LlamaGen):
    assert not torch.equal(sample(model, np.array([7])), sample(model, np.array([7]), seed=1))
    assert not torch.equal(sample(model, np.array([7])), sample(model, np.array([17])))


def test_guidance_of_one_is_no_guidance(model: LlamaGen):
    index = np.arange(20)
    assert torch.equal(sample(model, index, Decoding(1.0)), sample(model, index, Decoding(1.0 + 1e-12)))
    assert not torch.equal(sample(model, index, Decoding(1.0)), sample(model, index, Decoding(3.0)))


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, 3e38])
def test_logits_that_are_no_numbers_are_an_error(value: float, scale: float):
    """Of weights that are finite too: products of large ones are not."""
    model = build("llamagen", "S", num_classes=10, vocab_size=32, block_size=16).requires_grad_(False)
    model.output.weight.fill_(value)
    with pytest.raises(ValueError, match="the model gives numbers that are not finite"):
        sample(model, np.arange(4), Decoding(scale))


def test_draws_follow_the_probabilities():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(40_000, 4)
    tokens = draw(logits, torch.rand(40_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    frequency = torch.bincount(tokens, minlength=4) / 40_000
    torch.testing.assert_close(frequency, torch.tensor([0.1, 0.2, 0.3, 0.4]), atol=0.01, rtol=0)


def test_impossible_tokens_are_never_drawn():
    logits = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(3, 5)
    noise = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, noise).tolist() == [1, 3, 3]


def test_top_k_and_top_p_keep_what_the_official_filter_keeps():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert filter_logits(logits, 2, 1.0).isfinite().tolist() == [[True, True, False, False]]
    assert filter_logits(logits, 0, 0.6).isfinite().tolist() == [[True, True, False, False]]  # the one that crosses too
    assert filter_logits(logits, 0, 0.01).isfinite().tolist() == [[True, False, False, False]]
    assert torch.equal(filter_logits(logits, 0, 1.0), logits)


@pytest.mark.parametrize(("top_k", "top_p"), [(900, 0.96), (900, 1.0), (0, 0.9), (5000, 0.5), (1, 0.5)])
def test_filters_keep_what_the_official_ones_keep(top_k: int, top_p: float):
    """VAR's sample_with_top_k_top_p_, by a whole sort."""
    logits = 3 * torch.randn(4, 7, 4096, generator=torch.Generator().manual_seed(0))
    wanted = logits.clone()
    if top_k:
        wanted[wanted < wanted.topk(min(top_k, 4096)).values[..., -1:]] = -torch.inf
    ascending, order = wanted.sort(dim=-1)
    outside = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
    outside[..., -1] = False
    if top_p < 1:
        wanted[torch.zeros_like(outside).scatter(-1, order, outside)] = -torch.inf
    assert torch.equal(filter_logits(logits, top_k, top_p), wanted)


def test_every_prefix_of_the_labels_is_balanced():
    counts = torch.bincount(labels_of("balanced", 0, np.arange(25), 10), minlength=10)
    assert counts.tolist() == [3] * 5 + [2] * 5


def test_a_grid_shows_images_row_after_row():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 24, 24, 3), dtype=np.uint8)
    grid = image_grid(images, columns=2)
    assert grid.shape == (51, 51, 3)
    assert [grid[5, 5, 0], grid[5, 30, 0], grid[30, 5, 0], grid[30, 30, 0]] == [0, 1, 2, 255]


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_little_room_for_keys_and_values_changes_no_image(model: LlamaGen, scale: float):
    labels, noise = labels_of("balanced", 0, np.arange(10), 10), uniforms(3, np.arange(10), 16)
    whole = sample_tokens(model, labels, noise, Decoding(scale))
    assert torch.equal(sample_tokens(model, labels, noise, Decoding(scale), cache=3 * model.cache_bytes), whole)


def test_the_cache_is_as_large_as_it_says(model: LlamaGen):
    assert sum(t.numel() * t.element_size() for layer in model.new_cache(3) for t in layer) == 3 * model.cache_bytes


def test_random_labels_are_drawn_by_seed_and_index():
    whole = labels_of("random", 3, np.arange(2000), 10)
    assert torch.equal(labels_of("random", 3, np.arange(1000, 1100), 10), whole[1000:1100])
    assert not torch.equal(labels_of("random", 4, np.arange(2000), 10), whole)
    assert torch.bincount(whole, minlength=10).min() > 150


def test_images_are_resized_before_they_are_rounded():
    tokenizer = build_tokenizer("llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), z_channels=16, norm_groups=8)
    tokens = torch.randint(32, (2, 36))
    raw = tokenizer.decode(tokens)
    expected = torch.nn.functional.interpolate(raw, size=(8, 8), mode="bicubic")
    expected = torch.clamp(127.5 * expected + 128.0, 0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    assert torch.equal(decode_images(tokenizer, tokens, 8), expected)
    assert torch.equal(decode_images(tokenizer, tokens, 12), decode_images(tokenizer, tokens))
