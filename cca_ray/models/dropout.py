"""Dropout whose mask is a function of the row's own key, so that it does not depend on the batch or the device.

A mask is about a dozen integer operations an element. On a GPU they are one kernel, compiled, with the same bits:
eagerly each of them reads and writes memory, together a quarter of all that training a LlamaGen moves.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cca_ray.errors import first_line, is_out_of_memory

LOG = logging.getLogger(__name__)


def signed(value: int) -> int:
    """The 32 bits of `value` as an int32."""
    return (value & 0xFFFFFFFF) - ((value & 0x80000000) << 1)


def mix(h: Tensor) -> Tensor:
    """Ettinger's lowbias32: a bijection of int32 that scatters its bits; products wrap around."""
    h = h ^ ((h >> 16) & 0xFFFF)
    h = h * 0x21F0AAAD
    h = h ^ ((h >> 15) & 0x1FFFF)
    h = h * 0x735A2D97
    return h ^ ((h >> 15) & 0x1FFFF)


def dropped(x: Tensor, rows: Tensor, rate: float) -> Tensor:
    """x [B, T, C], rows [B] -> the same where it is kept, larger by as much as falls away; 0 elsewhere."""
    element = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device).view(1, *x.shape[1:])
    kept = (mix(mix(element) ^ rows.view(-1, 1, 1)) & 0x7FFFFFFF) >= int(rate * 2**31)
    return x * kept / (1.0 - rate)


Kernel = Callable[[Tensor, Tensor, float], Tensor]


@cache
def compiled() -> Kernel:
    kernel: Kernel = torch.compile(dropped, dynamic=True)
    return kernel


class OneKernel(torch.autograd.Function):
    """`dropped`, compiled. It is linear: gradients go through the same kernel, and no mask is kept for them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, rows: Tensor, rate: float) -> Tensor:
        ctx.save_for_backward(rows)
        ctx.rate = rate
        return compiled()(x, rows, rate)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (rows,) = ctx.saved_tensors
        return compiled()(gradient, rows, ctx.rate), None, None


@cache
def one_kernel(device: torch.device) -> bool:
    """Whether it compiles here, and keeps the same elements as it does eagerly. Tried once a process."""
    x, rows = torch.ones(2, 3, 64, device=device), torch.arange(2, dtype=torch.int32, device=device)
    try:
        same = torch.equal(compiled()(x, rows, 0.3) != 0, dropped(x, rows, 0.3) != 0)
    except Exception as error:  # of many kinds: no compiler, no Triton, a version that fails
        if is_out_of_memory(error):
            raise
        same, said = False, f"{type(error).__name__}: {first_line(error)}"
    else:
        said = "it keeps other elements"
    if not same:
        LOG.warning("dropout is not compiled to one kernel here, which is slower and changes nothing: %s", said)
    return same


@dataclass(frozen=True)
class SiteDropout:
    """`drop(x [B, T, C])` of one place: a rate, and a key for each row, [B] int32."""

    rate: float
    rows: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        # Within a compiled block the operations are part of the block's own kernels.
        if torch.compiler.is_compiling() or x.device.type != "cuda" or not one_kernel(x.device):
            return dropped(x, self.rows, self.rate)
        return OneKernel.apply(x, self.rows, self.rate)


@dataclass(frozen=True)
class Dropout:
    """`dropout(x [B, T, C], site)`: a rate and a key for each row, [B] int32; `site` numbers the places of its use.

    A block is given `at(site)` rather than its number: so that all blocks are one program when they are compiled.
    """

    rate: float
    keys: Tensor

    def __call__(self, x: Tensor, site: int) -> Tensor:
        return self.at(site)(x)

    def at(self, site: int) -> SiteDropout:
        """Of this place."""
        return SiteDropout(self.rate, mix(self.keys + signed(site * 0x9E3779B1)))

    def of_block(self, number: int) -> tuple[SiteDropout, SiteDropout]:
        """Of the two branches of a block; site 0 is the embeddings'."""
        return self.at(2 * number + 1), self.at(2 * number + 2)


def dropout_keys(index: np.ndarray, *numbers: int) -> Tensor:
    """A key for each row, [B] int32, from its index [B] and a few numbers, such as seed and epoch."""
    start = np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]
    with np.errstate(over="ignore"):  # splitmix64, one step a row
        z = start + (index.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return torch.from_numpy((z >> np.uint64(32)).astype(np.uint32).view(np.int32))
