"""The model: class label + image tokens -> next-token logits, without attention.

A block mixes positions by a learned lower triangular matrix, so that a position sees itself and what is before it,
and then channels by an MLP. Shapes: B batch, T positions, C width, V codes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout, SiteDropout


@dataclass(frozen=True)
class MixerConfig:
    """Stored beside the weights."""

    n_layer: int
    dim: int
    vocab_size: int = 16384
    num_classes: int = 1000
    block_size: int = 256  # tokens an image


class Block(nn.Module):
    def __init__(self, config: MixerConfig):
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(config.block_size, config.block_size))
        self.before_mix, self.before_mlp = nn.LayerNorm(config.dim), nn.LayerNorm(config.dim)
        self.up, self.down = nn.Linear(config.dim, 4 * config.dim), nn.Linear(4 * config.dim, config.dim)

    def forward(
        self, x_BTC: Tensor, drops: tuple[SiteDropout, SiteDropout] | None, step: int = 0,
        seen_BTC: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """All positions at once or, given what was `seen`, one: `step`, which it adds. A second time is no change."""
        y = self.before_mix(x_BTC)
        if seen_BTC is None:
            y = self.mix.tril() @ y
        else:
            seen_BTC[:, step : step + 1] = y
            y = self.mix[step : step + 1, : step + 1] @ seen_BTC[:, : step + 1]
        x = x_BTC + (y if drops is None else drops[0](y))
        y = self.down(nn.functional.gelu(self.up(self.before_mlp(x))))
        return x + (y if drops is None else drops[1](y))


class Mixer(Model):
    config: MixerConfig
    head: nn.Linear  # from `hidden` to logits

    def __init__(self, config: MixerConfig):
        super().__init__(config)
        self.classes = nn.Embedding(config.num_classes + 1, config.dim)  # the last row: no class
        self.tokens = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Parameter(torch.zeros(config.block_size, config.dim))
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = nn.LayerNorm(config.dim)
        self.head = nn.Linear(config.dim, config.vocab_size, bias=False)

    @property
    def stack(self) -> nn.ModuleList:
        """The units that several workers cut into parts, and that activation checkpointing computes again."""
        return self.layers

    def initialize(self, generator: torch.Generator) -> None:
        for parameter in self.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    def hidden(self, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        """What the head takes, [B, T, C]: row t predicts token t, from the label and the tokens before it."""
        x = torch.cat([self.classes(labels)[:, None], self.tokens(tokens[:, :-1])], dim=1) + self.positions
        if dropout is not None:
            x = dropout(x, 0)
        for number, block in enumerate(self.layers):
            x = block(x, dropout.of_block(number) if dropout else None)
        return self.norm(x)

    # Sampling: token after token, with a cache instead of the whole sequence at each step.

    @property
    def decode_steps(self) -> list[int]:
        return [1] * self.config.block_size

    def new_cache(self, batch: int) -> list[Tensor]:
        shape = (batch, self.config.block_size, self.config.dim)
        return [self.positions.new_empty(shape) for _ in self.layers]

    @property
    def cache_bytes(self) -> int:
        """For one sequence."""
        config = self.config
        return config.n_layer * config.block_size * config.dim * self.positions.element_size()

    def decode(self, labels: Tensor, last_tokens: Tensor | None, step: int, cache: list[Tensor]) -> Tensor:
        x = self.classes(labels)[:, None] if last_tokens is None else self.tokens(last_tokens)
        x = x + self.positions[step]
        for block, seen in zip(self.layers, cache, strict=True):
            x = block(x, None, step, seen)
        return self.head(self.norm(x)).float()
