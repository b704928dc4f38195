"""The VAR transformer (Tian et al. 2024): class label + pyramid of image tokens -> logits, scale by scale.

Parameter and buffer names are the official ones, so a checkpoint's state dict loads as it is.  A scale is
predicted at once, from the label and all coarser scales; where a GPT embeds the previous token, this embeds the
sum of the coarser scales, resized to the scale at hand.  Row t of the logits therefore predicts token t.

Shape suffixes: B batch, L image tokens, T positions of one pass, C width, V vocabulary, H heads, D head width.
"""

import math
from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Model, Tokenizer
from cca_ray.models.dropout import Dropout, SiteDropout
from cca_ray.models.var_vqvae import PATCH_NUMS, VARVQVAE, MultiScaleQuantizer, check_scales

MAX_SCALE = math.log(100.0)  # of the learned attention temperature, as a logarithm


@dataclass(frozen=True)
class VARConfig:
    """Official models: dim 64 x depth, n_head = depth; AdaLN per block, as all but the 512-pixel model have it."""

    depth: int
    dim: int
    n_head: int
    num_classes: int = 1000
    vocab_size: int = 4096
    code_dim: int = 32  # channels of the tokenizer's codes
    patch_nums: tuple[int, ...] = PATCH_NUMS
    mlp_ratio: float = 4.0
    norm_eps: float = 1e-6
    attn_l2_norm: bool = True  # queries and keys on the unit sphere, with a learned temperature a head

    def __post_init__(self) -> None:
        check_scales(self.patch_nums)
        if self.depth < 1 or self.n_head < 1 or self.dim % self.n_head:
            raise ValueError(
                f"dim {self.dim} must be a multiple of n_head ({self.n_head}), and depth ({self.depth}) at least 1"
            )

    @property
    def block_size(self) -> int:
        """Image tokens, all scales together."""
        return sum(p * p for p in self.patch_nums)


@dataclass
class VARCache:
    """What decoding one scale leaves for the next."""

    layers: list[tuple[Tensor, Tensor]]  # keys and values [B, H, L, D], filled scale by scale
    f_hat: Tensor  # the latent map so far [B, code_dim, P, P]


class Attention(nn.Module):
    def __init__(self, config: VARConfig):
        super().__init__()
        self.n_head = config.n_head
        self.l2_norm = config.attn_l2_norm
        self.scale = 1.0 if self.l2_norm else 0.25 / math.sqrt(config.dim // config.n_head)
        if self.l2_norm:
            self.scale_mul_1H11 = nn.Parameter(torch.zeros(1, config.n_head, 1, 1))
        self.mat_qkv = nn.Linear(config.dim, 3 * config.dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(config.dim))
        self.v_bias = nn.Parameter(torch.zeros(config.dim))
        self.register_buffer("zero_k_bias", torch.zeros(config.dim))
        self.zero_k_bias: Tensor
        self.proj = nn.Linear(config.dim, config.dim)

    def forward(self, x_BTC: Tensor, mask: Tensor | None, position: int, cache: tuple[Tensor, Tensor] | None) -> Tensor:
        bias = torch.cat([self.q_bias, self.zero_k_bias, self.v_bias])
        qkv = F.linear(x_BTC, self.mat_qkv.weight, bias).unflatten(-1, (3, self.n_head, -1))
        q, k, v = (y.transpose(1, 2) for y in qkv.unbind(2))
        if self.l2_norm:
            q = (F.normalize(q, dim=-1) * self.scale_mul_1H11.clamp(max=MAX_SCALE).exp()).type_as(q)
            k = F.normalize(k, dim=-1)
        if cache is not None:
            end = position + x_BTC.shape[1]
            keys, values = cache
            keys[:, :, position:end], values[:, :, position:end] = k, v
            k, v = keys[:, :, :end], values[:, :, :end]  # only what is filled: no mask over finer scales
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)
        return self.proj(y.transpose(1, 2).flatten(-2))


class FeedForward(nn.Module):
    def __init__(self, config: VARConfig):
        super().__init__()
        hidden = round(config.dim * config.mlp_ratio)
        self.fc1 = nn.Linear(config.dim, hidden)
        self.fc2 = nn.Linear(hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


def adaptive(config: VARConfig, parts: int) -> nn.Sequential:
    """Condition [B, C] -> `parts` vectors of width C, in one: [B, parts * C]."""
    return nn.Sequential(nn.SiLU(), nn.Linear(config.dim, parts * config.dim))


def modulated(x: Tensor, scale: Tensor, shift: Tensor, eps: float) -> Tensor:
    """A layer norm with no weights of its own: the condition gives scale and shift [B, 1, C]."""
    return F.layer_norm(x, x.shape[-1:], eps=eps) * (1 + scale) + shift


class Block(nn.Module):
    def __init__(self, config: VARConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.attn = Attention(config)
        self.ffn = FeedForward(config)
        self.ada_lin = adaptive(config, 6)

    def forward(
        self,
        x: Tensor,
        condition_BC: Tensor,
        mask: Tensor | None,
        position: int = 0,
        cache: tuple[Tensor, Tensor] | None = None,
        drops: tuple[SiteDropout, SiteDropout] | None = None,
    ) -> Tensor:
        gain1, gain2, scale1, scale2, shift1, shift2 = self.ada_lin(condition_BC)[:, None].chunk(6, dim=-1)
        h = self.attn(modulated(x, scale1, shift1, self.eps), mask, position, cache) * gain1
        x = x + (h if drops is None else drops[0](h))
        h = self.ffn(modulated(x, scale2, shift2, self.eps)) * gain2
        return x + (h if drops is None else drops[1](h))


class HeadNorm(nn.Module):
    def __init__(self, config: VARConfig):
        super().__init__()
        self.eps = config.norm_eps
        self.ada_lin = adaptive(config, 2)

    def forward(self, x: Tensor, condition_BC: Tensor) -> Tensor:
        scale, shift = self.ada_lin(condition_BC)[:, None].chunk(2, dim=-1)
        return modulated(x, scale, shift, self.eps)


class VAR(Model):
    """`model(labels [B], tokens [B, L]) -> logits [B, L, V]`; label `num_classes` is the null condition.

    Before use, `attach` the tokenizer: the model's input is made of its codes.
    """

    config: VARConfig
    head: nn.Linear
    bare_file = True
    exact = ("scale_mul_1H11",)  # goes through exp: rounded to bfloat16, it turns a temperature of 100 into 98.9

    def __init__(self, config: VARConfig):
        super().__init__(config)
        self.codes: MultiScaleQuantizer | None = None
        self.word_embed = nn.Linear(config.code_dim, config.dim)
        self.class_emb = nn.Embedding(config.num_classes + 1, config.dim)
        self.pos_start = nn.Parameter(torch.zeros(1, config.patch_nums[0] ** 2, config.dim))
        self.pos_1LC = nn.Parameter(torch.zeros(1, config.block_size, config.dim))
        self.lvl_embed = nn.Embedding(len(config.patch_nums), config.dim)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.head_nm = HeadNorm(config)
        self.head = nn.Linear(config.dim, config.vocab_size)
        level = torch.cat([torch.full((p * p,), scale) for scale, p in enumerate(config.patch_nums)])
        mask = torch.where(level[:, None] >= level, 0.0, -torch.inf)  # a token sees its own scale and coarser ones
        self.register_buffer("lvl_1L", level[None])
        self.register_buffer("attn_bias_for_masking", mask[None, None])
        self.lvl_1L: Tensor
        self.attn_bias_for_masking: Tensor

    @property
    def decode_steps(self) -> list[int]:
        """How many tokens each decoding step yields: a scale at a time."""
        return [p * p for p in self.config.patch_nums]

    def attach(self, tokenizer: Tokenizer) -> None:
        """Take a frozen copy of the tokenizer's codes, on the model's device.

        It is in neither the parameters nor the state dict, as in the official files. ValueError if it does not fit.
        """
        assert isinstance(tokenizer, VARVQVAE)
        config, quantizer = self.config, tokenizer.quantize
        wanted = (config.vocab_size, config.code_dim, list(config.patch_nums))
        found = (*quantizer.embedding.weight.shape, list(quantizer.patch_nums))
        if found != wanted:
            raise ValueError(
                f"the tokenizer has {found[0]} codes of {found[1]} channels at scales {found[2]}, "
                f"but the model wants {wanted[0]} of {wanted[1]} at {wanted[2]}"
            )
        self.codes = quantizer.frozen().to(self.head.weight.device)

    @torch.no_grad()
    def initialize(self, generator: torch.Generator) -> None:
        """Official initialisation: truncated normal of variance 1 / 3C; small gains, so that blocks start near zero."""
        dim, depth = self.config.dim, self.config.depth
        for name, parameter in self.named_parameters():
            if name.endswith("scale_mul_1H11"):
                nn.init.constant_(parameter, math.log(4.0))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            else:
                nn.init.trunc_normal_(parameter, std=math.sqrt(1 / dim / 3), generator=generator)
            if name == "head.weight":
                parameter.mul_(0.02)
            elif name.endswith(("attn.proj.weight", "ffn.fc2.weight")):
                parameter.div_(math.sqrt(2 * depth))
            elif name == "head_nm.ada_lin.1.weight":
                parameter.mul_(0.5)
            elif name.endswith("ada_lin.1.weight"):
                parameter[: 2 * dim].mul_(1e-5)  # the two gains
                parameter[2 * dim :].mul_(0.5)

    def unfilled(self) -> Self:
        twin = super().unfilled()
        twin.codes = self.codes
        return twin

    def guidance_at(self, scale: float, step: int) -> float:
        """The guidance of a decoding step: it grows linearly from 1 at the first scale to `scale` at the last.

        The official `cfg` is `scale` - 1: (1 + t) cond - t uncond with t = cfg step / last step.
        """
        return 1 + (scale - 1) * step / (len(self.config.patch_nums) - 1)

    @property
    def stack(self) -> nn.ModuleList:
        return self.blocks

    def embed(self, latents: Tensor) -> Tensor:
        """Sums of coarser scales [B, T, code_dim] -> [B, T, C]; the codes are float32 whatever the weights are."""
        return self.word_embed(latents.to(self.word_embed.weight.dtype))

    def start(self, condition_BC: Tensor) -> Tensor:
        """What the first scale starts from: [B, first, C]."""
        return condition_BC[:, None] + self.pos_start

    def positions(self, begin: int, end: int) -> Tensor:
        """Embedding of scale and place [1, end - begin, C]."""
        return self.lvl_embed(self.lvl_1L[:, begin:end]) + self.pos_1LC[:, begin:end]

    def hidden(self, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        assert self.codes is not None, "attach the tokenizer first"
        condition = self.class_emb(labels)
        x = torch.cat([self.start(condition), self.embed(self.codes.teacher_input(tokens))], dim=1)
        x = x + self.positions(0, x.shape[1])
        if dropout is not None:
            x = dropout(x, 0)
        for number, block in enumerate(self.blocks):
            x = block(x, condition, self.attn_bias_for_masking, drops=dropout.of_block(number) if dropout else None)
        return self.head_nm(x, condition)

    @property
    def cache_bytes(self) -> int:
        config = self.config
        return 2 * config.depth * config.block_size * config.dim * self.head.weight.element_size()

    def new_cache(self, batch: int) -> VARCache:
        """Room for `batch` sequences, in the weights' dtype, on their device."""
        assert self.codes is not None, "attach the tokenizer first"
        config, weight = self.config, self.head.weight
        shape = (batch, config.n_head, config.block_size, config.dim // config.n_head)
        layers = [(weight.new_empty(shape), weight.new_empty(shape)) for _ in self.blocks]
        return VARCache(layers, self.codes.blank(batch))

    def decode(self, labels: Tensor, last_tokens: Tensor | None, step: int, cache: VARCache) -> Tensor:
        """Logits [B, p * p, V] of scale `step`, given the tokens of scale `step - 1` (None at step 0) and the cache."""
        assert self.codes is not None, "attach the tokenizer first"
        condition = self.class_emb(labels)
        if last_tokens is None:
            x = self.start(condition)
        else:
            cache.f_hat, inputs = self.codes.next_input(step - 1, cache.f_hat, last_tokens)
            x = self.embed(inputs)
        begin = sum(self.decode_steps[:step])
        x = x + self.positions(begin, begin + x.shape[1])
        for block, layer_cache in zip(self.blocks, cache.layers, strict=True):
            x = block(x, condition, None, begin, layer_cache)
        return self.head(self.head_nm(x, condition)).float()
