from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from cca_ray.models.likelihood import sequence_logps
from cca_ray.training.objectives import (
    cca_loss,
    counts_as_positive,
    dpo_loss,
    finetune_loss,
    pair_loss,
    unlearning_loss,
)
from tests.conftest import golden, largest_tensor

OBJECTIVES = golden("objectives.npz")
CCA = [key for key in OBJECTIVES if key.startswith("cca_") and not key.endswith(("gpos", "gneg"))]
UNLEARNING = [key for key in OBJECTIVES if key.startswith("unlearning_")]
DPO = [key for key in OBJECTIVES if key.startswith("dpo_")]
SIMPLE = [key for key in OBJECTIVES if key.startswith("ccasimple_")]


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(OBJECTIVES[name])


def settings(key: str) -> list[float]:
    return [float(part[1:]) for part in key.split("_")[1:]]


def positive() -> torch.Tensor:
    return counts_as_positive(tensor("labels"), tensor("negative_labels"), tensor("uncond_mask"))


def gaps() -> tuple[torch.Tensor, torch.Tensor]:
    return tensor("policy_pos") - tensor("ref_pos"), tensor("policy_neg") - tensor("ref_neg")


@pytest.mark.parametrize("key", CCA)
def test_cca_and_its_gradients_are_the_official_ones(key: str):
    beta, lambda_ = settings(key)
    policy_pos, policy_neg = tensor("policy_pos").requires_grad_(), tensor("policy_neg").requires_grad_()
    gap, negative_gap = policy_pos - tensor("ref_pos"), policy_neg - tensor("ref_neg")
    loss = cca_loss(gap, negative_gap, positive(), beta, lambda_).mean()
    loss.backward()
    np.testing.assert_allclose(loss.detach(), OBJECTIVES[key], rtol=1e-5)
    np.testing.assert_allclose(policy_pos.grad, OBJECTIVES[f"{key}_gpos"], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(policy_neg.grad, OBJECTIVES[f"{key}_gneg"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("key", UNLEARNING)
def test_unlearning_is_the_official_one(key: str):
    _, lambda_ = settings(key)
    np.testing.assert_allclose(unlearning_loss(*gaps(), positive(), lambda_).mean(), OBJECTIVES[key], rtol=1e-5)


@pytest.mark.parametrize("key", DPO)
def test_dpo_is_the_official_one(key: str):
    (beta,) = settings(key)
    np.testing.assert_allclose(dpo_loss(*gaps(), beta).mean(), OBJECTIVES[key], rtol=1e-5)


@pytest.mark.parametrize("key", SIMPLE)
def test_cca_without_positives_is_the_simple_form_up_to_its_scale(key: str):
    beta, lambda_ = settings(key)
    nowhere = torch.zeros(12, dtype=torch.bool)
    np.testing.assert_allclose(cca_loss(*gaps(), nowhere, beta, lambda_).mean() * lambda_, OBJECTIVES[key], rtol=1e-5)


def test_a_batch_cut_in_two_has_the_same_loss():
    gap, negative_gap = gaps()
    whole = pair_loss("cca", gap, negative_gap, positive(), 0.1, 3.0).mean()
    halves = [pair_loss("cca", gap[s], negative_gap[s], positive()[s], 0.1, 3.0) for s in (slice(5), slice(5, 12))]
    torch.testing.assert_close(sum(half.sum() for half in halves) / 12, whole)


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


def test_finetune_loss_is_the_next_token_loss(rows):
    hidden, head, tokens = rows
    expected = nn.functional.cross_entropy(head(hidden).flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(finetune_loss(sequence_logps(hidden, head, tokens), 5).mean(), expected)
