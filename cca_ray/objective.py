"""Sequence log-likelihoods and the losses of Condition Contrastive Alignment, as pure functions.

Sequence log-likelihoods are summed over all tokens of an image.  Losses are returned per pair [B]; the
loss of a step is their mean over the *global* batch, which the training loop takes.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cca_ray.models import Dropout, Model

Objective = Literal["cca", "dpo", "unlearning", "finetune"]
CHUNK = 2**26  # logits at a time: 256 MiB in float32


def row_logps(hidden: Tensor, head: nn.Linear, tokens: Tensor) -> Tensor:
    """log p of one token a row: hidden [N, C], tokens [N] -> [N], float32."""
    return -F.cross_entropy(head(hidden).float(), tokens, reduction="none")


def sequence_logps(hidden: Tensor, head: nn.Linear, tokens: Tensor, chunk: int = CHUNK) -> Tensor:
    """log p(tokens) summed over the sequence: hidden [B, L, C], tokens [B, L] -> [B], float32.

    Logits are made for at most `chunk` numbers at a time and again in the backward pass, so that no [B, L, V]
    tensor ever exists: that of a vocabulary of 16,384 is what fills a GPU.
    """
    rows, targets = hidden.flatten(0, 1), tokens.flatten()
    size = max(1, chunk // head.out_features)
    if len(rows) <= size:
        logps = row_logps(rows, head, targets)
    else:
        pieces = zip(rows.split(size), targets.split(size), strict=True)
        logps = torch.cat([checkpoint(row_logps, r, head, t, use_reentrant=False) for r, t in pieces])
    return logps.view(tokens.shape).sum(1)


class Scorer(nn.Module):
    """`scorer(labels [B], tokens [B, L]) -> log p(tokens | label) [B]`: what training and its wrappers run.

    Its only child is the model, whose head it applies itself, in chunks.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        return sequence_logps(self.model.hidden(labels, tokens, dropout), self.model.head, tokens)


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
