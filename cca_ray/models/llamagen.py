"""The LlamaGen GPT (Sun et al. 2024): class label + image tokens -> next-token logits.

Parameter names are the official ones, so a checkpoint's state dict loads as it is.  The class label
is the first position of the sequence; row t of the logits therefore predicts token t.  `llamagen_t2i` has a text in
its place, of many positions, not all of which may be seen.

Shape suffixes: B batch, L image tokens, T positions (1 class + L - 1 tokens), C width, V vocabulary,
H heads, D head width.
"""

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout, SiteDropout

Cache = list[tuple[Tensor, Tensor]]  # per layer: keys and values [B, H, T, D or a little more]


@dataclass(frozen=True)
class LlamaGenConfig:
    """Field names and defaults of the official `ModelArgs`; the class-conditional model only."""

    dim: int
    n_layer: int
    n_head: int
    vocab_size: int = 16384
    num_classes: int = 1000
    block_size: int = 576  # image tokens: a square grid
    multiple_of: int = 256  # the SwiGLU width is rounded up to a multiple of this
    rope_base: float = 10000.0
    norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        if self.dim % (4 * self.n_head):
            raise ValueError(
                f"dim {self.dim} must be a multiple of 4 x n_head ({self.n_head}): RoPE turns pairs in 2-D"
            )
        if self.grid**2 != self.block_size:
            raise ValueError(f"block_size {self.block_size} must be a square: the tokens form a square grid")

    @property
    def grid(self) -> int:
        return int(self.block_size**0.5)

    @property
    def hidden_dim(self) -> int:
        """Width of the SwiGLU: 2/3 of 4 x dim, rounded up to `multiple_of`."""
        return -(-int(2 * 4 * self.dim / 3) // self.multiple_of) * self.multiple_of


def rope_table(grid: int, head_dim: int, base: float, before: int = 1) -> Tensor:
    """2-D rotary table [before + grid², head_dim / 2, (cos, sin)]; `before`: positions of the condition.

    Their rows are zero, not the identity, as in the official code: their queries and keys vanish.
    """
    half = head_dim // 2
    freqs = 1.0 / base ** (torch.arange(0, half, 2).float() / half)
    angles = torch.outer(torch.arange(grid), freqs)
    rows, columns = angles[:, None].expand(-1, grid, -1), angles[None].expand(grid, -1, -1)
    angles = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    table = torch.stack([angles.cos(), angles.sin()], dim=-1)
    return torch.cat([torch.zeros(before, half, 2), table])


def rotate(x_BTHD: Tensor, table: Tensor) -> Tensor:
    """Apply rotary embedding; `table` [T, D / 2, 2] holds the rows of the positions in x."""
    pairs = x_BTHD.float().unflatten(-1, (-1, 2))
    cos, sin = table[:, None, :, 0], table[:, None, :, 1]
    turned = torch.stack([pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 1] * cos + pairs[..., 0] * sin], dim=-1)
    return turned.flatten(-2).type_as(x_BTHD)


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return y.type_as(x) * self.weight


class Attention(nn.Module):
    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.n_head = config.n_head
        self.wqkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.wo = nn.Linear(config.dim, config.dim, bias=False)

    def forward(
        self, x_BTC: Tensor, table: Tensor, position: int, cache: tuple[Tensor, Tensor] | None,
        mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """`mask`: which keys each query sees, [B, 1, queries, keys]; without it all up to its own position."""
        q, k, v = (y.unflatten(-1, (self.n_head, -1)) for y in self.wqkv(x_BTC).chunk(3, dim=-1))
        q, k = rotate(q, table), rotate(k, table)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        width, scale = q.shape[-1], None
        if cache is not None:
            end = position + x_BTC.shape[1]
            keys, values = cache
            keys[:, :, position:end, :width], values[:, :, position:end, :width] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]  # only what is filled: no mask over empty positions
            if (wider := keys.shape[-1] - width) > 0:  # by zeros, which change no product
                q, scale = F.pad(q, (0, wider)), width**-0.5
        causal = cache is None and mask is None
        y = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, scale=scale)[..., :width]
        return self.wo(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Block(nn.Module):
    def __init__(self, config: LlamaGenConfig):
        super().__init__()
        self.attention = Attention(config)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(
        self, x: Tensor, table: Tensor, position: int = 0, cache: tuple[Tensor, Tensor] | None = None,
        drops: tuple[SiteDropout, SiteDropout] | None = None, mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        y = self.attention(self.attention_norm(x), table, position, cache, mask)
        x = x + (y if drops is None else drops[0](y))
        y = self.feed_forward(self.ffn_norm(x))
        return x + (y if drops is None else drops[1](y))


class LabelEmbedding(nn.Module):
    """One row a class and a last row for "no class" (the null condition)."""

    def __init__(self, num_classes: int, dim: int):
        super().__init__()
        self.embedding_table = nn.Embedding(num_classes + 1, dim)

    def forward(self, labels: Tensor) -> Tensor:
        return self.embedding_table(labels)[:, None]


class GridGPT(Model):
    """What LlamaGen's models of classes and of texts share: all but the condition."""

    config: LlamaGenConfig

    def __init__(self, config: LlamaGenConfig, cls_embedding: nn.Module):
        super().__init__(config)
        self.cls_embedding = cls_embedding
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.register_buffer("rope", self.new_rope(), persistent=False)
        self.rope: Tensor

    @property
    def condition_positions(self) -> int:
        """Before the tokens."""
        return 1

    def new_rope(self) -> Tensor:
        config = self.config
        return rope_table(config.grid, config.dim // config.n_head, config.rope_base, self.condition_positions)

    def unfilled(self) -> Self:
        twin = super().unfilled()
        twin.rope = self.new_rope()  # no checkpoint holds it
        return twin

    @property
    def stack(self) -> nn.ModuleList:
        return self.layers

    @property
    def head(self) -> nn.Linear:
        return self.output

    @property
    def decode_steps(self) -> list[int]:
        """How many tokens each decoding step yields: one at a time here."""
        return [1] * self.config.block_size

    def initialize(self, generator: torch.Generator) -> None:
        """Official initialisation: normal of std 0.02, output layer zero."""
        for name, parameter in self.named_parameters():
            if name == "output.weight":
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1:
                nn.init.normal_(parameter, std=0.02, generator=generator)

    @property
    def cached_width(self) -> int:
        """Of a head in the cache: half precision's attention wants multiples of 8, and else copies all at each step."""
        head = self.config.dim // self.config.n_head
        return -(-head // 8) * 8 if self.tok_embeddings.weight.element_size() == 2 else head

    @property
    def cached_positions(self) -> int:
        """Of a whole sequence: the condition, and all tokens but the last, which predicts none."""
        return self.condition_positions + self.config.block_size - 1

    @property
    def cache_bytes(self) -> int:
        config, numbers = self.config, self.config.n_head * self.cached_width
        return 2 * config.n_layer * self.cached_positions * numbers * self.tok_embeddings.weight.element_size()

    def new_cache(self, batch: int) -> Cache:
        """Room for the keys and values of `batch` sequences, in the weights' dtype, on their device."""
        config, weight = self.config, self.tok_embeddings.weight
        shape = (batch, config.n_head, self.cached_positions, self.cached_width)
        return [(weight.new_zeros(shape), weight.new_zeros(shape)) for _ in self.layers]


class LlamaGen(GridGPT):
    """`model(labels [B], tokens [B, L]) -> logits [B, L, V]`; label `num_classes` is the null condition."""

    def __init__(self, config: LlamaGenConfig):
        super().__init__(config, LabelEmbedding(config.num_classes, config.dim))

    def hidden(self, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        x = torch.cat([self.cls_embedding(labels), self.tok_embeddings(tokens[:, :-1])], dim=1)
        if dropout is not None:
            x = dropout(x, 0)
        table = self.rope[: x.shape[1]]
        for number, layer in enumerate(self.layers):
            x = layer(x, table, drops=dropout.of_block(number) if dropout else None)
        return self.norm(x)

    def decode(self, labels: Tensor, last_tokens: Tensor | None, step: int, cache: Cache) -> Tensor:
        """Logits [B, 1, V] for token `step`, given token `step - 1` [B, 1] (None at step 0) and the cache."""
        x = self.cls_embedding(labels) if last_tokens is None else self.tok_embeddings(last_tokens)
        table = self.rope[step : step + 1]
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, table, step, layer_cache)
        return self.output(self.norm(x)).float()
