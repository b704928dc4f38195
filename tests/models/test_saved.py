"""What a block keeps for its backward pass, as `Family.activation_bytes` says, counted on a CPU.

A card keeps more: there autocast takes layer norms of queries and keys in float32.
"""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cca_ray.models.family import family_of
from cca_ray.models.official import build, configure

WIDTH, LENGTH = 256, 256


class InFloat32(nn.LayerNorm):
    """As autocast has it on a card."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.float())


def kept(layers: int, rows: int, mlp_dim: int) -> int:
    """Bytes of all that is saved of RAR's forward pass, weights aside."""
    shape = dict(dim=WIDTH, n_head=4, n_layer=layers, mlp_dim=mlp_dim, block_size=LENGTH, vocab_size=32, num_classes=10)
    model, seen = build("rar", "S", **shape), dict[int, Tensor]()
    for block in model.stack:
        block.attn.q_norm, block.attn.k_norm = (InFloat32(WIDTH // 4) for _ in range(2))  # type: ignore[union-attr]
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}

    def pack(tensor: Tensor) -> Any:
        seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    labels, tokens = torch.zeros(rows).long(), torch.zeros(rows, LENGTH).long()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t), torch.autocast("cpu", torch.bfloat16):
        _hidden = model.hidden(labels, tokens)
        return sum(t.untyped_storage().nbytes() for place, t in seen.items() if place not in weights)


@pytest.mark.parametrize(("size", "found"), [("B", 80.7), ("XXL", 82.1)])
def test_rar_keeps_as_many_bytes_as_are_said(size: str, found: float):
    """What a row more costs in a layer more. XXL's MLP is wider than four times its width."""
    official = configure("rar", size)
    mlp_dim = round(WIDTH * official.mlp_dim / official.dim)
    two, one = (kept(layers, 4, mlp_dim) - kept(layers, 2, mlp_dim) for layers in (2, 1))
    each = (two - one) / (2 * LENGTH * WIDTH)
    assert each == pytest.approx(found, abs=0.1)
    assert each <= family_of("rar").activation_bytes
