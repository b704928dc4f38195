"""A codebook while it is trained."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def straight_through(latents: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """The codes, with the gradient of the latents, and VQ-VAE's loss: codes towards latents, latents towards codes."""
    loss = F.mse_loss(codes, latents.detach()) + 0.25 * F.mse_loss(latents, codes.detach())
    return latents + (codes - latents).detach(), loss


class Codebook:
    """Keeps a codebook from falling idle: codes that nothing chose lately are moved onto vectors that exist."""

    def __init__(self, embedding: nn.Embedding, steps: int, seed: int):
        self.embedding, self.steps = embedding, steps
        self.used = torch.zeros(embedding.num_embeddings)
        self.generator = torch.Generator().manual_seed(seed)

    def chosen(self, tokens: Tensor) -> None:
        self.used += torch.bincount(tokens.flatten(), minlength=len(self.used))

    def revive(self, vectors: Tensor, step: int) -> None:
        """vectors [N, D]: what codes are wanted for."""
        if step % 50 or step >= 0.6 * self.steps:
            return
        dead = (self.used == 0).nonzero().squeeze(1)
        pick = torch.randint(len(vectors), (len(dead),), generator=self.generator)
        self.embedding.weight.data[dead] = vectors[pick].detach()
        self.used.zero_()

    def state(self) -> dict[str, Tensor]:
        """All that is not in the embedding itself."""
        return {"used": self.used, "generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.used = state["used"]
        self.generator.set_state(state["generator"])
