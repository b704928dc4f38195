from collections.abc import Callable

import pytest
import torch
from torch import nn

from cca_ray.models.likelihood import sequence_logps
from tests.conftest import largest_tensor


@pytest.fixture
def rows() -> tuple[torch.Tensor, nn.Linear, torch.Tensor]:
    """hidden [3, 5, 4], a head of 7 tokens, tokens [3, 5]."""
    torch.manual_seed(0)
    return torch.randn(3, 5, 4, requires_grad=True), nn.Linear(4, 7), torch.randint(7, (3, 5))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [10**6, 4 * 50])
@pytest.mark.parametrize("bias", [False, True])
def test_gradients_are_autograds_own(monkeypatch: pytest.MonkeyPatch, bias: bool, chunk: int, precision: torch.dtype):
    monkeypatch.setattr("cca_ray.models.likelihood.CACHED", 3 * 50)  # so that rows come in pieces, the last one short
    torch.manual_seed(0)
    hidden, tokens, weight = torch.randn(4, 5, 8), torch.randint(50, (4, 5)), torch.randn(4)
    head = nn.Linear(8, 50, bias=bias)

    def gradients(logps: Callable[[torch.Tensor], torch.Tensor]) -> list[torch.Tensor]:
        inputs = [hidden.clone().requires_grad_(), *head.parameters()]
        with torch.autocast("cpu", precision, enabled=precision != torch.float32):
            loss = (weight * logps(inputs[0])).sum()
        return [loss.detach(), *torch.autograd.grad(loss, inputs)]

    ours = gradients(lambda h: sequence_logps(h, head, tokens, chunk))
    theirs = gradients(lambda h: head(h).float().log_softmax(-1).gather(-1, tokens[..., None]).sum((1, 2)))
    close = {"rtol": 1e-5, "atol": 1e-5} if precision == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **close)


def test_sequence_logps_sums_over_tokens(rows):
    hidden, head, tokens = rows
    expected = head(hidden).log_softmax(-1).gather(2, tokens[..., None]).squeeze(-1).sum(1)
    torch.testing.assert_close(sequence_logps(hidden, head, tokens), expected)


def test_chunks_change_neither_the_log_likelihoods_nor_the_gradients(rows):
    hidden, head, tokens = rows
    inputs = [hidden, *head.parameters()]
    whole = sequence_logps(hidden, head, tokens)
    cut = sequence_logps(hidden, head, tokens, chunk=2 * 7)
    torch.testing.assert_close(cut, whole)
    for ours, theirs in zip(
        torch.autograd.grad(cut.square().sum(), inputs), torch.autograd.grad(whole.square().sum(), inputs), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_no_tensor_of_all_logits_is_kept_or_made():
    """Every tensor that the forward pass makes, or keeps for the backward one, is no larger than a chunk."""
    hidden, head, tokens = torch.randn(4, 8, 16, requires_grad=True), nn.Linear(16, 512), torch.randint(512, (4, 8))
    largest = largest_tensor(lambda: sequence_logps(hidden, head, tokens, chunk=4 * 512).sum().backward())
    assert largest <= 512 * 16  # the head's own weights
