"""What must be the same bits on a card: which tokens noise draws, which channels dropout drops, what an image is."""

import numpy as np
import torch

from benchmarks.gpu.made import Shape, model_of
from cca_ray.data.tokens import scaled, to_input
from cca_ray.evaluation.sampler import Decoding, labels_of, pick, sample_tokens, uniforms
from cca_ray.models.dropout import Dropout, dropout_keys
from tests.gpu.places import OnCpu, Place

CPU = torch.device("cpu")


def draws(device: torch.device, decoding: Decoding) -> torch.Tensor:
    """Tokens [64, 50] of the same logits and the images' own streams."""
    generator, index = torch.Generator().manual_seed(0), np.arange(64)
    logits = 3 * torch.randn(128 if decoding.guidance_scale != 1 else 64, 50, 512, generator=generator)
    noise = uniforms(7, index, 50)
    return pick(logits.to(device), noise.to(device), decoding, decoding.guidance_scale)[0].cpu()


def test_the_same_logits_and_noise_are_the_same_tokens(place: Place):
    for decoding in (Decoding(), Decoding(2.0), Decoding(1.0, 0.7, 100), Decoding(1.5, 1.0, 0, 0.9)):
        same = (draws(place.device, decoding) == draws(CPU, decoding)).double().mean()
        # Sums of float64 may round otherwise, which reaches no draw here; a nucleus is cut by sums of float32.
        assert same == 1 if decoding.top_p == 1 else same > 0.999


def test_an_image_has_its_own_stream_wherever_it_is_made(place: Place):
    """Of a tiny model in float32: that rounding reaches one of its few tokens is a matter of 1 in 1,000 or less."""
    model = model_of(Shape("llamagen_b").at(OnCpu.here), CPU)
    index = np.arange(9)
    labels, noise = labels_of("balanced", 0, index, 1000), uniforms(3, index, model.config.block_size)
    expected = sample_tokens(model, labels, noise, Decoding(1.5))
    model, labels, noise = model.to(place.device), labels.to(place.device), noise.to(place.device)
    for start, stop in ((0, 9), (4, 5), (3, 9)):
        found = sample_tokens(model, labels[start:stop], noise[start:stop], Decoding(1.5))
        assert torch.equal(found.cpu(), expected[start:stop])


def test_dropout_drops_the_same_channels(place: Place):
    keys, x = dropout_keys(np.arange(5), 3, 1), torch.ones(5, 7, 11)
    for rate in (0.1, 0.5):
        kept = [Dropout(rate, keys.to(d))(x.to(d), 4).cpu() for d in (CPU, place.device)]
        assert torch.equal(*kept)
        assert 0 < (kept[0] == 0).double().mean() < 1


def test_an_image_is_the_same_numbers(place: Place):
    images = np.arange(256 * 3, dtype=np.uint8).reshape(1, 16, 16, 3)
    assert torch.equal(scaled(torch.from_numpy(images).to(place.device)).cpu(), to_input(images))
