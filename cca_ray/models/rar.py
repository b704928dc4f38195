"""RAR (Yu et al. 2024), the randomized autoregressive GPT: class label + image tokens -> next-token logits.

Parameter names are the official ones, so a checkpoint's state dict loads as it is.  A sequence begins with a learned
token and the condition; row t of the logits predicts the t-th token that comes.  Where it lies in the image, the model
is told by an embedding of its own, added to what comes before it: so tokens may come in any order.  They are sampled,
and unless asked for otherwise trained, in raster order.

Shape suffixes: B batch, L image tokens, T positions (2 + L - 1 tokens), C width, V vocabulary, H heads, D head width.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout, SiteDropout

Cache = list[tuple[Tensor, Tensor]]  # per layer: keys and values [B, H, T, D]

PREFIX = 2  # positions before the tokens: the learned one, and the condition
SPARE_PLACES, SPARE_STEPS = 1024, 100  # rows of the official tables beyond the tokens, most of which nothing uses


@dataclass(frozen=True)
class RARConfig:
    """Tables of official models have `SPARE_PLACES` or `SPARE_STEPS` rows too many, those of small ones none."""

    dim: int
    n_layer: int
    n_head: int
    mlp_dim: int
    num_classes: int = 1000
    vocab_size: int = 1024
    block_size: int = 256  # image tokens
    spare_places: int = SPARE_PLACES
    spare_steps: int = SPARE_STEPS
    norm_eps: float = 1e-6

    def __post_init__(self) -> None:
        if self.n_layer < 1 or self.n_head < 1 or self.dim % self.n_head:
            raise ValueError(
                f"dim {self.dim} must be a multiple of n_head ({self.n_head}), and n_layer ({self.n_layer}) at least 1"
            )
        if min(self.spare_places, self.spare_steps) < PREFIX:
            raise ValueError(f"spare_places and spare_steps must be at least {PREFIX}: token and condition come first")


class Attention(nn.Module):
    def __init__(self, config: RARConfig):
        super().__init__()
        self.n_head = config.n_head
        self.qkv = nn.Linear(config.dim, 3 * config.dim)
        self.q_norm = nn.LayerNorm(config.dim // config.n_head, config.norm_eps)
        self.k_norm = nn.LayerNorm(config.dim // config.n_head, config.norm_eps)
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x_BTC: Tensor, position: int, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        q, k, v = (y.transpose(1, 2) for y in self.qkv(x_BTC).unflatten(-1, (3, self.n_head, -1)).unbind(2))
        q, k = self.q_norm(q).type_as(v), self.k_norm(k).type_as(v)
        causal = x_BTC.shape[1] > 1  # a single query sees all that came before it
        if cache is not None:
            end = position + x_BTC.shape[1]
            keys, values = cache
            keys[:, :, position:end], values[:, :, position:end] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]  # only what is filled: no mask over empty positions
        y = F.scaled_dot_product_attention(q, k, v, is_causal=causal)
        return self.proj(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: RARConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.mlp_dim)
        self.fc2 = nn.Linear(config.mlp_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


def adaptive(config: RARConfig, parts: int) -> nn.Sequential:
    """Conditions [B, T, C] -> `parts` vectors of width C for every position, in one: [B, T, parts * C]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(config.dim, parts * config.dim))


class Block(nn.Module):
    def __init__(self, config: RARConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, config.norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.dim, config.norm_eps)
        self.mlp = FeedForward(config)
        self.adaLN_modulation = adaptive(config, 6)

    def forward(
        self, x: Tensor, conditions_BTC: Tensor, position: int = 0, cache: tuple[Tensor, Tensor] | None = None,
        drops: tuple[SiteDropout, SiteDropout] | None = None,
    ) -> Tensor:  # fmt: skip
        shift1, scale1, gain1, shift2, scale2, gain2 = self.adaLN_modulation(conditions_BTC).chunk(6, dim=-1)
        y = self.attn(self.norm1(x) * (1 + scale1) + shift1, position, cache)
        x = x + gain1 * (y if drops is None else drops[0](y))
        y = self.mlp(self.norm2(x) * (1 + scale2) + shift2)
        return x + gain2 * (y if drops is None else drops[1](y))


class HeadNorm(nn.Module):
    """The last norm has no weights of its own; scale comes before shift, other than in the blocks."""

    def __init__(self, config: RARConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.adaLN_modulation = adaptive(config, 2)

    def forward(self, x: Tensor, conditions_BTC: Tensor) -> Tensor:
        scale, shift = self.adaLN_modulation(conditions_BTC).chunk(2, dim=-1)
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale) + shift


class RAR(Model):
    """`model(labels [B], tokens [B, L]) -> logits [B, L, V]`; label `num_classes` is the null condition."""

    config: RARConfig
    bare_file = True

    def __init__(self, config: RARConfig):
        super().__init__(config)
        dim, length = config.dim, config.block_size
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        # One table for all: image tokens, a mask token that nothing uses, classes, the null condition.
        self.embeddings = nn.Embedding(config.vocab_size + 1 + config.num_classes + 1, dim)
        self.pos_embed = nn.Parameter(torch.zeros(1, length + config.spare_places, dim))
        self.target_aware_pos_embed = nn.Parameter(torch.zeros(1, length + config.spare_places, dim))
        self.timesteps_embeddings = nn.Parameter(torch.zeros(1, length + config.spare_steps, dim))
        self.adaln_before_head = HeadNorm(config)
        self.lm_head = nn.Linear(dim, config.vocab_size)

    @property
    def stack(self) -> nn.ModuleList:
        return self.blocks

    @property
    def head(self) -> nn.Linear:
        return self.lm_head

    @property
    def decode_steps(self) -> list[int]:
        """How many tokens each decoding step yields: one at a time here."""
        return [1] * self.config.block_size

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Official initialisation: truncated normal of std 0.02; blocks start as the identity, the condition unused."""
        for name, parameter in self.named_parameters():
            if "adaLN_modulation" in name or name == "cls_token" or name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif "norm" in name:
                nn.init.ones_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=0.02, generator=generator)

    def condition(self, labels: Tensor) -> Tensor:
        """labels [B] -> [B, 1, C]."""
        return self.embeddings(labels + self.config.vocab_size + 1)[:, None]

    def conditions(self, condition_B1C: Tensor, begin: int, end: int) -> Tensor:
        """What modulates the positions from `begin` to before `end`: [B, end - begin, C]."""
        return condition_B1C + self.timesteps_embeddings[:, begin:end]

    def begun(self, x_BTC: Tensor) -> Tensor:
        """With the learned token before it, which is told of no place: [B, 1 + T, C]."""
        return torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x_BTC), -1, -1), x_BTC], dim=1)

    def hidden(self, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        rows = slice(PREFIX, PREFIX + tokens.shape[1])
        return self.passed(labels, tokens, self.pos_embed[:, rows], self.target_aware_pos_embed[:, rows], dropout)

    def hidden_in_order(self, places: Tensor, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        rows = PREFIX + places
        return self.passed(labels, tokens, self.pos_embed[0, rows], self.target_aware_pos_embed[0, rows], dropout)

    def passed(self, labels: Tensor, tokens: Tensor, own: Tensor, following: Tensor, dropout: Dropout | None) -> Tensor:
        """See `hidden`. `own`, `following`: embeddings of the tokens' places, for each and for what comes before it."""
        condition = self.condition(labels)
        x = torch.cat([condition + self.pos_embed[:, 1:PREFIX], self.embeddings(tokens[:, :-1]) + own[:, :-1]], dim=1)
        x = self.begun(x + following)
        conditions = self.conditions(condition, 0, x.shape[1])
        for number, block in enumerate(self.blocks):
            x = block(x, conditions, drops=dropout.of_block(number) if dropout else None)
        return self.adaln_before_head(x[:, 1:], conditions[:, 1:])

    @property
    def cache_bytes(self) -> int:
        config = self.config
        return 2 * config.n_layer * (config.block_size + 1) * config.dim * self.lm_head.weight.element_size()

    def new_cache(self, batch: int) -> Cache:
        """Room for the keys and values of `batch` sequences, in the weights' dtype, on their device."""
        config, weight = self.config, self.lm_head.weight
        shape = (batch, config.n_head, config.block_size + 1, config.dim // config.n_head)
        return [(weight.new_empty(shape), weight.new_empty(shape)) for _ in self.blocks]

    def decode(self, labels: Tensor, last_tokens: Tensor | None, step: int, cache: Cache) -> Tensor:
        """Logits [B, 1, V] for token `step`, given token `step - 1` [B, 1] (None at step 0) and the cache."""
        condition, here = self.condition(labels), slice(step + 1, step + PREFIX)
        x = condition if last_tokens is None else self.embeddings(last_tokens)
        x = x + self.pos_embed[:, here] + self.target_aware_pos_embed[:, PREFIX + step : PREFIX + step + 1]
        begin = step + 1
        if last_tokens is None:
            begin, x = 0, self.begun(x)
        conditions = self.conditions(condition, begin, step + PREFIX)
        for block, layer_cache in zip(self.blocks, cache, strict=True):
            x = block(x, conditions, begin, layer_cache)
        return self.lm_head(self.adaln_before_head(x[:, -1:], conditions[:, -1:])).float()
