"""How large a base someone's images want, and how it is trained. docs/pretrain.md says where the rules come from."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from cca_ray.config import Pretrain
from cca_ray.data.pairs import steps_per_epoch

LEAST_TOKENS = 0.5  # of the images, a parameter: about where the official models are, from 0.2 to 7
PASSES = 20  # tokens a parameter that training goes through, repeated ones too (Hoffmann et al. 2022)
LEAST_STEPS = 2000
RATE = 2.0  # the learning rate of a model of one parameter, so to speak: see `rate_for`
SMALL_STEPS = 1000  # of tokenizer and feature network, within the bounds of their epochs
HELD_OUT, FEWEST_HELD_OUT, MOST_HELD_OUT = 0.05, 64, 0.2  # a share, images, a share


@dataclass(frozen=True)
class Corpus:
    """What there is to learn from: images, and tokens an image."""

    images: int
    tokens: int

    @property
    def size(self) -> int:
        return self.images * self.tokens

    def __str__(self) -> str:
        return f"{self.images:,} images of {self.tokens} tokens"


def fits(parameters: int, corpus: Corpus) -> bool:
    """Whether the images are many enough for a model of so many parameters."""
    return corpus.size >= LEAST_TOKENS * parameters


def choose(parameters: Mapping[str, int], corpus: Corpus) -> str:
    """The largest that fits of the sizes, which are given from small to large; the smallest if none does."""
    return [size for size, count in parameters.items() if size == next(iter(parameters)) or fits(count, corpus)][-1]


def reason(size: str, parameters: int, corpus: Corpus, asked: bool) -> str:
    """Why this size, in one line."""
    have = f"{corpus} are {corpus.size / parameters:.2g} tokens per parameter"
    if fits(parameters, corpus):
        why = "as asked" if asked else f"the largest size with at least {LEAST_TOKENS:g}"
        return f"size {size}, {millions(parameters)} parameters: {have}; {why}"
    return (
        f"size {size}, {millions(parameters)} parameters: {have}; {'as asked' if asked else 'the smallest there is'}, "
        f"but with fewer than {LEAST_TOKENS:g} it may memorize the images: more images would help"
    )


def millions(count: int) -> str:
    return f"{count / 1e6:.2g} M"


def rate_for(parameters: int) -> float:
    """A learning rate that falls with the square root of the parameters, to two digits.

    It is within a factor of two of that of the embedded digits (5e-3, 44 k) and of LlamaGen B (1e-4, 111 M).
    """
    return float(f"{RATE / math.sqrt(parameters):.1e}")


def epochs_for(steps: int, images: int, batch: int) -> int:
    """So many that there are at least so many steps."""
    return math.ceil(steps / steps_per_epoch(images, min(images, batch)))


def settings_for(start: Pretrain, parameters: int, corpus: Corpus, epochs: int | None) -> Pretrain:
    """How such a base is made, beginning with some settings. `epochs` of the model: None, as many as it wants."""
    held_out = max(HELD_OUT, min(FEWEST_HELD_OUT / corpus.images, MOST_HELD_OUT))
    used = corpus.images - math.ceil(held_out * corpus.images)
    steps = max(LEAST_STEPS, math.ceil(PASSES * parameters / (start.batch * corpus.tokens)))
    small = epochs_for(SMALL_STEPS, corpus.images, 64)
    chosen = {
        "tokenizer_epochs": min(50, max(10, small)),
        "feature_epochs": min(40, max(8, small)),
        "epochs": epochs or epochs_for(steps, used, start.batch),
        "learning_rate": rate_for(parameters),
        "validation": round(held_out, 4),
    }
    return Pretrain.model_validate({**start.model_dump(), **chosen})
