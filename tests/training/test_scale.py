"""Which size someone's images get, why, and how long it is trained."""

import math

import pytest

from cca_ray.config import Pretrain
from cca_ray.training.scale import Corpus, choose, epochs_for, rate_for, reason, settings_for

SIZES = {"small": 100_000, "medium": 1_000_000, "large": 5_000_000}
START = Pretrain(batch=128)


@pytest.mark.parametrize(
    ("images", "tokens", "size"),
    [
        (50, 64, "small"),
        (1797, 16, "small"),
        (7812, 64, "small"),
        (7813, 64, "medium"),  # 500,032 tokens
        (10_000, 64, "medium"),
        (2000, 256, "medium"),
        (39_062, 64, "medium"),
        (39_063, 64, "large"),
        (1_281_167, 576, "large"),
    ],
)
def test_the_size_is_the_largest_with_half_a_token_a_parameter(images: int, tokens: int, size: str):
    assert choose(SIZES, Corpus(images, tokens)) == size


def test_the_reason_has_the_figures_and_says_what_is_wrong():
    many, few = Corpus(10_000, 64), Corpus(100, 64)
    assert reason("medium", 1_000_000, many, asked=False) == (
        "size medium, 1 M parameters: 10,000 images of 64 tokens are 0.64 tokens per parameter; the largest size "
        "with at least 0.5"
    )
    assert reason("small", 100_000, many, asked=True).endswith("are 6.4 tokens per parameter; as asked")
    assert "0.064 tokens per parameter; the smallest there is, but with fewer than 0.5" in reason(
        "small", 100_000, few, asked=False
    )
    assert "0.13 tokens per parameter; as asked, but with fewer than 0.5" in reason(
        "large", 5_000_000, many, asked=True
    )


@pytest.mark.parametrize(("parameters", "rate"), [(100_000, 6.3e-3), (1_000_000, 2e-3), (5_000_000, 8.9e-4)])
def test_larger_models_learn_at_smaller_rates(parameters: int, rate: float):
    assert rate_for(parameters) == rate
    assert 0.5 < rate_for(16_640) / 2e-2 < 2  # the embedded digits
    assert 0.5 < rate_for(111_000_000) / 1e-4 < 2  # LlamaGen B


@pytest.mark.parametrize(
    ("parameters", "images", "steps"),
    [
        (100_000, 10_000, 2000),  # at least
        (1_000_000, 10_000, 2442),  # 20 tokens a parameter, in batches of 128 images of 64 tokens
        (5_000_000, 100_000, 12_208),
        (100_000, 50, 2000),  # batches of 40: all that are not held out
    ],
)
def test_training_goes_through_twenty_tokens_a_parameter(parameters: int, images: int, steps: int):
    made = settings_for(START, parameters, Corpus(images, 64), None)
    used = images - math.ceil(made.validation * images)
    each = used // min(128, used)
    assert steps <= made.epochs * each < steps + each


@pytest.mark.parametrize(("images", "held_out"), [(50, 10), (320, 64), (1000, 64), (1280, 64), (10_000, 500)])
def test_a_share_of_the_images_is_held_out_and_not_too_few(images: int, held_out: int):
    assert math.ceil(settings_for(START, 100_000, Corpus(images, 64), None).validation * images) == held_out


def test_what_is_asked_for_and_what_is_not_of_this_module_stays():
    start = Pretrain(seed=7, image_size=32, downsample=4, codebook_size=64, ema_decay=0.9)
    made = settings_for(start, 100_000, Corpus(10_000, 64), epochs=3)
    changed = {"epochs": 3, "learning_rate": 6.3e-3, "validation": 0.05}
    assert made == start.model_copy(update=changed)
    few = settings_for(start, 100_000, Corpus(50, 64), None)
    assert (few.tokenizer_epochs, few.feature_epochs) == (50, 40)
    assert settings_for(start, 100_000, Corpus(3000, 64), None).tokenizer_epochs == epochs_for(1000, 3000, 64) == 22
