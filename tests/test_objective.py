import numpy as np
import pytest
import torch

from cca_ray.objective import (
    cca_loss,
    counts_as_positive,
    dpo_loss,
    finetune_loss,
    pair_loss,
    sequence_logps,
    unlearning_loss,
)
from tests.conftest import golden

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


def test_sequence_logps_sums_over_tokens():
    logits, tokens = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    expected = logits.log_softmax(-1).gather(2, tokens[..., None]).squeeze(-1).sum(1)
    torch.testing.assert_close(sequence_logps(logits, tokens), expected)


def test_finetune_loss_is_the_next_token_loss():
    logits, tokens = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    torch.testing.assert_close(finetune_loss(sequence_logps(logits, tokens), 5).mean(), expected)


def test_finetuning_has_no_pair_loss():
    with pytest.raises(ValueError, match="finetune"):
        pair_loss("finetune", *gaps(), positive(), 0.1, 1.0)
