"""Which device a process computes on. No card is needed: Ray is told of some, PyTorch is made to say what is wanted."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cca_ray.cluster import device, placement
from cca_ray.cluster.device import ALLOCATOR, CUDA_ALLOCATOR, PRETENDED, local_device
from cca_ray.cluster.placement import autocast, precision, precision_of
from cca_ray.errors import Stuck
from cca_ray.models.parallel import Group
from cca_ray.placement_config import Accelerator, Placement

CPU, CARD = torch.device("cpu"), torch.device("cuda:0")
ON_CARDS = (Placement(gpus=1), Placement(accelerators=(Accelerator(type="A40"),)))


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Outside of Ray, on a machine with a card."""
    monkeypatch.delenv(PRETENDED)
    for name in (CUDA_ALLOCATOR, ALLOCATOR[0]):
        monkeypatch.setenv(name, "")  # so that what it was comes back afterwards
        monkeypatch.delenv(name)
    monkeypatch.setattr(device.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    return monkeypatch


def give(machine: pytest.MonkeyPatch, *ids: str) -> None:
    """In a process to which Ray has assigned these cards."""
    machine.setattr(device.ray, "is_initialized", lambda: True)
    context = SimpleNamespace(get_accelerator_ids=lambda: {"GPU": list(ids), "TPU": []})
    machine.setattr(device.ray, "get_runtime_context", lambda: context)


def test_no_card_is_taken_that_nobody_gave(machine: pytest.MonkeyPatch):
    assert Group().device == local_device() == local_device(Placement()) == CPU
    assert [local_device(wanted) for wanted in ON_CARDS] == [CARD, CARD]
    give(machine)
    assert [local_device(wanted) for wanted in (None, Placement(), *ON_CARDS)] == [CPU] * 4
    give(machine, "3")
    assert [local_device(wanted) for wanted in (None, Placement())] == [CARD] * 2
    machine.setenv(PRETENDED, "1")
    assert local_device() == CPU


def test_memory_of_a_card_grows_in_place_unless_its_user_says_otherwise(machine: pytest.MonkeyPatch):
    local_device()
    assert ALLOCATOR[0] not in os.environ
    machine.setenv(CUDA_ALLOCATOR, "backend:cudaMallocAsync")
    local_device(Placement(gpus=1))
    assert ALLOCATOR[0] not in os.environ
    machine.delenv(CUDA_ALLOCATOR)
    local_device(Placement(gpus=1))
    assert os.environ[ALLOCATOR[0]] == "expandable_segments:True"


def test_pytorch_reads_how_it_allocates_when_it_first_does():
    """Else `local_device` says it too late."""
    command = (
        "import os, torch; torch.zeros(3); os.environ['{}'] = '{}'; print(torch._C._accelerator_getAllocatorSettings())"
    )
    found = subprocess.run(
        [sys.executable, "-c", command.format(*ALLOCATOR)], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ALLOCATOR[1]


@pytest.mark.parametrize("assigned", [True, False])
def test_a_card_that_pytorch_cannot_use_is_told_in_a_line(machine: pytest.MonkeyPatch, tmp_path: Path, assigned: bool):
    version = tmp_path / "version"
    machine.setattr(torch.cuda, "is_available", lambda: False)
    machine.setattr(torch.version, "cuda", "13.0")
    machine.setattr(device, "DRIVER", version)
    if assigned:
        give(machine, "0")
    with pytest.raises(Stuck, match=r"built for CUDA 13\.0, and this machine has no NVIDIA driver; .*gpus=0"):
        local_device(Placement(gpus=1))
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.57.02  Tue Jul 13 16:14:05 UTC 2021\n")
    with pytest.raises(Stuck, match=r"NVIDIA driver 470\.57\.02; ") as error:
        local_device(Placement(gpus=0.5))
    assert "\n" not in str(error.value)


def test_the_precision_is_the_placements_whatever_this_process_has():
    assert [precision_of(wanted) for wanted in (Placement(), *ON_CARDS)] == ["float32", "bfloat16", "bfloat16"]
    assert precision_of(Placement(gpus=1, precision="float32")) == "float32"
    assert precision(Placement(gpus=1), CPU) == torch.bfloat16
    with autocast(Placement(gpus=1), CPU):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_a_card_that_only_emulates_bfloat16_is_refused_unless_it_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(placement.torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    monkeypatch.setattr(placement.torch.cuda, "get_device_name", lambda device: "Tesla T4")
    with pytest.raises(Stuck, match=r"Tesla T4 has no bfloat16, .*placement\.precision=float32"):
        precision(Placement(gpus=1), CARD)
    assert precision(Placement(gpus=1, precision="bfloat16"), CARD) == torch.bfloat16
    assert precision(Placement(gpus=1, precision="float32"), CARD) == torch.float32


SCRIPT = """
import json, os, ray, torch
from cca_ray.cluster.device import has_gpu, local_device
from cca_ray.cluster.queue import as_worker
from cca_ray.errors import Stuck
from cca_ray.placement_config import Placement

def seen(kind):
    torch.cuda.is_available = lambda: kind == "card"
    try:
        return os.getpid(), str(local_device())
    except Stuck as error:
        return os.getpid(), str(error).split(":")[0]

ray.init(num_cpus=1, num_gpus=1, include_dashboard=False, log_to_driver=False)
found = {"driver": has_gpu()}
for name, gpus, kind in (("cpu", 0, "card"), ("gpu", 1, "card"), ("share", 0.5, "none")):
    task = as_worker(seen, Placement(gpus=gpus))
    found[name] = [ray.get(task.remote(kind)) for _ in range(2)]
print(json.dumps(found))
"""


def test_a_task_holds_a_card_and_its_process_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Ray's own word on what is assigned, on one card that it is told of."""
    monkeypatch.delenv(PRETENDED)
    (tmp_path / "script.py").write_text(SCRIPT)
    command = [sys.executable, str(tmp_path / "script.py")]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])
    assert found["driver"] is False
    assert [where for _, where in found["cpu"]] == ["cpu"] * 2
    assert len({pid for pid, _ in found["cpu"]}) == 1
    assert [where for _, where in found["gpu"]] == ["cuda:0"] * 2
    assert len({pid for pid, _ in found["gpu"]}) == 2
    assert all(where.startswith("a GPU was requested") for _, where in found["share"])
