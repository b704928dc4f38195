"""Log-likelihoods of token sequences, in chunks of logits.

They are summed over all tokens of an image, in nats.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Model
from cca_ray.models.condition import Condition
from cca_ray.models.dropout import Dropout

CHUNK = 2**26  # logits at a time: 256 MiB in float32
CACHED = 2**20  # of these, as many as a CPU's cache holds


class RowLogps(torch.autograd.Function):
    """log p of one token a row, with a backward pass that reuses the logits' memory.

    hidden [N, C], weight [V, C], bias [V] or None, tokens [N] -> [N] float32.  Autograd's own way makes four
    tensors [N, V]; here there is one, `keep` tells whether until the backward pass or made again in it.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, keep: bool) -> Tensor:
        logits = F.linear(hidden, weight, bias)  # in the precision of autocast, if it is on
        peak = hidden.new_empty(len(hidden), dtype=torch.float32)  # the logarithm of the sum of exponentials
        logps = torch.empty_like(peak)
        for rows in pieces(logits):
            wide = logits[rows].float()
            peak[rows] = wide.logsumexp(-1)
            logps[rows] = wide.gather(-1, tokens[rows, None]).squeeze(-1) - peak[rows]
        ctx.save_for_backward(hidden, weight, bias, tokens, peak, logits if keep else None)
        ctx.kind, ctx.spent = logits.dtype, False
        return logps

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        assert not ctx.spent, "the logits are overwritten: a graph can be gone back through once"
        ctx.spent = True
        hidden, weight, bias, tokens, peak, logits = ctx.saved_tensors
        with torch.autocast(hidden.device.type, enabled=False):
            h, w = hidden.to(ctx.kind), weight.to(ctx.kind)
            if logits is None:
                logits = F.linear(h, w, None if bias is None else bias.to(ctx.kind))
            for rows in pieces(logits):  # into d log p / d logits: the token's one less the probabilities
                wide = logits[rows].float().sub_(peak[rows, None]).exp_().mul_(-gradient[rows, None])
                wide.scatter_add_(-1, tokens[rows, None], gradient[rows, None])
                logits[rows] = wide
            return (
                (logits @ w).to(hidden.dtype),
                (logits.T @ h).to(weight.dtype),
                None if bias is None else logits.sum(0).to(bias.dtype),
                None,
                None,
            )


def pieces(logits: Tensor) -> list[slice]:
    """Of the rows: on a CPU as many as its cache holds, elsewhere all."""
    size = max(1, CACHED // logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return [slice(start, start + size) for start in range(0, len(logits), size)]


def sequence_logps(hidden: Tensor, head: nn.Linear, tokens: Tensor, chunk: int = CHUNK) -> Tensor:
    """log p(tokens) summed over the sequence: hidden [B, L, C], tokens [B, L] -> [B], float32.

    Logits are made for at most `chunk` numbers at a time and, if there are more, again in the backward pass, so that
    no [B, L, V] tensor ever exists: that of a vocabulary of 16,384 is what fills a GPU.
    """
    rows, targets = hidden.flatten(0, 1), tokens.flatten()
    size = max(1, chunk // head.out_features)
    parts = zip(rows.split(size), targets.split(size), strict=True)
    keep = len(rows) <= size
    logps = torch.cat([RowLogps.apply(r, head.weight, head.bias, t, keep) for r, t in parts])
    return logps.view(tokens.shape).sum(1)


class Scorer(nn.Module):
    """`scorer(condition, tokens [B, L]) -> log p(tokens | condition) [B]`: what training and its wrappers run.

    `places` [B, L]: where in the image each token lies, if they do not come in raster order.

    Its only child is the model, whose head it applies itself, in chunks.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(
        self, condition: Condition, tokens: Tensor, dropout: Dropout | None = None, places: Tensor | None = None
    ) -> Tensor:
        if places is None:
            hidden = self.model.hidden(condition, tokens, dropout)
        else:
            hidden = self.model.hidden_in_order(places, condition, tokens, dropout)
        return sequence_logps(hidden, self.model.head, tokens)
