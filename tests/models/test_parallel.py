"""A model as it is laid out to be trained."""

import logging
import shutil

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cca_ray.models import parallel
from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.official import build, build_tokenizer
from cca_ray.models.parallel import Group, Passes, can_compile, distribute
from cca_ray.placement_config import Placement

CPU = torch.device("cpu")
COMPILED, DROPPING = Placement(compile=True), Passes(4, 0.1)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    torch.manual_seed(0)
    monkeypatch.setattr(parallel, "COMPILES", {})
    torch.compiler.reset()
    return build("llamagen", "S", num_classes=10, vocab_size=32, block_size=16, n_layer=3)


def logps(model: Model, placement: Placement) -> Tensor:
    scorer = distribute(model, placement, Group(device=CPU), DROPPING)
    tokens = torch.randint(32, (4, 16), generator=torch.Generator().manual_seed(0))
    return scorer(torch.arange(4), tokens, Dropout(0.1, dropout_keys(np.arange(4), 0)))


def test_blocks_that_cannot_be_compiled_are_left_as_they_are_with_a_warning(
    model: Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    """Of the real blocks: a toy compiles where they do not."""
    eager = logps(model, Placement())

    def refused(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> None:
        raise RuntimeError("no symbolic shapes\nand a long explanation")

    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda block: setattr(block, "_compiled_call_impl", torch.compile(block._call_impl, backend=refused)),
    )
    with caplog.at_level(logging.WARNING):
        found = logps(model, COMPILED)
    assert torch.equal(found, eager)
    assert caplog.text.count("placement.compile is off: torch.compile fails on the blocks of this model here") == 1
    assert not can_compile(model, COMPILED, CPU, DROPPING)
    assert len(caplog.records) == 1


def test_memory_that_runs_out_is_no_fault_of_the_compiler(model: Model, monkeypatch: pytest.MonkeyPatch):
    def little(block: nn.Module) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(nn.Module, "compile", little)
    with pytest.raises(torch.OutOfMemoryError):
        can_compile(model, COMPILED, CPU, DROPPING)
    assert not parallel.COMPILES


def test_a_trial_leaves_the_model_alone(model: Model, monkeypatch: pytest.MonkeyPatch):
    before, tried = {name: p.clone() for name, p in model.state_dict().items()}, list[nn.Module]()
    monkeypatch.setattr(nn.Module, "compile", lambda block: tried.append(block))
    assert can_compile(model, COMPILED, CPU, DROPPING)
    assert len(tried) == 2
    assert not set(map(id, tried)) & set(map(id, model.stack))
    assert len(model.stack) == 3
    assert all(torch.equal(p, before[name]) for name, p in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.nightly
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here: apt-get install g++")
def test_blocks_of_var_compile_with_dropout(model: Model):
    """Those of LlamaGen: tests/training/test_loop.py."""
    scales = dict(vocab_size=32, patch_nums=(1, 2, 3))
    small = dict(z_channels=8, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    tokenizer = build_tokenizer("var", **scales, **small)
    var = build("var", "M", tokenizer, num_classes=10, code_dim=8, **scales)
    assert can_compile(var, COMPILED, CPU, DROPPING)
