"""Two workers in bfloat16: FSDP gathers weights as autocast would round them, so that it changes no loss."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from cca_ray.cluster.placement import autocast
from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.official import build, build_tokenizer
from cca_ray.models.parallel import Group, Passes, distribute, whole
from cca_ray.placement_config import Placement

CPU = torch.device("cpu")
FAMILIES = ("llamagen", "var", "rar")
WAYS = {
    "ddp": Placement(precision="bfloat16"),
    "fsdp": Placement(precision="bfloat16", strategy="fsdp"),
    "recomputed": Placement(precision="bfloat16", strategy="fsdp", activation_checkpointing=True),
}


def small_model(family: str) -> Model:
    """With no zeros or ones, of which rounding would not show."""
    torch.manual_seed(0)
    if family == "llamagen":
        model = build("llamagen", "S", num_classes=10, vocab_size=32, block_size=14**2, n_layer=2)
    elif family == "rar":
        model = build("rar", "S", num_classes=10, vocab_size=32, block_size=14**2)
    else:
        scales = dict(vocab_size=32, patch_nums=(1, 2, 3))
        small = dict(z_channels=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
        model = build("var", "M", build_tokenizer("var", **scales, **small), num_classes=10, code_dim=8, **scales)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model


def kinds_in_use(model: Model, found: dict[str, torch.dtype]) -> None:
    """Fill in, at every forward pass, the precision in which each part has its weights then."""

    def look(module: nn.Module, name: str) -> None:
        found.update({f"{name}.{key}": p.dtype for key, p in module.named_parameters(recurse=False)})

    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda module, _, name=name: look(module, name))


def accumulated(rank: int, model: Model, placement: Placement) -> dict[str, Any]:
    """Losses and gradients of two micro-batches, and in which precision weights were used."""
    kinds, losses, length = dict[str, torch.dtype](), [], model.config.block_size
    scorer = distribute(model, placement, Group(rank, 2, CPU), Passes(4, 0.1))
    kinds_in_use(model, kinds)
    for micro in range(2):
        keys = dropout_keys(np.arange(4 * rank, 4 * rank + 4), micro)
        tokens = torch.randint(32, (4, length), generator=torch.Generator().manual_seed(2 * rank + micro))
        with autocast(placement, CPU):
            logps = scorer(torch.arange(4), tokens, Dropout(0.1, keys))
        logps.sum().backward()
        losses.append(logps.detach())
    gradients = {name: whole(p.grad) for name, p in model.named_parameters() if p.grad is not None}
    return {"losses": torch.cat(losses), "gradients": list(gradients.values()), "kinds": kinds}


def work(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder / 'group'}", rank=rank, world_size=2)
    found = {
        (f, way): accumulated(rank, small_model(f), placement) for f in FAMILIES for way, placement in WAYS.items()
    }
    if rank == 0:
        torch.save(found, folder / "found.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.multiprocessing.spawn(work, (folder,), nprocs=2)
    return dict(torch.load(folder / "found.pt"))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", ["fsdp", "recomputed"])
def test_what_fsdp_gathers_in_bfloat16_changes_no_loss(found, way: str, family: str):
    ddp, fsdp = found[family, "ddp"], found[family, way]
    assert torch.equal(fsdp["losses"], ddp["losses"])
    assert len(fsdp["gradients"]) == len(ddp["gradients"]) > 10
    for ours, theirs in zip(fsdp["gradients"], ddp["gradients"], strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.01 * float(theirs.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_only_matrices_and_their_biases_are_gathered_in_bfloat16(found, family: str):
    kinds = found[family, "fsdp"]["kinds"]
    matrices = ("wqkv.weight", "wo.weight", "w1.weight", "w2.weight", "w3.weight")
    matrices += ("fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias")
    matrices += ("blocks.0.ada_lin.1.weight", "blocks.0.adaLN_modulation.1.weight")
    adaptive = tuple(f"{name}.1.{what}" for name in ("ada_lin", "adaLN_modulation") for what in ("weight", "bias"))
    half = {name for name, kind in kinds.items() if kind == torch.bfloat16}
    assert half >= {name for name in kinds if name.endswith(matrices)}
    assert all(name.endswith((*matrices, *adaptive)) for name in half)
    assert len(half) >= 2 * 5
    assert set(found[family, "ddp"]["kinds"].values()) == {torch.float32}
