"""A step of training, ours and the official one; what a trial takes of a card's memory; its checkpoint."""

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from benchmarks.cluster_sim import size_of
from benchmarks.gpu.made import Here, Shape, fine_tuning, load_of, model_of, study_of, words
from benchmarks.peers import official_llamagen, official_var, synchronised
from benchmarks.step import Manner, Step, of_llamagen, official, pairs
from benchmarks.step import peak as process_peak
from cca_ray.cluster.device import free_memory
from cca_ray.cluster.placement import CARDS, GIB, USABLE, Load, memory_gib
from cca_ray.errors import is_out_of_memory
from cca_ray.evaluation.protocol import SHARD
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.parallel import COMPILES
from cca_ray.models.var import VAR
from cca_ray.training.checkpoint import Progress, Writer, resume, save_checkpoint
from cca_ray.training.loop import score_rung
from cca_ray.training.setup import Loop, settings_of
from cca_ray.training.step import train_step

WARM = 2  # steps before the clock
MICRO_BATCHES = tuple(2**i for i in range(9))  # pairs: what cuts the shipped global batch, 256, evenly
PEAK_TFLOPS = {name: card.tflops for name, card in CARDS.items()} | {"H200": 989}  # dense bfloat16, by their maker
Figures = Mapping[str, float]  # by name, with its unit


@dataclass
class Peak:
    """The most that was held at once, of a card by PyTorch, of a CPU by the process: filled in at the end."""

    gib: float = 0.0


@contextmanager
def peak_of(device: torch.device) -> Iterator[Peak]:
    found = Peak()
    if device.type == "cuda":
        free_memory(device)
        torch.cuda.reset_peak_memory_stats(device)
    yield found
    found.gib = (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else process_peak()) / GIB


def seconds_of(step: Callable[[int], object], here: Here) -> float:
    """Of a step, at the median of those after the first."""
    seconds = []
    for number in range(here.steps):
        synchronised(here.device)
        started = time.perf_counter()
        step(number)
        synchronised(here.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[WARM:])


class TooSmall(RuntimeError):
    """This card has no room for a whole model of a case."""


def alone_gib(load: Load, micro_batch: int) -> float:
    """What a whole model wants of one card, as `placement.memory_gib` says."""
    return memory_gib(load, 1, micro_batch, "ddp", recompute=False)


def batches(shape: Shape, here: Here) -> tuple[int, int]:
    """The largest micro-batch with which a whole model fits this card, and a global batch of a few of them.

    It is the search space's own, where its row for the card has a whole model on each. A row of parts says nothing of
    one card. TooSmall if not even one pair fits.
    """
    if here.dry:
        return 2, 4
    load, usable = load_of(shape), USABLE * here.gib
    fits = [size for size in MICRO_BATCHES if alone_gib(load, size) <= usable]
    if not fits:
        raise TooSmall(
            f"too small: {shape.space} wants {alone_gib(load, 1):.0f} GiB of one card, and {usable:.0f} are usable here"
        )
    return fits[-1], min(256, 4 * fits[-1])


@contextmanager
def trial(shape: Shape, here: Here, *settings: str, steps: int = 0) -> Iterator[Loop]:
    """A fine-tuning at the largest micro-batch for this card, in a folder that is gone afterwards."""
    shape = shape.at(here)
    with tempfile.TemporaryDirectory() as folder:
        config = study_of(shape, here, *batches(shape, here), *settings)
        yield fine_tuning(shape, here, config, Path(folder), steps or here.steps)


def flop_an_image(shape: Shape) -> float:
    """Of training: three forward passes' worth for each of a pair's two sequences."""
    return 6 * replace(size_of(shape.space), **vars(load_of(shape))).forward_flop


def step(shape: Shape, here: Here, *settings: str) -> Figures:
    """A CCA step as a trial takes it: dropout and the rest as in the search space, bfloat16 autocast, EMA if any."""
    with peak_of(here.device) as peak, trial(shape, here, *settings) as loop:
        rate = loop.job.train.global_batch / seconds_of(partial(train_step, loop), here)
        if loop.job.config.placement.compile and not all(COMPILES.values()):
            raise RuntimeError("torch.compile fails on this model here, and a trial would compute eagerly")
    flop = flop_an_image(shape.at(here))
    type_ = next((known for known in PEAK_TFLOPS if known in words(here.name)), "")
    of_peak = {"MFU": rate * flop / (PEAK_TFLOPS[type_] * 1e12)} if type_ else {}
    return {"images/s": rate, "GiB": peak.gib, **of_peak}


def official_run(shape: Shape, here: Here, global_batch: int, manner: Manner) -> Step:
    """The official loop's step, with the same weights as ours."""
    assert here.peer is not None
    model = model_of(shape, here.device)
    data = pairs(model.config, global_batch).to(here.device)
    if isinstance(model, LlamaGen):
        network = official_llamagen(model, here.peer / "LlamaGen", shape.shipped.train.dropout)
        return official(network, data, of_llamagen, manner)
    assert isinstance(model, VAR)
    codes = model.codes
    assert codes is not None

    def of_var(network: nn.Module, labels: Tensor, tokens: Tensor) -> Tensor:
        return cast(Tensor, network(labels, codes.teacher_input(tokens)))

    return official(official_var(model, here.peer / "VAR"), data, of_var, manner)


def official_step(shape: Shape, here: Here, compiled: bool = False) -> Figures:
    """In bfloat16 autocast. It takes more memory: half as much at a time as long as that runs out."""
    micro_batch, global_batch = batches(shape, here)
    while True:
        manner = Manner(micro_batch, half=True, compiled=compiled and not here.dry)
        try:
            return official_steps(shape.at(here), here, global_batch, manner)
        except Exception as error:
            if not is_out_of_memory(error) or micro_batch == 1:
                raise
        micro_batch //= 2  # here, where the error no longer holds the tensors of the step that failed


def official_steps(shape: Shape, here: Here, global_batch: int, manner: Manner) -> Figures:
    with peak_of(here.device) as peak:
        run = official_run(shape, here, global_batch, manner)
        rate = global_batch / seconds_of(lambda _: run(), here)
    return {"images/s": rate, "GiB": peak.gib, "micro-batch": manner.micro_batch}


def said_gib(shape: Shape, here: Here) -> float:
    """What `placement.memory_gib` says of a trial of one worker, at the largest micro-batch for this card."""
    return alone_gib(load_of(shape.at(here)), batches(shape, here)[0])


def memory(shape: Shape, here: Here) -> Figures:
    """What a trial with an EMA takes, in steps and in scoring a shard at a rung; what `placement.memory_gib` says."""
    with trial(shape, here, "train.ema_decay=0.99") as loop:
        with peak_of(here.device) as training:
            for number in range(WARM):
                train_step(loop, number)
        with peak_of(here.device) as scoring:
            score_rung(loop, WARM, 8 if here.dry else SHARD, lambda: None)
    said, most = said_gib(shape, here), max(training.gib, scoring.gib)
    return {"training GiB": training.gib, "scoring GiB": scoring.gib, "all GiB": most, "said GiB": said}


def checkpoint(shape: Shape, here: Here) -> Figures:
    """Seconds to write one of a trial, and to take it up again; what it takes on the disk."""
    with trial(shape, here) as loop:
        train_step(loop, 0)
        path, settings = loop.job.folder / "checkpoint.pt", settings_of(loop)
        started = time.perf_counter()
        with Writer() as writer:
            save_checkpoint(path, loop.model, loop.ema, loop.optimizer, Progress(1), settings, loop.group, writer)
            writer.wait()
        saved = time.perf_counter()
        resume(path, loop.model, loop.ema, loop.optimizer, settings, loop.objective.logged)
        synchronised(here.device)
        resumed = time.perf_counter()
        return {"s to save": saved - started, "s to resume": resumed - saved, "GiB": path.stat().st_size / GIB}
