"""The device that this process computes on: what everything asks, so that no card is taken that was not given."""

import gc
import os
import re
from pathlib import Path

import ray
import torch

from cca_ray.cluster.placement import on_cards
from cca_ray.errors import Stuck
from cca_ray.placement_config import Placement

PRETENDED = "CCA_RAY_PRETENDED_GPUS"  # in the environment: the GPUs that Ray counts are no cards, as in rehearsals
DRIVER = Path("/proc/driver/nvidia/version")
# Training and sampling want blocks of other sizes: memory that grows in place is not left in pieces between them.
ALLOCATOR = "PYTORCH_ALLOC_CONF", "expandable_segments:True"
CUDA_ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"  # the older name, which wins


def local_device(placement: Placement | None = None) -> torch.device:
    """The first of the GPUs that Ray has assigned to this process; the CPU if it has none, whatever the machine has.

    Ray hides the other cards from a process that was assigned one, but none from a process that was not. Where there
    is no Ray, as for a verb that computes by itself, `placement` tells whether a card is wanted. Stuck, in one line,
    if PyTorch cannot use the card: what wants one must not train on the CPU for days.
    """
    wanted = has_gpu() if ray.is_initialized() else placement is not None and on_cards(placement)
    if not wanted or PRETENDED in os.environ:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise Stuck(no_card())
    if CUDA_ALLOCATOR not in os.environ:
        os.environ.setdefault(*ALLOCATOR)  # which PyTorch reads with its first tensor on a card
    return torch.device("cuda:0")


def has_gpu() -> bool:
    """Whether Ray has assigned a GPU, or a share of one, to this process: never to a driver."""
    return bool(ray.get_runtime_context().get_accelerator_ids().get("GPU"))


def no_card() -> str:
    """Why there is no card, as far as it can be known: an old driver, a PyTorch for CPUs, a container without one."""
    built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
    return (
        f"a GPU was requested, but PyTorch {torch.__version__} finds none: it is built {built}, and this machine has "
        f"{driver()}; install a driver or a PyTorch that fits, or use --set placement.gpus=0 "
        "--set placement.accelerators=[]"
    )


def driver() -> str:
    """NVIDIA's, in words, as its kernel module tells it."""
    found = re.search(r"\b\d+\.\d[\d.]*", DRIVER.read_text()) if DRIVER.exists() else None
    return f"NVIDIA driver {found[0]}" if found else "no NVIDIA driver"


class CardLost(RuntimeError):
    """An error after which this process can compute nothing more on its card: a new one can."""


def card_is_lost() -> bool:
    """Whether CUDA refuses all work from now on, as after a device assert or an illegal access."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def give_back(device: torch.device) -> None:
    """Of a card, what PyTorch keeps for later: in pieces of other sizes than what comes next wants."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def free_memory(device: torch.device) -> None:
    """Also what nothing uses any more, but Python has not noticed yet."""
    gc.collect()
    give_back(device)
