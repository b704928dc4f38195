"""VAR (Tian et al. 2024) as a family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cca_ray.models.family import Eager, Family, Fields, Parts, channel_multiples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cca_ray.config import Pretrain
    from cca_ray.models.base import Tokenizer
    from cca_ray.models.codebook import Codebook
    from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig


SIZES = {
    "S": dict(depth=1, n_head=1, dim=8),  # S, tiny and M are ours: the embedded digits
    "tiny": dict(depth=2, n_head=1, dim=8),  # the embedded default; of S, CCA fell behind guidance
    "small": dict(depth=3, n_head=4, dim=40),  # 0.1 M; small, medium and large are for one's own images
    "M": dict(depth=3, n_head=3, dim=48),
    "medium": dict(depth=6, n_head=6, dim=96),  # 1.1 M
    "large": dict(depth=7, n_head=6, dim=192),  # 4.8 M
    "d16": dict(depth=16, n_head=16, dim=1024),  # 310 M
    "d20": dict(depth=20, n_head=20, dim=1280),  # 600 M
    "d24": dict(depth=24, n_head=24, dim=1536),  # 1.0 B
    "d30": dict(depth=30, n_head=30, dim=1920),  # 2.0 B
}
SHAPES = {
    "num_classes": ("class_emb.weight", 0, -1),
    "vocab_size": ("head.weight", 0, 0),
    "dim": ("head.weight", 1, 0),
    "code_dim": ("word_embed.weight", 1, 0),
}


class VARFamily(Family):
    name = "var"
    sizes = SIZES
    passes = "one forward pass per scale of its token pyramid"
    eager = Eager(464, 60, 32, 46, decoder_gflop=394)
    needs_codes = True  # the model's input is made of them
    layers = ("depth", "blocks.")
    shapes = SHAPES
    image_size = 256
    augmentations = ("var-random",)
    small_sizes = ("S", "tiny", "M")

    def parts(self) -> Parts:
        from cca_ray.models.var import VAR, VARConfig
        from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig

        return Parts(VAR, VARConfig, VARVQVAE, VARVQConfig)

    def met_once(self, shape: Any) -> int:
        adaptive = (6 * shape.depth + 2) * shape.dim * (shape.dim + 1)  # a third of all; of RAR's, tokens meet each
        return super().met_once(shape) + int(adaptive)

    def content_of(self, state: Mapping[str, Tensor]) -> Fields:
        found = super().content_of(state)
        if "lvl_1L" in state:  # the scale of every token
            counts = state["lvl_1L"].flatten().bincount().tolist()
            found["patch_nums"] = tuple(round(count**0.5) for count in counts)
        return found

    def small_tokenizer(self, settings: Pretrain) -> VARVQConfig:
        from cca_ray.models.var_vqvae import VARVQConfig, scales_of

        return VARVQConfig(
            vocab_size=settings.codebook_size,
            z_channels=settings.code_dim,
            ch=settings.tokenizer_width,
            ch_mult=channel_multiples(settings.downsample),
            num_res_blocks=1,
            patch_nums=scales_of(settings.image_size // settings.downsample),
            norm_groups=8,
        )

    def codebook_of(self, tokenizer: Tokenizer) -> nn.Embedding:
        return own(tokenizer).quantize.embedding

    def quantised(self, tokenizer: Tokenizer, latents: Tensor, codebook: Codebook, step: int) -> tuple[Tensor, Tensor]:
        """The finer scales of the pyramid want codes for what the coarser ones leave over."""
        import torch

        quantizer, vectors, before = own(tokenizer).quantize, [], torch.zeros_like(latents)
        with torch.no_grad():
            for scale, (tokens, f_hat) in enumerate(quantizer.scales(latents)):
                vectors.append(quantizer.resized(latents - before, scale).flatten(0, 1))
                codebook.chosen(tokens)
                before = f_hat
        codebook.revive(torch.cat(vectors), step)
        return quantizer.train_pass(latents)

    def small_model(self, tokenizer: Tokenizer, length: int) -> Fields:
        config = own(tokenizer).config
        return {"code_dim": config.z_channels, "patch_nums": config.patch_nums}

    def template(self, size: str) -> str:
        return "digits_var"


def own(tokenizer: Tokenizer) -> VARVQVAE:
    from cca_ray.models.var_vqvae import VARVQVAE

    assert isinstance(tokenizer, VARVQVAE)
    return tokenizer


FAMILY = VARFamily()
