import logging
import shutil

import numpy as np
import pytest
import torch

from cca_ray.models import dropout
from cca_ray.models.dropout import Dropout, OneKernel, dropout_keys, dropped, one_kernel

INDEX = np.arange(200)


def test_the_rate_and_the_mean_are_right():
    dropped = Dropout(0.3, dropout_keys(INDEX, 0))(torch.ones(200, 16, 32), site=1)
    assert abs((dropped == 0).double().mean() - 0.3) < 0.005
    assert abs(dropped.mean() - 1) < 0.01


def test_a_row_has_the_same_mask_in_any_batch():
    whole = Dropout(0.5, dropout_keys(INDEX, 7, 1))(torch.ones(200, 4, 8), site=3)
    part = Dropout(0.5, dropout_keys(INDEX[50:60], 7, 1))(torch.ones(10, 4, 8), site=3)
    assert torch.equal(part, whole[50:60])


def test_rows_sites_seeds_and_epochs_have_masks_of_their_own():
    """Two masks agree in half of their elements, as independent ones do."""
    ones = torch.ones(200, 16, 32)

    def kept(site: int, *numbers: int) -> torch.Tensor:
        return Dropout(0.5, dropout_keys(INDEX, *numbers))(ones, site) != 0

    first = kept(1, 0, 0)
    for other in (kept(2, 0, 0), kept(1, 1, 0), kept(1, 0, 1), first.roll(1, 0), first.roll(1, 1), first.roll(1, 2)):
        assert abs((first == other).double().mean() - 0.5) < 0.01


CPU = torch.device("cpu")


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler here: apt-get install g++")
@pytest.mark.timeout(600)  # most of it the C++ compiler's
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_one_compiled_kernel_gives_the_same_bits_there_and_back(kind: torch.dtype):
    """Inductor's for a CPU; that for a GPU is made from the same graph. Of several sizes, as of a last batch."""
    assert one_kernel(CPU)
    for rows in (5, 3):
        keys = dropout_keys(np.arange(rows), 3, 1)
        x = torch.randn(rows, 7, 24, dtype=kind)
        gradient, made = torch.randn_like(x), []
        for drop in (OneKernel.apply, dropped):
            given = x.clone().requires_grad_()
            out = drop(given, keys, 0.1)
            out.backward(gradient)
            made.append((out.detach(), given.grad))
        (ours, our_gradient), (theirs, their_gradient) = made
        assert 0.02 < (ours == 0).double().mean() < 0.3
        assert ours.dtype == our_gradient.dtype == kind
        assert torch.equal(ours, theirs)
        assert torch.equal(our_gradient, their_gradient)


def test_where_nothing_compiles_it_is_eager_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def broken() -> dropout.Kernel:
        raise RuntimeError("no Triton\nand a long explanation")

    one_kernel.cache_clear()
    monkeypatch.setattr(dropout, "compiled", broken)
    with caplog.at_level(logging.WARNING):
        assert not one_kernel(CPU)
        assert not one_kernel(CPU)
    one_kernel.cache_clear()
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["RuntimeError: no Triton"]


def test_a_kernel_with_another_mask_is_not_taken(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    one_kernel.cache_clear()
    monkeypatch.setattr(dropout, "compiled", lambda: lambda x, rows, rate: dropped(x, rows + 1, rate))
    with caplog.at_level(logging.WARNING):
        assert not one_kernel(CPU)
    one_kernel.cache_clear()
    assert "keeps other elements" in caplog.text


@pytest.mark.gpu
def test_on_a_card_it_is_one_kernel_that_keeps_what_the_cpu_keeps():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here")
    device, keys = torch.device("cuda:0"), dropout_keys(np.arange(9), 0)
    x = torch.randn(9, 5, 48)
    assert one_kernel(device)
    there = Dropout(0.1, keys.to(device))(x.to(device), 2).cpu()
    here = Dropout(0.1, keys)(x, 2)
    assert torch.equal(there != 0, here != 0)
    torch.testing.assert_close(there, here)
