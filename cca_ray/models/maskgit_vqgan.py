"""The MaskGIT-VQGAN tokenizer of RAR (Chang et al. 2022): convolutional, without attention, image <-> grid of codes.

Parameter names are the official ones.  Images are [B, 3, H, W] in [-1, 1] here, in [0, 1] within; tokens are [B, L] in
row order.
"""

from dataclasses import dataclass
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.models.base import Tokenizer, finite


@dataclass(frozen=True)
class MaskGITConfig:
    """Defaults: the official tokenizer, 16 pixels a token. Smaller values build the tokenizers of small bases."""

    codebook_size: int = 1024
    z_channels: int = 256  # of a code, too
    hidden_channels: int = 128
    channel_mult: tuple[int, ...] = (1, 1, 2, 2, 4)
    num_res_blocks: int = 2
    norm_groups: int = 32

    def __post_init__(self) -> None:
        if self.hidden_channels % self.norm_groups:
            raise ValueError(
                f"tokenizer hidden_channels {self.hidden_channels} must be a multiple of norm_groups "
                f"({self.norm_groups})"
            )

    @property
    def downsample(self) -> int:
        """Pixels a token along a side."""
        return 2 ** (len(self.channel_mult) - 1)

    def length(self, image_size: int) -> int:
        """Tokens an image of so many pixels a side. ValueError if it has no whole number."""
        side, rest = divmod(image_size, self.downsample)
        if rest or not side:
            raise ValueError(
                f"image size {image_size}: expected a multiple of the tokenizer's {self.downsample} pixels"
            )
        return side**2

    @property
    def widths(self) -> list[int]:
        """Channels at each resolution, from the highest to the lowest."""
        return [self.hidden_channels * m for m in self.channel_mult]


class ResnetBlock(nn.Module):
    """Where channels change, what is added is a projection of the block's own output, not of its input.

    So it is in the official code, with whose weights it must agree.
    """

    def __init__(self, in_channels: int, out_channels: int, groups: int):
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, out_channels, eps=1e-6)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        if in_channels != out_channels:
            self.nin_shortcut = nn.Conv2d(out_channels, out_channels, 1, bias=False)
        self.changes = in_channels != out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(h) if self.changes else x)


def res_blocks(in_channels: int, out_channels: int, config: MaskGITConfig) -> nn.ModuleList:
    widths = [in_channels] + [out_channels] * config.num_res_blocks
    return nn.ModuleList(ResnetBlock(a, b, config.norm_groups) for a, b in pairwise(widths))


class Down(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, config: MaskGITConfig):
        super().__init__()
        self.block = res_blocks(in_channels, out_channels, config)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return x


class Up(Down):
    """`enlarges`: all but that of the highest resolution."""

    def __init__(self, in_channels: int, out_channels: int, config: MaskGITConfig, enlarges: bool):
        super().__init__(in_channels, out_channels, config)
        if enlarges:
            self.upsample_conv = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.enlarges = enlarges

    def forward(self, x: Tensor) -> Tensor:
        x = super().forward(x)
        return self.upsample_conv(F.interpolate(x, scale_factor=2.0, mode="nearest")) if self.enlarges else x


class Encoder(nn.Module):
    def __init__(self, config: MaskGITConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.down = nn.ModuleList(Down(a, b, config) for a, b in pairwise([widths[0], *widths]))
        self.mid = res_blocks(widths[-1], widths[-1], config)
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[-1], config.z_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for number, level in enumerate(self.down):
            x = level(F.avg_pool2d(x, 2) if number else x)
        for block in self.mid:
            x = block(x)
        return self.conv_out(F.silu(self.norm_out(x)))


class Decoder(nn.Module):
    def __init__(self, config: MaskGITConfig):
        super().__init__()
        widths = config.widths
        self.conv_in = nn.Conv2d(config.z_channels, widths[-1], 3, padding=1)
        self.mid = res_blocks(widths[-1], widths[-1], config)
        self.up = nn.ModuleList(  # numbered from the highest resolution: run from last to first
            Up(b, a, config, enlarges=number > 0) for number, (a, b) in enumerate(pairwise([*widths, widths[-1]]))
        )
        self.norm_out = nn.GroupNorm(config.norm_groups, widths[0], eps=1e-6)
        self.conv_out = nn.Conv2d(widths[0], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        z = self.conv_in(z)
        for block in self.mid:
            z = block(z)
        for level in reversed(self.up):
            z = level(z)
        return self.conv_out(F.silu(self.norm_out(z)))


class Quantizer(nn.Module):
    """The nearest code, by plain distance."""

    def __init__(self, codebook_size: int, channels: int):
        super().__init__()
        self.embedding = nn.Embedding(codebook_size, channels)

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the code nearest to each vector: z [..., C] -> [...]. |z|² is the same for all codes."""
        codes = self.embedding.weight
        return (codes.square().sum(1) - 2 * z @ codes.T).argmin(-1)


class MaskGITVQGAN(Tokenizer):
    """`encode`: images [B, 3, H, W] in [-1, 1] -> tokens [B, L];  `decode`: tokens -> images in [-1, 1]."""

    bare_file = True
    grey = 127.5  # the byte value of 0: the official demo rounds 255 (x + 1) / 2 down

    config: MaskGITConfig

    def __init__(self, config: MaskGITConfig):
        super().__init__(config)
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)
        self.quantize = Quantizer(config.codebook_size, config.z_channels)

    def latents(self, images: Tensor) -> Tensor:
        """Before quantisation: [B, L, z_channels]."""
        return self.encoder((images + 1) / 2).flatten(2).transpose(1, 2)

    def encode(self, images: Tensor) -> Tensor:
        return self.quantize.nearest(finite(self.latents(images), "the tokenizer"))

    def decode_latents(self, latents: Tensor) -> Tensor:
        side = int(latents.shape[1] ** 0.5)
        return 2 * self.decoder(latents.transpose(1, 2).unflatten(2, (side, side))) - 1

    def decode(self, tokens: Tensor) -> Tensor:
        return self.decode_latents(self.quantize.embedding(tokens)).clamp(-1, 1)
