"""Dropout whose mask is a function of the row's own key, so that it does not depend on the batch or the device."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


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


@dataclass(frozen=True)
class SiteDropout:
    """`drop(x [B, T, C])` of one place: a rate, and a key for each row, [B] int32."""

    rate: float
    rows: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        row = self.rows.view(-1, 1, 1)
        element = torch.arange(x[0].numel(), dtype=torch.int32, device=x.device).view(1, *x.shape[1:])
        kept = (mix(mix(element) ^ row) & 0x7FFFFFFF) >= int(self.rate * 2**31)
        return x * kept / (1.0 - self.rate)


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
