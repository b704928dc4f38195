import numpy as np
import pytest
import torch

from cca_ray.models import LlamaGen, build
from cca_ray.sampler import Decoding, balanced_labels, draw, filter_logits, image_grid, sample_tokens, uniforms


@pytest.fixture(scope="module")
def model() -> LlamaGen:
    """Random weights, the output layer too, so that its samples differ."""
    model = build("llamagen", "S", num_classes=10, vocab_size=32, block_size=16)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.output.weight, std=0.5)
    return model.requires_grad_(False)


def sample(model: LlamaGen, index: np.ndarray, decoding: Decoding = Decoding(), seed: int = 0) -> torch.Tensor:  # noqa: B008
    return sample_tokens(model, balanced_labels(index, 10), uniforms(seed, index, 16), decoding)


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


def test_every_prefix_of_the_labels_is_balanced():
    counts = torch.bincount(balanced_labels(np.arange(25), 10), minlength=10)
    assert counts.tolist() == [3] * 5 + [2] * 5


def test_a_grid_shows_images_row_after_row():
    images = np.arange(3, dtype=np.uint8).reshape(3, 1, 1, 1) * np.ones((3, 24, 24, 3), dtype=np.uint8)
    grid = image_grid(images, columns=2)
    assert grid.shape == (51, 51, 3)
    assert [grid[5, 5, 0], grid[5, 30, 0], grid[30, 5, 0], grid[30, 30, 0]] == [0, 1, 2, 255]
