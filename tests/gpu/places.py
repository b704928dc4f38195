"""Where a test of this folder runs: on a card, or in the default suite on the CPU, which then stands in for one.

The CPU counts the bytes of tensors, refuses more of them than it may hold, and refuses what a card would wait for.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks.gpu.made import Here
from cca_ray.cluster.device import free_memory
from cca_ray.evaluation.decoder import CudaRecorder, Recorder
from cca_ray.testing.fake_graphs import FakeRecorder
from tests.peak import Peak, peak_bytes


class Place(Protocol):
    here: Here

    @property
    def device(self) -> torch.device: ...

    def recorder(self) -> Recorder:
        """Of decoding steps."""

    def peak(self, run: Callable[[], object]) -> int:
        """The most bytes of tensors at once while it runs."""

    def limited(self, most: int) -> AbstractContextManager[object]:
        """Meanwhile there is no more memory than this, in bytes: what wants more raises torch.OutOfMemoryError."""

    def without_waiting(self) -> AbstractContextManager[object]:
        """Meanwhile it is an error to wait for what a card computes."""


class Limited(Peak):
    """Counts, and raises once it is too much: the tensor that was too much goes with the error."""

    def __init__(self, allowed: int):
        super().__init__()
        self.allowed = allowed

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = super().__torch_dispatch__(func, types, args, kwargs)
        if self.held > self.allowed:
            raise torch.OutOfMemoryError(f"{self.held:,} bytes of tensors, and {self.allowed:,} are allowed")
        return out

    def most(self) -> int:
        return self.allowed


WAITS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero")  # what returns to the CPU


class Waiting(RuntimeError):
    pass


class NoWaiting(TorchDispatchMode):
    """Raises at what would wait for a card."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITS:
            raise Waiting(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


class OnCpu:
    here = Here(torch.device("cpu"), dry=True)
    device = here.device

    def recorder(self) -> Recorder:
        return FakeRecorder()

    def peak(self, run: Callable[[], object]) -> int:
        return peak_bytes(run)

    def limited(self, most: int) -> AbstractContextManager[object]:
        return Limited(most)

    def without_waiting(self) -> AbstractContextManager[object]:
        return NoWaiting()


class OnCard:
    here = Here(torch.device("cuda:0"))
    device = here.device

    def recorder(self) -> Recorder:
        return CudaRecorder()

    def peak(self, run: Callable[[], object]) -> int:
        free_memory(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        run()
        return torch.cuda.max_memory_allocated(self.device)

    @contextmanager
    def limited(self, most: int) -> Iterator[None]:
        free_memory(self.device)
        torch.cuda.set_per_process_memory_fraction(most / torch.cuda.mem_get_info(self.device)[1], self.device)
        try:
            yield
        finally:
            torch.cuda.set_per_process_memory_fraction(1.0, self.device)

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
