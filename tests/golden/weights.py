"""Deterministic weights for the golden fixtures.

`checkpoint(manifest, std, ...)` rebuilds, from parameter names and shapes alone, the state dict
with which the official implementation produced a fixture's numbers: every tensor is drawn from its
own generator, seeded by the CRC-32 of its name.  Names and shapes are those of the official checkpoints.
"""

import math
import zlib

import torch


def checkpoint(manifest: dict[str, list[int]], std: float, patch_nums: tuple[int, ...] = ()) -> dict[str, torch.Tensor]:
    """State dict in official naming. `manifest`: name -> shape; `patch_nums`: VAR's scales, for its buffers."""
    state = {}
    for name, shape in manifest.items():
        if "ema_vocab_hit" in name or "zero_k_bias" in name:
            state[name] = torch.zeros(shape)
        elif name == "lvl_1L":
            state[name] = torch.cat([torch.full((p * p,), i) for i, p in enumerate(patch_nums)]).view(1, -1)
        elif name == "attn_bias_for_masking":
            level = torch.cat([torch.full((p * p,), i) for i, p in enumerate(patch_nums)])
            bias = torch.where(level[:, None] >= level[None, :], 0.0, -torch.inf)
            state[name] = bias.view(shape)
        elif "scale_mul" in name:
            state[name] = torch.full(shape, math.log(4))
        else:
            generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
            state[name] = torch.randn(shape, generator=generator) * std
            if len(shape) == 1 and name.endswith("weight") and ("norm" in name or "gamma" in name):
                state[name] += 1
    return state


def inception_checkpoint(manifest: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """State dict in pytorch-fid's naming, from `manifest`: name -> shape.

    Every tensor is drawn from its own generator, seeded by the CRC-32 of its name.  The convolutions and the
    classifier have He's scale and the batch norms are near the identity, so that activations stay of order one.
    """
    state = {}
    for name, shape in manifest.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.int64)
            continue
        draw = torch.randn(shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
        if name.endswith((".conv.weight", "fc.weight")):
            state[name] = draw * math.sqrt(2 / math.prod(shape[1:]))
        elif name.endswith(".bn.weight"):
            state[name] = 1 + 0.1 * draw
        elif name.endswith(".bn.running_var"):
            state[name] = (1 + 0.1 * draw).clamp(min=0.5)
        elif name.endswith((".bn.bias", "fc.bias", ".bn.running_mean")):
            state[name] = 0.1 * draw
        else:
            raise ValueError(f"no rule for the weights of {name}")
    return state
