"""The losses of Condition Contrastive Alignment and of what it is compared with, as pure functions.

Losses are returned per pair [B]; the loss of a step is their mean over the *global* batch, which the training loop
takes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Objective = Literal["cca", "dpo", "unlearning", "finetune"]


def counts_as_positive(labels: Tensor, negative_labels: Tensor, null_mask: Tensor) -> Tensor:
    """Pairs whose second term is a positive of weight 1: null-masked, or of equal labels (official code)."""
    return null_mask | (labels == negative_labels)


def cca_loss(gap: Tensor, negative_gap: Tensor, positive: Tensor, beta: float, lambda_: float) -> Tensor:
    """CCA, eq. 12 of arXiv 2410.09347, with the official treatment of null-masked pairs.

    gap, negative_gap [B]: log p - log p_ref under the true and under the negative condition.
    positive [B] bool: see `counts_as_positive`. Divided by max(lambda, 1), as the official code does.
    """
    sign = torch.where(positive, 1.0, -1.0)
    weight = torch.where(positive, 1.0, lambda_)
    loss = -F.logsigmoid(beta * gap) - weight * F.logsigmoid(sign * beta * negative_gap)
    return loss / max(lambda_, 1.0)


def unlearning_loss(gap: Tensor, negative_gap: Tensor, positive: Tensor, lambda_: float) -> Tensor:
    """Raise the likelihood of true pairs, lower that of negative ones, without a sigmoid (the paper's ablation)."""
    sign = torch.where(positive, 1.0, -1.0)
    weight = torch.where(positive, 1.0, lambda_)
    return (-gap - weight * sign * negative_gap) / max(lambda_, 1.0)


def dpo_loss(gap: Tensor, negative_gap: Tensor, beta: float) -> Tensor:
    """Direct preference optimisation between the true and the negative condition (the paper's ablation)."""
    return -F.logsigmoid(beta * (gap - negative_gap))


def pair_loss(
    objective: Objective, gap: Tensor, negative_gap: Tensor, positive: Tensor, beta: float, lambda_: float
) -> Tensor:
    """Loss per pair [B] of any objective that needs pairs."""
    if objective == "cca":
        return cca_loss(gap, negative_gap, positive, beta, lambda_)
    if objective == "unlearning":
        return unlearning_loss(gap, negative_gap, positive, lambda_)
    if objective == "dpo":
        return dpo_loss(gap, negative_gap, beta)
    raise ValueError(f"objective {objective!r} has no pair loss")


def finetune_loss(logps: Tensor, length: int) -> Tensor:
    """Plain next-token loss per image [B], nats per token: the control of every study."""
    return -logps / length
