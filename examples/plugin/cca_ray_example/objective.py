"""An objective: IPO (Azar et al. 2023), which aims at a difference of log-ratios instead of pushing it ever further."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from cca_ray.contracts import Strict
from cca_ray.training.objectives import Objective, ScoredPairs

if TYPE_CHECKING:
    from torch import Tensor


class IpoParameters(Strict):
    """Keys of `train` in a search space. Each has a default; numbers may be searched."""

    margin: float = Field(10.0, gt=0)  # nats by which the true condition should gain more than the negative one


def ipo_loss(pairs: ScoredPairs, own: IpoParameters) -> Tensor:
    """Of every pair [B]. It is 1 for the base model, whatever the margin, so that learning rates carry over."""
    return ((pairs.gap - pairs.negative_gap) / own.margin - 1.0).square()


IPO = Objective("ipo", "IPO", IpoParameters, ipo_loss)
