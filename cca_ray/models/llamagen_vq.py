"""LlamaGen's image tokenizer: a convolutional VQ autoencoder, image <-> grid of codes.

Parameter names are the official ones.  Images are [B, 3, H, W] in [-1, 1]; tokens are [B, L] in row order.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Tokenizer, finite


@dataclass(frozen=True)
class VQConfig:
    """Defaults: the official VQ-16. Smaller values build the tokenizers of small bases."""

    codebook_size: int = 16384
    codebook_embed_dim: int = 8
    ch: int = 128
    ch_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    z_channels: int = 256
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.ch % self.norm_groups:
            raise ValueError(f"tokenizer ch {self.ch} must be a multiple of norm_groups ({self.norm_groups})")

    @property
    def downsample(self) -> int:
        """Pixels per token along a side."""
        return 2 ** (len(self.ch_mult) - 1)

    def length(self, image_size: int) -> int:
        """Tokens an image of so many pixels a side. ValueError if it has no whole number."""
        side, rest = divmod(image_size, self.downsample)
        if rest or not side:
            raise ValueError(
                f"image size {image_size}: expected a multiple of the tokenizer's {self.downsample} pixels"
            )
        return side**2


class ResnetBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(in_channels, out_channels, 1)
        self.shortcut = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if self.shortcut else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over the grid."""

    def __init__(self, channels: int, groups: int):
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(h.transpose(1, 2).unflatten(2, x.shape[2:]))


class Downsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks at one resolution, with attention at the lowest, then a change of resolution."""

    def __init__(self, in_channels: int, out_channels: int, blocks: int, groups: int, attention: bool, resample: str):
        super().__init__()
        widths = [in_channels] + [out_channels] * blocks
        self.res = nn.ModuleList(ResnetBlock(a, b, groups) for a, b in pairwise(widths))
        self.attn = nn.ModuleList(AttnBlock(out_channels, groups) for _ in range(blocks if attention else 0))
        if resample:
            self.add_module(resample, {"downsample": Downsample, "upsample": Upsample}[resample](out_channels))
        self.resample = resample

    def forward(self, x: Tensor) -> Tensor:
        for i, res in enumerate(self.res):
            x = res(x)
            if self.attn:
                x = self.attn[i](x)
        return self.get_submodule(self.resample)(x) if self.resample else x


def middle(channels: int, groups: int) -> nn.ModuleList:
    return nn.ModuleList(
        [
            ResnetBlock(channels, channels, groups),
            AttnBlock(channels, groups),
            ResnetBlock(channels, channels, groups),
        ]
    )


class Encoder(nn.Module):
    def __init__(self, config: VQConfig):
        super().__init__()
        groups, last = config.norm_groups, len(config.ch_mult) - 1
        widths = [config.ch] + [config.ch * m for m in config.ch_mult]
        self.conv_in = nn.Conv2d(3, config.ch, 3, padding=1)
        self.conv_blocks = nn.ModuleList(
            Level(a, b, config.num_res_blocks, groups, i == last, "" if i == last else "downsample")
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.mid = middle(widths[-1], groups)
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in [*self.conv_blocks, *self.mid]:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: VQConfig):
        super().__init__()
        groups, last = config.norm_groups, len(config.ch_mult) - 1
        widths = [config.ch * m for m in reversed(config.ch_mult)]
        widths = [widths[0], *widths]
        self.conv_in = nn.Conv2d(config.z_channels, widths[0], 3, padding=1)
        self.mid = middle(widths[0], groups)
        self.conv_blocks = nn.ModuleList(
            Level(a, b, config.num_res_blocks + 1, groups, i == 0, "" if i == last else "upsample")
            for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norm_out = nn.GroupNorm(groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for block in [*self.mid, *self.conv_blocks]:
            z = block(z)
        return self.conv_out(F.silu(self.norm_out(z)))


class Quantizer(nn.Module):
    """Nearest code on the unit sphere."""

    def __init__(self, codebook_size: int, codebook_embed_dim: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, codebook_embed_dim)

    def codebook(self) -> Tensor:
        """Unit vectors [codebook_size, codebook_embed_dim]."""
        return F.normalize(self.embedding.weight, dim=-1)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each vector: z [..., D] -> [...]. Of unit vectors, the largest product."""
        return (F.normalize(z, dim=-1) @ self.codebook().T).argmax(-1)


class LlamaGenVQ(Tokenizer):
    """`encode`: images [B, 3, H, W] in [-1, 1] -> tokens [B, L];  `decode`: tokens -> images, about [-1, 1]."""

    grey = 128.0  # the byte value of 0: the official sampler rounds 127.5 x + 128 down

    config: VQConfig

    def __init__(self, config: VQConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook_size, config.codebook_embed_dim)
        self.quant_conv = nn.Conv2d(config.z_channels, config.codebook_embed_dim, 1)
        self.post_quant_conv = nn.Conv2d(config.codebook_embed_dim, config.z_channels, 1)

    def latents(self, images: Tensor) -> Tensor:
        """Before quantisation: [B, L, codebook_embed_dim]."""
        return self.quant_conv(self.encoder(images)).flatten(2).transpose(1, 2)

    def encode(self, images: Tensor) -> Tensor:
        return self.quantize.nearest(finite(self.latents(images), "the tokenizer"))

    def decode_latents(self, latents: Tensor) -> Tensor:
        side = int(latents.shape[1] ** 0.5)
        z = latents.transpose(1, 2).unflatten(2, (side, side))
        return self.decoder(self.post_quant_conv(z))

    def decode(self, tokens: Tensor) -> Tensor:
        return self.decode_latents(self.quantize.codebook()[tokens])
