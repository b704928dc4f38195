"""Tensors that a network would leave behind on the CPU."""

from torch import Tensor, nn


def stranded(network: nn.Module) -> list[str]:
    """Attributes that are tensors, but neither parameters nor buffers: `network.to(device)` does not move them."""
    return [
        f"{name}.{key}".lstrip(".")
        for name, module in network.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, Tensor)
    ]
