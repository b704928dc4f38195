"""A model's decoding steps, for batch after batch; on a GPU, unless that is switched off, as CUDA graphs."""

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from cca_ray.cluster.device import card_is_lost
from cca_ray.errors import first_line, is_out_of_memory
from cca_ray.models.base import Model
from cca_ray.models.condition import Condition

APART = 0.02  # of their length: no more may rounding move logits that another kernel has computed


class NoGraphs(RuntimeError):
    """Decoding steps cannot be recorded here, or give something else when they are replayed."""


class Decoder:
    """A model's decoding steps, one after the other, for batch after batch."""

    def __init__(self, model: Model):
        self.model = model
        self.condition: Condition = torch.empty(0)
        self.cache: Any = None  # each family has its own kind

    def begin(self, condition: Condition) -> None:
        """A batch with this condition."""
        self.drop()  # first: there may be no room for two caches
        self.condition, self.cache = condition, self.model.new_cache(len(condition))

    def step(self, step: int, last: Tensor | None) -> Tensor:
        """Logits of this step [B, count, V], good until the next; `last`: the tokens of the step before [B, count]."""
        return self.model.decode(self.condition, last, step, self.cache)

    def end(self) -> None:
        """Of a batch: its keys and values make room for its images."""
        self.drop()

    def drop(self) -> None:
        """Let go of all that is kept from batch to batch."""
        self.cache = None


class Recorder(Protocol):
    """Turns what runs on a device into something that can be replayed."""

    def warmed(self, run: Callable[[], Tensor]) -> Tensor:
        """What it gives, run once outside of any recording, for what libraries set up on first use."""

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        """Replays it on the same memory, with what is there by then. It need not have run when this returns."""


class CudaRecorder:
    """CUDA graphs that share a pool of memory: they are replayed in the order in which they were recorded.

    One stream for all of them, as each stream's memory is its own.
    """

    def __init__(self) -> None:
        self.stream = torch.cuda.Stream()
        self.pool = torch.cuda.graph_pool_handle()

    def warmed(self, run: Callable[[], Tensor]) -> Tensor:
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            shown = run()
        torch.cuda.current_stream().wait_stream(self.stream)
        return shown

    def record(self, run: Callable[[], object]) -> Callable[[], None]:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, stream=self.stream):
            run()
        return graph.replay


@dataclass(frozen=True)
class Recorded:
    """A step: it reads `last` and `cache`, which must live as long as it does, and writes `logits`."""

    replay: Callable[[], None]
    last: Tensor | None
    cache: Any
    logits: Tensor


class GraphDecoder(Decoder):
    """The same with every step recorded, by the first batch, and replayed by all that are not larger.

    A step is hundreds of small kernels, whose launches take longer than their work. Every step has a graph of its own,
    so that shapes are static and yet nothing is computed for positions that are still empty. A smaller batch, such as
    the last, fills the first rows only. Every step is tried once before it is used: NoGraphs if that fails.
    """

    def __init__(self, model: Model, new_recorder: Callable[[], Recorder] = CudaRecorder):
        super().__init__(model)
        self.new_recorder = new_recorder
        self.drop()

    def drop(self) -> None:
        # A pool whose graphs have all died must not be used again: the next graphs get a recorder of their own.
        self.cache, self.condition, self.rows = None, torch.empty(0), 0
        self.recorder: Recorder | None = None
        self.recorded: dict[int, Recorded] = {}
        self.logits: dict[int, Tensor] = {}  # by tokens a step: what the graphs of such steps write to

    def begin(self, condition: Condition) -> None:
        if len(condition) > len(self.condition):
            super().begin(condition.clone())
        self.rows = len(condition)
        self.condition[: self.rows] = condition  # type: ignore[assignment]  # of the kind that the first was

    def step(self, step: int, last: Tensor | None) -> Tensor:
        if step not in self.recorded:
            self.recorded[step] = self.record(step, last)
        recorded = self.recorded[step]
        if last is not None and recorded.last is not None:
            recorded.last[: self.rows] = last
        recorded.replay()
        return recorded.logits[: self.rows]

    def end(self) -> None:
        """The graphs need the keys and values."""

    def record(self, step: int, last: Tensor | None) -> Recorded:
        try:
            recorded, shown = self.recorded_and_eager(step, last)
            recorded.replay()
        except Exception as error:  # of many kinds; a fault of the model's own comes again without graphs
            if is_out_of_memory(error) or card_is_lost():
                raise
            raise NoGraphs(f"{type(error).__name__}: {first_line(error)}") from error
        logits, eager = recorded.logits.float(), shown.float()
        if (logits - eager).norm() > APART * eager.norm():
            raise NoGraphs(f"step {step} gives other logits than it does without them")
        return recorded

    def recorded_and_eager(self, step: int, last: Tensor | None) -> tuple[Recorded, Tensor]:
        """The step, recorded, and what it gives without a recording where all tokens before it are 0."""
        self.recorder = self.recorder or self.new_recorder()
        given = None if last is None else last.new_zeros(len(self.condition), *last.shape[1:])
        read = copy(self.cache)  # a family may put new tensors in the place of those that the graph reads
        shown = self.recorder.warmed(lambda: self.model.decode(self.condition, given, step, copy(self.cache)))
        logits = self.logits.setdefault(shown.shape[1], torch.empty_like(shown))
        replay = self.recorder.record(
            lambda: logits.copy_(self.model.decode(self.condition, given, step, self.cache)),
        )
        return Recorded(replay, given, read, logits), shown
