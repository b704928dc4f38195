import pytest
import torch

from cca_ray.config import Placement
from cca_ray.placement import accumulation, autocast, micro_batch_size, worker_resources


@pytest.mark.parametrize(
    ("workers", "micro_batch", "size", "steps"), [(1, None, 24, 1), (1, 8, 8, 3), (2, None, 12, 1), (2, 4, 4, 3)]
)
def test_the_global_batch_is_cut_evenly(workers: int, micro_batch: int | None, size: int, steps: int):
    placement = Placement(workers=workers, micro_batch=micro_batch)
    assert micro_batch_size(placement, 24) == size
    assert accumulation(placement, 24) == steps


@pytest.mark.parametrize(("workers", "micro_batch"), [(5, None), (1, 7), (2, 24)])
def test_an_uneven_cut_is_refused(workers: int, micro_batch: int | None):
    with pytest.raises(ValueError, match="global_batch 24"):
        micro_batch_size(Placement(workers=workers, micro_batch=micro_batch), 24)


def test_resources_name_a_gpu_only_if_there_is_one():
    assert worker_resources(Placement(cpus=2)) == {"CPU": 2}
    assert worker_resources(Placement(gpus=1)) == {"CPU": 1, "GPU": 1}


@pytest.mark.parametrize(("precision", "dtype"), [("auto", torch.float32), ("bfloat16", torch.bfloat16)])
def test_bfloat16_on_a_cpu_only_if_asked_for(precision: str, dtype: torch.dtype):
    x = torch.ones(2, 2)
    with autocast(Placement.model_validate({"precision": precision}), torch.device("cpu")):
        assert (x @ x).dtype == dtype
