"""VAR's image tokenizer (Tian et al. 2024): a VQ autoencoder whose codes form a pyramid of scales.

The latent map is the sum of what all scales contribute: each quantises what the coarser ones left over.
Parameter names are the official ones.  Images are [B, 3, H, W] in [-1, 1]; tokens are [B, L], coarse to fine,
each scale in row order.

Shape suffixes: B batch, C channels of a code, P side of the latent map (the last of `patch_nums`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from itertools import pairwise
from typing import Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Tokenizer, finite
from cca_ray.models.llamagen_vq import Downsample, ResnetBlock, Upsample

PATCH_NUMS = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)  # of the official models for 256 x 256 pixels


def scales_of(side: int) -> tuple[int, ...]:
    """The ten scales of a 16 x 16 grid, shrunk to another; those that fall together once. 4 -> 1, 2, 3, 4."""
    return tuple(sorted({max(1, round(p * side / PATCH_NUMS[-1])) for p in PATCH_NUMS}))


def check_scales(patch_nums: tuple[int, ...]) -> None:
    """ValueError unless these can be the sides of a pyramid of token maps."""
    if len(patch_nums) < 2 or patch_nums[0] < 1 or any(a >= b for a, b in pairwise(patch_nums)):
        raise ValueError(f"patch_nums {list(patch_nums)} must be at least two scales, each larger than the one before")


@dataclass(frozen=True)
class VARVQConfig:
    """Defaults: the official `vae_ch160v4096z32`. Smaller values build the tokenizers of small bases."""

    vocab_size: int = 4096
    z_channels: int = 32
    ch: int = 160
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    share_quant_resi: int = 4  # so many φ for all scales
    quant_resi: float = 0.5  # φ(x) = (1 - quant_resi) x + quant_resi conv(x)
    patch_nums: tuple[int, ...] = PATCH_NUMS
    norm_groups: int = 32

    def __post_init__(self) -> None:
        check_scales(self.patch_nums)
        if self.ch % self.norm_groups:
            raise ValueError(f"tokenizer ch {self.ch} must be a multiple of norm_groups ({self.norm_groups})")
        if self.share_quant_resi < 2:
            raise ValueError(f"share_quant_resi {self.share_quant_resi} must be at least 2: partially shared φ only")

    @property
    def downsample(self) -> int:
        """Pixels per token of the finest scale along a side."""
        return 2 ** (len(self.ch_mult) - 1)

    @property
    def codebook_size(self) -> int:
        return self.vocab_size

    def length(self, image_size: int) -> int:
        """Tokens an image of so many pixels a side. ValueError if it is not that of the finest scale."""
        if image_size != self.patch_nums[-1] * self.downsample:
            wanted = self.patch_nums[-1] * self.downsample
            raise ValueError(f"image size {image_size}: the tokenizer's scales are for {wanted} pixels")
        return sum(p * p for p in self.patch_nums)


class AttnBlock(nn.Module):
    """Single-head self-attention over the grid."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention at the lowest, then a change of resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, attention: bool, resample: str):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.block = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(out_channels, groups) for _ in range(blocks if attention else 0))
        if resample:
            self.add_module(resample, {"downsample": Downsample, "upsample": Upsample}[resample](out_channels))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, block in enumerate(self.block):
            x = block(x)
            if self.attn:
                x = self.attn[i](x)
        return self.get_submodule(self.resample)(x) if self.resample else x


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.block_1 = ResnetBlock(channels, channels, groups)
        self.attn_1 = AttnBlock(channels, groups)
        self.block_2 = ResnetBlock(channels, channels, groups)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder(nn.Module):
    def __init__(self, config: VARVQConfig):
        super().__init__()
        groups, last = config.norm_groups, len(config.ch_mult) - 1
        widths = [config.ch] + [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.down = nn.ModuleList(
            Level(a, b, config.num_res_blocks, groups, i == last, "" if i == last else "downsample")
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.mid = Middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder(nn.Module):
    def __init__(self, config: VARVQConfig):
        super().__init__()
        groups, last = config.norm_groups, len(config.ch_mult) - 1
        widths = [config.ch * m for m in config.ch_mult]
        widths = [*widths, widths[-1]]
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = Middle(widths[-1], groups)
        self.up = nn.ModuleList(  # like `down`, numbered from the highest resolution: run from last to first
            Level(b, a, config.num_res_blocks + 1, groups, i == last, "upsample" if i else "")
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = nn.GroupNorm(groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(F.silu(self.norm_out(z)))


class Phi(nn.Conv2d):
    """φ: a map blended with its own convolution, against the blur of upsampling."""

    def __init__(self, channels: int, ratio: float):
        super().__init__(channels, channels, 3, padding=1)
        self.ratio = ratio

    def forward(self, x: Tensor) -> Tensor:
        return (1 - self.ratio) * x + self.ratio * super().forward(x)


class SharedPhi(nn.Module):
    """A few φ for all scales: each scale takes the one nearest to its place between the first (0) and the last (1)."""

    def __init__(self, channels: int, count: int, ratio: float, scales: int):
        super().__init__()
        self.qresi_ls = nn.ModuleList(Phi(channels, ratio) for _ in range(count))
        edge = 1 / 3 / count if count == 4 else 1 / 2 / count
        places = np.linspace(edge, 1 - edge, count)
        # The official arithmetic to the bit: of 10 scales and 4 φ, some lie midway, and rounding decides.
        self.choice = [int(np.abs(places - scale / (scales - 1)).argmin()) for scale in range(scales)]

    def forward(self, x: Tensor, scale: int) -> Tensor:
        return self.qresi_ls[self.choice[scale]](x)


@contextmanager
def full_precision(x: Tensor) -> Iterator[None]:
    """No autocast within, and no TF32, which cuDNN takes for float32: rounding would accumulate over the scales."""
    with torch.autocast(x.device.type, enabled=False), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


class MultiScaleQuantizer(nn.Module):
    """Codebook and φ: all that turns a latent map into a pyramid of tokens and back."""

    def __init__(self, config: VARVQConfig):
        super().__init__()
        self.patch_nums = config.patch_nums
        scales = len(config.patch_nums)
        self.embedding = nn.Embedding(config.vocab_size, config.z_channels)
        self.quant_resi = SharedPhi(config.z_channels, config.share_quant_resi, config.quant_resi, scales)
        self.register_buffer("ema_vocab_hit_SV", torch.zeros(scales, config.vocab_size))  # official statistics, unused

    def blank(self, batch: int) -> Tensor:
        """The latent map before the first scale: zeros [B, C, P, P]."""
        side, weight = self.patch_nums[-1], self.embedding.weight
        return weight.new_zeros(batch, weight.shape[1], side, side)

    def split(self, tokens: Tensor) -> tuple[Tensor, ...]:
        """tokens [B, L] -> one [B, p * p] a scale."""
        return tokens.split([p * p for p in self.patch_nums], dim=1)

    def resized(self, f_BCPP: Tensor, scale: int) -> Tensor:
        """A latent map as the side of this scale sees it: [B, p * p, C]."""
        side = self.patch_nums[scale]
        return F.interpolate(f_BCPP, size=(side, side), mode="area").flatten(2).transpose(1, 2)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each vector: z [..., C] -> [...]. |z|² is the same for all codes."""
        codebook = self.embedding.weight
        with full_precision(z):
            return (codebook.square().sum(1) - 2 * z @ codebook.T).argmin(-1)

    def contribution(self, tokens: Tensor, scale: int) -> Tensor:
        """What a scale adds to the latent map: tokens [B, p * p] -> [B, C, P, P]."""
        side, full = self.patch_nums[scale], self.patch_nums[-1]
        with full_precision(tokens):
            codes = self.embedding(tokens).transpose(1, 2).unflatten(2, (side, side))
            return self.quant_resi(F.interpolate(codes, size=(full, full), mode="bicubic"), scale)

    def scales(self, f_BCPP: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Quantise coarse to fine: of each scale its tokens [B, p * p], and the sum so far [B, C, P, P]."""
        rest = f_BCPP.detach()
        f_hat = torch.zeros_like(rest)
        for scale in range(len(self.patch_nums)):
            tokens = self.nearest(self.resized(rest, scale))
            added = self.contribution(tokens, scale)
            f_hat, rest = f_hat + added, rest - added.detach()
            yield tokens, f_hat

    def encode(self, f_BCPP: Tensor) -> Tensor:
        """Latent map [B, C, P, P] -> tokens [B, L]."""
        return torch.cat([tokens for tokens, _ in self.scales(f_BCPP.float())], dim=1)

    def decode(self, tokens: Tensor) -> Tensor:
        """tokens [B, L] -> latent map [B, C, P, P]."""
        return sum((self.contribution(t, scale) for scale, t in enumerate(self.split(tokens))), self.blank(len(tokens)))

    def next_input(self, scale: int, f_hat: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Add a scale's tokens [B, p * p] to the sum so far; also what the next scale starts from, [B, q * q, C]."""
        f_hat = f_hat + self.contribution(tokens, scale)
        return f_hat, self.resized(f_hat, scale + 1)

    def teacher_input(self, tokens: Tensor) -> Tensor:
        """What every scale but the first starts from: tokens [B, L] -> [B, L - first, C]."""
        f_hat, inputs = self.blank(len(tokens)), []
        for scale, of_scale in enumerate(self.split(tokens)[:-1]):
            f_hat, following = self.next_input(scale, f_hat, of_scale)
            inputs.append(following)
        return torch.cat(inputs, dim=1)

    def train_pass(self, f_BCPP: Tensor, beta: float = 0.25) -> tuple[Tensor, Tensor]:
        """Quantised map [B, C, P, P], straight-through to the latents, and the mean over scales of the VQ losses:
        codes towards latents, and, weighted by `beta`, latents towards codes."""
        f = f_BCPP.float()
        f_hat, losses = f, []
        for _, f_hat in self.scales(f):
            losses.append(F.mse_loss(f_hat, f.detach()) + beta * F.mse_loss(f, f_hat.detach()))
        return f + (f_hat - f).detach(), torch.stack(losses).mean()

    def frozen(self) -> Self:
        """A copy of buffers alone: with no parameters, and nothing in a state dict, that still moves with its owner."""
        copy = deepcopy(self)
        for module in copy.modules():
            for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                delattr(module, name)
                module.register_buffer(name, tensor.detach(), persistent=False)
        return copy


class VARVQVAE(Tokenizer):
    """`encode`: images [B, 3, H, W] in [-1, 1] -> tokens [B, L];  `decode`: tokens -> images in [-1, 1]."""

    bare_file = True
    grey = 127.5  # the byte value of 0: the official sampler rounds 255 (x + 1) / 2 down

    config: VARVQConfig

    def __init__(self, config: VARVQConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = MultiScaleQuantizer(config)
        self.quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)
        self.post_quant_conv = nn.Conv2d(config.z_channels, config.z_channels, 3, padding=1)

    def latents(self, images: Tensor) -> Tensor:
        """Before quantisation: [B, z_channels, P, P]. ValueError if the images are not of the size of the scales."""
        side = self.config.patch_nums[-1] * self.config.downsample
        if images.shape[2:] != (side, side):
            height, width = images.shape[2:]
            raise ValueError(
                f"images are {width} x {height} pixels, but the tokenizer's scales are for {side} x {side}"
            )
        return self.quant_conv(self.encoder(images))

    def encode(self, images: Tensor) -> Tensor:
        return self.quantize.encode(finite(self.latents(images), "the tokenizer"))

    def decode_latents(self, latents: Tensor) -> Tensor:
        return self.decoder(self.post_quant_conv(latents))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.decode_latents(self.quantize.decode(tokens)).clamp(-1, 1)
