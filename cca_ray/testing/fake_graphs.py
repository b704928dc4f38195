"""CUDA graphs without CUDA: what is recorded is done again on the same memory, if what it reads is still there."""

from collections.abc import Callable
from typing import Any
from weakref import ReferenceType, ref

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map, tree_map_only


class Tape(TorchDispatchMode):
    """Writes down every operation with its very tensors, as a graph knows addresses, not names.

    Those that it did not make itself it does not keep alive: neither does a graph.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}  # by id
        self.operations: list[Callable[[], None]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_map_only(Tensor, lambda t: t if id(t) in self.made else ref(t), (args, kwargs or {}))
        old = {t.untyped_storage().data_ptr() for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        new = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        self.made |= {id(t): t for t in new}
        fresh = [t.untyped_storage().data_ptr() not in old for t in new]  # no view, nor changed in place

        def again() -> None:
            args, kwargs = tree_map(there, given)
            results = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, Tensor)]
            for tensor, result, is_fresh in zip(new, results, fresh, strict=True):
                if is_fresh:
                    tensor.copy_(result)

        self.operations.append(again)
        return out

    def replay(self) -> None:
        for operation in self.operations:
            operation()


def there(given: Any) -> Any:
    """A tensor that is not kept, if it still is."""
    if not isinstance(given, ReferenceType):
        return given
    tensor = given()
    assert tensor is not None, "a graph reads a tensor that is gone: a GPU would read whatever has taken its place"
    return tensor


class FakeRecorder:
    """In place of `cca_ray.evaluation.decoder.CudaRecorder`."""

    def warmed(self, run: Callable[[], Tensor]) -> Tensor:
        return run()

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        with Tape() as tape:
            run()
        return tape.replay
