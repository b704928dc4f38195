"""How many kernels something runs, and how many bytes they read and write: counted, on any device, `meta` too."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

MATRICES = ("mm", "addmm", "bmm", "baddbmm")  # and attention, which has many names


@dataclass(frozen=True)
class Traffic:
    """`kernels`: launches of any kind. `bytes`: read and written by all but products of matrices and attention."""

    kernels: int
    bytes: int


class Counter(TorchDispatchMode):
    """Takes every operation that is no view for one kernel, which reads its operands and writes its results once."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out, name = func(*args, **(kwargs or {})), func.overloadpacket.__name__
        given, made = (tensors({id(t): t for t in tree_leaves(found)}) for found in ((args, kwargs), out))
        memory = {t.untyped_storage()._cdata for t in given}
        changes = func._schema.is_mutable
        shared = bool(made) and all(t.untyped_storage()._cdata in memory for t in made)
        if name.startswith(("empty", "new_empty")) or (shared and not changes):  # a view
            return out
        self.kernels += 1
        if name not in MATRICES and "attention" not in name:
            self.bytes += sum(map(touched, given)) + sum(touched(t) for t in (given[:1] if changes else made))
        return out


def tensors(found: dict[int, Any]) -> list[Tensor]:
    return [t for t in found.values() if isinstance(t, Tensor)]


def touched(tensor: Tensor) -> int:
    """Bytes; what was expanded is one number."""
    numbers = [size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride]
    return int(torch.Size(numbers).numel()) * tensor.element_size()


def traffic(run: Callable[[], object]) -> Traffic:
    with Counter() as counter:
        run()
    return Traffic(counter.kernels, counter.bytes)
