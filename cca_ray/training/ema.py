"""Averaged weights: of a fine-tuning, which are scored, and of a small base."""

import torch
from torch import nn

from cca_ray.models.parallel import Weights, local, weights_of


@torch.no_grad()
def update_ema(ema: Weights, model: nn.Module, decay: float, step: int) -> None:
    """Exponential mean of the weights. The decay starts low, so that short runs forget the base."""
    decay = min(decay, (1 + step) / (10 + step))
    now = weights_of(model)
    torch._foreach_lerp_([local(mean) for mean in ema.values()], [local(now[name]) for name in ema], 1 - decay)
