"""LlamaGen (Sun et al. 2024) as a family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cca_ray.models.family import Eager, Family, Fields, Parts, channel_multiples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cca_ray.config import Pretrain
    from cca_ray.models.base import Tokenizer
    from cca_ray.models.codebook import Codebook
    from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig

PIXELS_A_TOKEN = 16  # along a side, of the official tokenizer


SIZES = {
    "S": dict(n_layer=2, n_head=2, dim=16, multiple_of=32),  # S, M, tiny and mini are ours: for the embedded digits
    "M": dict(n_layer=2, n_head=2, dim=24, multiple_of=32),
    "tiny": dict(n_layer=2, n_head=2, dim=32, multiple_of=32),  # the default; of S and M, which are narrower,
    "mini": dict(n_layer=2, n_head=4, dim=48, multiple_of=32),  # bases ended in one of several optima, by seed
    "small": dict(n_layer=3, n_head=4, dim=48, multiple_of=32),  # 0.1 M; these three are for one's own images
    "medium": dict(n_layer=5, n_head=4, dim=128, multiple_of=32),  # 1.1 M
    "large": dict(n_layer=6, n_head=8, dim=256, multiple_of=32),  # 5.0 M
    "B": dict(n_layer=12, n_head=12, dim=768),  # 110.9 M parameters, whatever the image size
    "L": dict(n_layer=24, n_head=16, dim=1024),  # 343 M
    "XL": dict(n_layer=36, n_head=20, dim=1280),  # 775 M
    "XXL": dict(n_layer=48, n_head=24, dim=1536),  # 1.4 B
    "3B": dict(n_layer=24, n_head=32, dim=3200),  # 3.1 B
}
SHAPES = {
    "num_classes": ("cls_embedding.embedding_table.weight", 0, -1),  # the last row is the null class
    "vocab_size": ("tok_embeddings.weight", 0, 0),
    "dim": ("tok_embeddings.weight", 1, 0),
    "block_size": ("freqs_cis", 0, -1),  # where it is: the first row is the class token's
}


class LlamaGenFamily(Family):
    name = "llamagen"
    sizes = SIZES
    passes = "one forward pass per token"
    eager: Eager | None = Eager(981, 60, 46, 21, decoder_gflop=570)
    layers = ("n_layer", "layers.")
    shapes = SHAPES
    image_size = 384
    augmentations: tuple[str, ...] = ("ten-crop-1.1", "ten-crop-1.05")
    official_codes = True
    small_sizes: tuple[str, ...] = ("S", "M", "tiny", "mini")

    def parts(self) -> Parts:
        from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
        from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig

        return Parts(LlamaGen, LlamaGenConfig, LlamaGenVQ, VQConfig)

    def official_shape(self, size: str) -> Any:
        return self.configure(size, image_size=self.image_size)

    def kept_bytes(self, shape: Any) -> float:
        """Four tensors as wide as the MLP, in bfloat16, and the rest."""
        return float(36.2 + 8 * shape.hidden_dim / shape.dim)

    def met_once(self, shape: Any) -> int:
        return super().met_once(shape) + int(shape.vocab_size * shape.dim)  # the codes'

    def configure(self, size: str, **overrides: Any) -> Any:
        """Overrides: fields of the config, or `image_size` in pixels (256, 384, 512, ...)."""
        if "image_size" in overrides:
            side, rest = divmod(overrides.pop("image_size"), PIXELS_A_TOKEN)
            if rest or not side:
                raise ValueError(f"image_size must be a multiple of {PIXELS_A_TOKEN} pixels, such as 256, 384 or 512")
            overrides["block_size"] = side**2
        return super().configure(size, **overrides)

    def of_length(self, length: int) -> Fields:
        return {"block_size": length}

    def small_tokenizer(self, settings: Pretrain) -> VQConfig:
        from cca_ray.models.llamagen_vq import VQConfig

        return VQConfig(
            codebook_size=settings.codebook_size,
            codebook_embed_dim=settings.code_dim,
            ch=settings.tokenizer_width,
            ch_mult=channel_multiples(settings.downsample),
            num_res_blocks=1,
            z_channels=2 * settings.tokenizer_width,
            norm_groups=8,
        )

    def codebook_of(self, tokenizer: Tokenizer) -> nn.Embedding:
        return own(tokenizer).quantize.embedding

    def quantised(self, tokenizer: Tokenizer, latents: Tensor, codebook: Codebook, step: int) -> tuple[Tensor, Tensor]:
        from torch.nn import functional as F

        from cca_ray.models.codebook import straight_through

        quantizer = own(tokenizer).quantize
        z = F.normalize(latents, dim=-1)
        codebook.revive(z.flatten(0, 1), step)
        tokens = quantizer.nearest(z)
        codebook.chosen(tokens)
        return straight_through(z, quantizer.codebook()[tokens])

    def small_model(self, tokenizer: Tokenizer, length: int) -> Fields:
        return {"block_size": length}

    def template(self, size: str) -> str:
        return "digits_s" if size in ("S", "tiny") else "digits_m"

    def space_name(self, images: str, size: str) -> str:
        return f"{images}_{size.lower()}"


def own(tokenizer: Tokenizer) -> LlamaGenVQ:
    from cca_ray.models.llamagen_vq import LlamaGenVQ

    assert isinstance(tokenizer, LlamaGenVQ)
    return tokenizer


FAMILY = LlamaGenFamily()
