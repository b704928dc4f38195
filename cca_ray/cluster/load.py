"""What a worker's machine is doing, under the names that MLflow gives to system metrics."""

from contextlib import suppress

import psutil
import torch


def load_here(device: torch.device, rank: int) -> dict[str, float]:
    """CPU and memory of the machine, from the first worker; of a GPU its own memory, use and power, numbered by rank.

    CPU is the mean since the last call. What a card does not tell is left out.
    """
    load: dict[str, float] = {}
    if rank == 0:
        memory = psutil.virtual_memory()
        load["cpu_utilization_percentage"] = psutil.cpu_percent()
        load["system_memory_usage_megabytes"] = memory.used / 1e6
        load["system_memory_usage_percentage"] = memory.percent
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        load[f"gpu_{rank}_memory_usage_megabytes"] = (total - free) / 1e6
        load[f"gpu_{rank}_memory_usage_percentage"] = 100 * (total - free) / total
        with suppress(Exception):  # NVML's many kinds: it is not here, or the card does not have these figures
            load[f"gpu_{rank}_utilization_percentage"] = torch.cuda.utilization(device)
            load[f"gpu_{rank}_power_usage_watts"] = torch.cuda.power_draw(device) / 1000
    return load
