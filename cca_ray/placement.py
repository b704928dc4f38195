"""Where a trial runs: workers, micro-batch, accumulation, device, precision.

The global batch is fixed by the study; placement only decides how it is cut.
"""

from contextlib import AbstractContextManager, nullcontext

import torch

from cca_ray.config import Placement


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


def accumulation(placement: Placement, global_batch: int) -> int:
    """Forward passes a step and worker."""
    return global_batch // (placement.workers * micro_batch_size(placement, global_batch))


def smaller_micro_batch(placement: Placement, global_batch: int) -> int | None:
    """The largest micro-batch of at most half the present one that cuts a worker's share evenly; None below one."""
    share, half = global_batch // placement.workers, micro_batch_size(placement, global_batch) // 2
    return next((size for size in range(half, 0, -1) if share % size == 0), None)


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU or on a CPU, where PyTorch has no kind of its own for it."""
    signs = ("can't allocate memory", "not enough memory", "CUBLAS_STATUS_ALLOC_FAILED", "bad_alloc")
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def worker_resources(placement: Placement) -> dict[str, float]:
    """What Ray sets aside for one worker."""
    resources: dict[str, float] = {"CPU": placement.cpus}
    if placement.gpus:
        resources["GPU"] = placement.gpus
    return resources


def local_device() -> torch.device:
    """The GPU that Ray gave to this process (it hides the others), or the CPU."""
    return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def precision(placement: Placement, device: torch.device) -> torch.dtype:
    """What training and sampling compute in. `auto`: bfloat16 on GPUs that have it."""
    wanted = placement.precision == "bfloat16" or (
        placement.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.bfloat16 if wanted else torch.float32


def autocast(placement: Placement, device: torch.device) -> AbstractContextManager[None]:
    """For training: the weights stay in float32."""
    half = precision(placement, device) == torch.bfloat16
    return torch.autocast(device.type, torch.bfloat16) if half else nullcontext()
