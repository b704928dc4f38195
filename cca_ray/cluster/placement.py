"""Where a trial may run: workers, micro-batch, device, precision; what fits a card.

The global batch is fixed by the study; placement only decides how it is cut.
"""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch

from cca_ray.errors import Stuck
from cca_ray.placement_config import CPU, Accelerator, Placement, Strategy

GIB = 2**30
TYPE = "ray.io/accelerator-type"  # the node label by which Ray names a card


@dataclass(frozen=True)
class Card:
    """A type of GPU. `tflops`: dense bfloat16, as its maker states them.

    `link_gb_s`: what each of eight takes in from the others. A40s are four to a node, on 25 Gbit/s Ethernet; L40S eight
    to a node, on PCIe; A100s and H100s have NVLink.
    """

    memory_gib: float
    tflops: float
    link_gb_s: float
    bandwidth_tb_s: float  # of its memory, by its maker's data sheet


# By the names of Ray's label. AWS has no A40; its 48 GB class is the L40S. A100: the smaller of its two kinds.
CARDS = {
    "A40": Card(48, 150, 3.1, 0.70),
    "L40S": Card(48, 362, 12, 0.86),
    "A100": Card(40, 312, 300, 1.56),
    "H100": Card(80, 989, 450, 3.35),
}


@dataclass(frozen=True)
class Load:
    """What decides how much memory a trial needs: the model's size, the length of its sequences, what a layer keeps."""

    parameters: int
    layers: int
    width: int
    tokens: int
    activation_bytes: float = field(default=57, kw_only=True)  # a channel, layer and token: see `Family.kept_bytes`


def memory_gib(load: Load, workers: int, micro_batch: int, strategy: Strategy, recompute: bool) -> float:
    """GiB that a worker needs at most: training in bfloat16 autocast with AdamW and an EMA, or scoring at a rung.

    - always: weights 4, gradients 4, AdamW's two moments 8 and the EMA 4 bytes a parameter, parted over the workers by
      FSDP
    - training: the bfloat16 copies that autocast keeps until the backward pass, 2 bytes a parameter (of one layer with
      recomputation), and with FSDP two layers in float32; activations, so many bytes a channel, layer and token as the
      family says (`Family.kept_bytes`: 57 to 59 of LlamaGen, 57 of VAR, 83 to 85 of RAR), a tenth with recomputation: a
      pair is two sequences; logits, a chunk of 2²⁶ numbers in float32 with its gradient, and in bfloat16
    - scoring: the EMA whole in bfloat16, and first, while it is gathered, in float32, then keys and values,
      16 GiB (`sampler.CACHE_BYTES`), and beside or after them at most 4 GiB: a step, drawing its tokens, decoding
      images, Inception (each counted on `meta` by tests/evaluation/test_memory.py)
    """
    parted, n = strategy == "fsdp", load.parameters
    always = 20 * n / (workers if parted else 1)
    copies = 2 * n / (load.layers if recompute else 1) + (8 * n / load.layers if parted else 0)
    activations = (
        load.activation_bytes * load.width * load.layers * 2 * load.tokens * micro_batch * (0.1 if recompute else 1)
    )
    training = copies + activations + 2**26 * 10
    scoring = 2 * n + max(4 * n, 20 * GIB)
    return (always + max(training, scoring)) / GIB


USABLE = 0.9  # of a card's memory: the rest is CUDA's, NCCL's and the allocator's
MOST_WORKERS = 8  # of a trial: the cards of one node, which talk to each other faster than nodes do
EPOCH_HOURS = 8.0  # a trial takes as many workers as bring an epoch of ImageNet below this
UTILISATION = 0.35  # share of a card's arithmetic; an assumption, for eager training reaches less: docs/scale.md
IMAGES = 1_281_167  # of ImageNet
LARGE = 10**9  # parameters
LEAST_LINK = 10.0  # GB/s, for large models: PCIe has it, 25 Gbit/s Ethernet has not
MOST_EXCHANGE = 1.5  # of a parted model, against its arithmetic: about what training hides, and more is dear


def epoch_hours(load: Load, card: Card, workers: int) -> float:
    """6 operations a parameter and token, two sequences an image; the reference's table costs none."""
    return 12 * load.parameters * load.tokens * IMAGES / (workers * card.tflops * 1e12 * UTILISATION) / 3600


def exchange_seconds(load: Load, card: Card, workers: int) -> float:
    """Until a worker has taken in once what it needs of the others: 8 bytes a parameter.

    Of a parted model these are the weights, twice in bfloat16, and gradients in float32, at every micro-batch; of whole
    models the gradients, there and back, at every step.
    """
    return 8 * load.parameters * (1 - 1 / workers) / (card.link_gb_s * 1e9)


def waits(load: Load, card: Card, workers: int, micro_batch: int) -> bool:
    """Whether a worker waits too long for the parts of a model that it does not hold."""
    arithmetic = epoch_hours(load, card, 1) * 3600 * micro_batch / IMAGES
    return exchange_seconds(load, card, workers) > MOST_EXCHANGE * arithmetic


def way_on(type_: str, load: Load, global_batch: int) -> Accelerator | None:
    """The fewest workers with an epoch below `EPOCH_HOURS` and the largest micro-batch that fits; None if none does.

    A whole model a worker if that leaves room for four pairs, else parted, unless the cards then wait for each other;
    recomputation only where nothing else fits.
    """
    card, counts = CARDS[type_], [2**i for i in range(4) if 2**i <= MOST_WORKERS]
    fast = [n for n in counts if epoch_hours(load, card, n) <= EPOCH_HOURS] or counts[-1:]
    for workers in counts[counts.index(fast[0]) :]:
        sizes = [2**i for i in range(9, -1, -1) if global_batch // workers % 2**i == 0]
        ways: list[tuple[Strategy, bool, int]] = [("ddp", False, 4)]
        if workers > 1:
            ways += [("fsdp", False, 4), ("fsdp", True, 1)]
        for strategy, recompute, least in ways:
            needs = {size: memory_gib(load, workers, size, strategy, recompute) for size in sizes if size >= least}
            fits = [size for size, gib in needs.items() if gib <= USABLE * card.memory_gib]
            if fits and strategy == "fsdp" and waits(load, card, workers, fits[0]):
                break
            if fits:
                way = {"type": type_, "workers": workers, "micro_batch": fits[0], "strategy": strategy}
                return Accelerator.model_validate(way | ({"activation_checkpointing": True} if recompute else {}))
    return None


def ways_by_arithmetic(load: Load, global_batch: int) -> tuple[Accelerator, ...]:
    """The default table of a model: small ones prefer small cards and leave the large cards to large models.

    These are given no card whose nodes are joined by Ethernet alone: also where each of eight holds a whole model they
    would wait for its gradients, d24 on A40s for 30 % of the time, at twice the price of H100s (docs/scale.md).
    """
    order = list(CARDS)
    if load.parameters >= LARGE:
        order = [type_ for type_ in reversed(CARDS) if CARDS[type_].link_gb_s >= LEAST_LINK]
    return tuple(way for type_ in order if (way := way_on(type_, load, global_batch)) is not None)


def ways(placement: Placement) -> tuple[Placement, ...]:
    """How a trial may be placed, in order of preference: each a placement with one of the accelerators, or none."""
    return tuple(placed(placement, number) for number in range(len(placement.accelerators))) or (placement,)


def placed(placement: Placement, number: int) -> Placement:
    """The placement on this one of its accelerators."""
    way = placement.accelerators[number]
    given = {key: value for key, value in way.model_dump(exclude={"type"}).items() if value is not None}
    gpus = 0.0 if way.type == CPU else placement.gpus or 1.0
    return placement.model_copy(update={"gpus": gpus, **given, "accelerators": (way,)})


def accelerator_of(placement: Placement) -> str:
    """The type of card of a placement that is one way; empty where any will do."""
    return placement.accelerators[0].type if placement.accelerators else ""


def devices(placement: Placement) -> float:
    """What a trial holds, placed so: GPUs, or CPUs if it has none."""
    return placement.workers * (placement.gpus or placement.cpus)


def on_cards(placement: Placement) -> bool:
    """Whether workers hold GPUs."""
    return any(way.gpus > 0 for way in ways(placement))


def in_this_process(placement: Placement) -> bool:
    """Whether a trial needs no worker group: one worker, wherever there is room."""
    return placement.workers == 1 and not placement.accelerators


def check_cuts(placement: Placement, global_batch: int) -> None:
    """ValueError if there is a way in which the global batch cannot be cut evenly."""
    for way in ways(placement):
        micro_batch_size(way, global_batch)


def micro_batch_size(placement: Placement, global_batch: int) -> int:
    """Pairs a forward pass and worker. ValueError if the global batch cannot be cut evenly."""
    if global_batch % placement.workers:
        raise ValueError(f"global_batch {global_batch} is not a multiple of placement.workers ({placement.workers})")
    share = global_batch // placement.workers
    micro_batch = placement.micro_batch or share
    if share % micro_batch:
        raise ValueError(
            f"global_batch {global_batch} over {placement.workers} worker(s) is {share} each, "
            f"not a multiple of placement.micro_batch ({micro_batch})"
        )
    return micro_batch


def even_cut(share: int, most: int) -> int:
    """The largest size, of at most `most`, that cuts a worker's share evenly; 0 if there is none."""
    return next((size for size in range(most, 0, -1) if share % size == 0), 0)


def smaller_micro_batch(placement: Placement, global_batch: int) -> int | None:
    """The largest micro-batch of at most half the present one that cuts a worker's share evenly; None below one."""
    share, half = global_batch // placement.workers, micro_batch_size(placement, global_batch) // 2
    return even_cut(share, half) or None


def worker_resources(placement: Placement) -> dict[str, float]:
    """What Ray sets aside for one worker."""
    resources: dict[str, float] = {"CPU": placement.cpus}
    if placement.gpus:
        resources["GPU"] = placement.gpus
    return resources


def precision_of(placement: Placement) -> Literal["float32", "bfloat16"]:
    """What training and sampling compute in, as the placement alone says: the driver, which has no GPU, must know too.

    `auto`: bfloat16 where workers hold GPUs.
    """
    if placement.precision == "auto":
        return "bfloat16" if on_cards(placement) else "float32"
    return placement.precision


def precision(placement: Placement, device: torch.device) -> torch.dtype:
    """The same, to compute with on this device. Stuck if it is a card that PyTorch says bfloat16 of, but emulates it:

    a study's results must not depend on the card, so no trial may take another precision for itself.
    """
    half = precision_of(placement) == "bfloat16"
    if (
        half
        and placement.precision == "auto"
        and device.type == "cuda"
        and not torch.cuda.is_bf16_supported(including_emulation=False)
    ):
        raise Stuck(
            f"{torch.cuda.get_device_name(device)} has no bfloat16, in which placement.precision auto computes on "
            "GPUs; say --set placement.precision=float32"
        )
    return torch.bfloat16 if half else torch.float32


def autocast(placement: Placement, device: torch.device) -> AbstractContextManager[None]:
    """For training: the weights stay in float32."""
    half = precision(placement, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
