"""What an image is to be of: a class, or a text.

A batch of conditions is a tensor of labels [B], which most families take, or `TextFeatures`. A model says which kind it
`takes`. Everything else only moves, cuts and joins them by what both kinds can do: `len`, `split`, `clone`, `to`, rows
that are read or written by a slice, and the functions below.

Shapes: B batch, T positions of a text, C width of its features.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class TextFeatures:
    """Captions as a frozen text encoder left them.

    features [B, T, C]: the words at the end of the T positions. mask [B, T] bool: where there are words. null [B] bool:
    whether the null condition stands in the caption's place. That is the family's own, and may still read the mask.
    """

    features: Tensor
    mask: Tensor
    null: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with all three tensors changed alike."""
        return replace(self, features=change(self.features), mask=change(self.mask), null=change(self.null))

    def to(self, device: torch.device) -> Self:
        return self.each(lambda tensor: tensor.to(device))

    def clone(self) -> Self:
        return self.each(torch.clone)

    def split(self, size: int) -> list[Self]:
        return [self[start : start + size] for start in range(0, len(self), size)]

    def __len__(self) -> int:
        return len(self.null)

    def __getitem__(self, rows: slice) -> Self:
        return self.each(lambda tensor: tensor[rows])

    def __setitem__(self, rows: slice, other: Self) -> None:
        """Into the memory of these, as a CUDA graph wants it."""
        self.features[rows], self.mask[rows], self.null[rows] = other.features, other.mask, other.null


Condition = Tensor | TextFeatures


def joined(first: Condition, second: Condition) -> Condition:
    """One batch after the other, of one kind."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return torch.cat([first, second])
    assert isinstance(first, TextFeatures)
    assert isinstance(second, TextFeatures)
    return TextFeatures(
        torch.cat([first.features, second.features]),
        torch.cat([first.mask, second.mask]),
        torch.cat([first.null, second.null]),
    )


def nulled(condition: Condition, null_label: int) -> Condition:
    """The null condition in the place of each."""
    if isinstance(condition, Tensor):
        return torch.full_like(condition, null_label)
    return replace(condition, null=torch.ones_like(condition.null))


@dataclass(frozen=True)
class Classes:
    """Conditions that are labels, from 0 to `count`, which is the null condition."""

    count: int

    def __str__(self) -> str:
        return f"{self.count} classes"

    def blank(self, rows: int, device: torch.device) -> Condition:
        """So many conditions of this kind, whichever."""
        return torch.zeros(rows, dtype=torch.int64, device=device)


@dataclass(frozen=True)
class Texts:
    """Conditions that are `TextFeatures` of this shape."""

    positions: int
    width: int

    def __str__(self) -> str:
        return f"captions of {self.positions} x {self.width} features"

    def blank(self, rows: int, device: torch.device) -> Condition:
        """See `Classes.blank`."""
        return TextFeatures(
            torch.zeros(rows, self.positions, self.width, device=device),
            torch.ones(rows, self.positions, dtype=torch.bool, device=device),
            torch.zeros(rows, dtype=torch.bool, device=device),
        )


Kind = Classes | Texts
