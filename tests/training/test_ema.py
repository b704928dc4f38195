"""The averaged weights of a fine-tuning and of a small base."""

import pytest
import torch
from torch import nn

from cca_ray.training.ema import update_ema


@pytest.mark.parametrize(("step", "kept"), [(0, 0.1), (4, 5 / 14), (8, 0.5), (1000, 0.5)])
def test_the_ema_forgets_the_base_soon(step: int, kept: float):
    """It keeps (1 + step) / (10 + step) of what it was, and never more than its decay."""
    model = nn.Linear(3, 2)
    before = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    ema = {name: mean.clone() for name, mean in before.items()}
    update_ema(ema, model, 0.5, step)
    for name, now in model.named_parameters():
        torch.testing.assert_close(ema[name], kept * before[name] + (1 - kept) * now.detach())
