"""What the tests of a family work with: a model and its tokenizer, conditions of its kind, a way of computing."""

import dataclasses
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cca_ray.cluster.placement import autocast
from cca_ray.evaluation.decoder import Decoder
from cca_ray.evaluation.sampler import Decoding, sample_tokens, uniforms
from cca_ray.models.base import Model, Tokenizer
from cca_ray.models.condition import Condition, TextFeatures, Texts
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import Placement, Precision

CODES, CLASSES = 32, 10
CPU = Group(device=torch.device("cpu"))


def conditions(model: Model, numbers: Tensor) -> Condition:
    """Those of these numbers [B], from 0 to `CLASSES`, which is the null condition: labels, or made-up captions."""
    kind = model.takes
    if not isinstance(kind, Texts):
        return numbers
    captions = torch.randn(CLASSES, kind.positions, kind.width, generator=torch.Generator().manual_seed(3))
    words = torch.arange(CLASSES) % kind.positions + 1
    chosen = numbers.cpu().clamp(max=CLASSES - 1)
    mask = torch.arange(kind.positions) >= kind.positions - words[chosen, None]
    return TextFeatures(captions[chosen], mask, numbers.cpu() == CLASSES).to(numbers.device)


class Pair(NamedTuple):
    model: Model
    tokenizer: Tokenizer
    length: int  # tokens an image

    def some(self, count: int = 4) -> tuple[Condition, Tensor]:
        """So many conditions, the null condition among them if there are many, and random tokens [count, L]."""
        generator = torch.Generator().manual_seed(1)
        tokens = torch.randint(CODES, (count, self.length), generator=generator)
        return conditions(self.model, torch.arange(count) % (CLASSES + 1)), tokens


@dataclasses.dataclass(frozen=True)
class Computing:
    """How a trial computes: training keeps its weights in float32 under autocast, sampling has weights of its own."""

    precision: Precision

    @property
    def placement(self) -> Placement:
        return Placement(precision=self.precision)

    def training(self) -> AbstractContextManager[None]:
        return autocast(self.placement, CPU.device)

    def sampled(self, model: Model) -> Model:
        """A copy, as it is sampled."""
        return for_sampling(deepcopy(model), self.placement, CPU)

    def assert_close(self, found: Tensor, expected: Tensor) -> None:
        """Equal but for rounding; in bfloat16, whose rounding adds up over layers, in the mean."""
        if self.precision == "float32":
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
        else:
            assert found.isfinite().all()
            assert (found - expected).abs().mean() < 0.03 * expected.std()


def tensors_in(tree: Any) -> list[Tensor]:
    """All, in lists, tuples or a dataclass."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree if isinstance(tree, list | tuple) else vars(tree).values()
    return [tensor for part in parts for tensor in tensors_in(part)]


def check_decoder(model: Model, decoder: Decoder, device: torch.device, length: int, scale: float) -> None:
    """Three batches of one size, a smaller one, a larger one and its like: each is what a decoder of its own makes.

    Of a smaller one that is in a batch of the whole size, for kernels of another shape may round otherwise.
    """
    for begin, end, size in ((0, 6, 6), (6, 12, 6), (12, 18, 6), (18, 21, 6), (21, 29, 8), (29, 37, 8)):
        index = np.arange(begin, begin + size)
        chosen = conditions(model, torch.from_numpy(index % 5).to(device))
        noise = uniforms(0, index, length).to(device)
        some = slice(end - begin)
        made = sample_tokens(model, chosen[some], noise[some], Decoding(scale), decoder=decoder)
        garbage = [torch.full_like(noise, torch.nan) for _ in range(20)]  # in the place of whatever was let go
        assert torch.equal(made, sample_tokens(model, chosen, noise, Decoding(scale))[some])
        del garbage
