"""How many bytes tensors take at once while something runs: counted, on any device, `meta` too."""

from collections.abc import Callable
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Peak(TorchDispatchMode):
    """`bytes`: the most that storages took which operations have made meanwhile; what was there before is not counted.

    It counts what PyTorch hands out: no workspaces of libraries, no holes between blocks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = dict[int, tuple[StorageWeakRef, int]]()
        self.held = 0  # by those in `alive`, of which some may be gone
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage()._cdata not in given:
                storage = tensor.untyped_storage()
                self.held += storage.nbytes() - self.alive.get(storage._cdata, (None, 0))[1]
                self.alive[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        if self.held > self.most():
            self.alive = {key: found for key, found in self.alive.items() if not found[0].expired()}
            self.held = sum(size for _, size in self.alive.values())
        self.bytes = max(self.bytes, self.held)
        return out

    def most(self) -> int:
        """Up to which nobody asks how much of what is held is gone."""
        return self.bytes


def peak_bytes(run: Callable[[], object]) -> int:
    with Peak() as peak:
        run()
    return peak.bytes
