"""Scoring with less at a time once memory has run out, which changes no image."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from cca_ray.cluster.device import free_memory
from cca_ray.errors import NoMemory, is_out_of_memory

LEAST = 16  # of what is made at a time: the smallest part that is tried
TOO_SMALL = "memory runs out in scoring, even with few images at a time; use a card or a machine with more"
T = TypeVar("T")


class NoRoom(NoMemory):
    """Memory that is too small for scoring. Nothing that training does at a time would help."""

    def __init__(self, said: str = TOO_SMALL):  # an error that Ray brings from elsewhere is made of what it said
        super().__init__(said)


@contextmanager
def no_room() -> Iterator[None]:
    """Meanwhile memory that runs out is NoRoom."""
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            raise NoRoom from None
        raise


@dataclass
class Thrift:
    """`thrift(run)`: what `run(share)` gives; `share` as large as it must be, twice the last when memory runs out.

    Of everything 1/share is made at a time from then on. `drop` lets go of what is kept between two runs.
    """

    device: torch.device
    share: int = 1

    def __call__(self, run: Callable[[int], T], drop: Callable[[], None] = lambda: None) -> T:
        while True:
            try:
                return run(self.share)
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.share == LEAST:
                    raise NoRoom from None
            # Only here, where the error no longer holds the tensors of the run that failed.
            self.share *= 2
            drop()
            free_memory(self.device)
