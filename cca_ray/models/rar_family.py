"""RAR (Yu et al. 2024) as a family, with the MaskGIT-VQGAN tokenizer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cca_ray.models.family import Eager, Family, Fields, Parts, channel_multiples

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cca_ray.config import Pretrain
    from cca_ray.models.base import Tokenizer
    from cca_ray.models.codebook import Codebook
    from cca_ray.models.maskgit_vqgan import MaskGITConfig, MaskGITVQGAN


BARE = dict(spare_places=2, spare_steps=2)  # tables of small models have no rows that nothing uses
SIZES = {
    "tiny": dict(n_layer=2, n_head=1, dim=6, mlp_dim=24, **BARE),  # ours, as S: the embedded digits
    "S": dict(n_layer=2, n_head=2, dim=16, mlp_dim=64, **BARE),  # of it, guidance makes the FID of digits worse
    "small": dict(n_layer=3, n_head=4, dim=40, mlp_dim=160, **BARE),  # 0.1 M; these three are for one's own images
    "medium": dict(n_layer=5, n_head=4, dim=104, mlp_dim=416, **BARE),  # 1.1 M
    "large": dict(n_layer=6, n_head=8, dim=208, mlp_dim=832, **BARE),  # 4.9 M
    "B": dict(n_layer=24, n_head=16, dim=768, mlp_dim=3072),  # 261 M parameters
    "L": dict(n_layer=24, n_head=16, dim=1024, mlp_dim=4096),  # 462 M
    "XL": dict(n_layer=32, n_head=16, dim=1280, mlp_dim=5120),  # 955 M
    "XXL": dict(n_layer=40, n_head=16, dim=1408, mlp_dim=6144),  # 1.5 B
}
SHAPES = {
    "dim": ("lm_head.weight", 1, 0),
    "vocab_size": ("lm_head.weight", 0, 0),
    "mlp_dim": ("blocks.0.mlp.fc1.weight", 0, 0),
}


class RARFamily(Family):
    name = "rar"
    sizes = SIZES
    passes = "one forward pass per token"
    eager = Eager(719, 60, 24, 25, decoder_gflop=187)
    any_order = True
    layers = ("n_layer", "blocks.")
    shapes = SHAPES
    image_size = 256
    augmentations = ("ten-crop-1.1",)
    small_sizes = ("tiny", "S")

    def parts(self) -> Parts:
        from cca_ray.models.maskgit_vqgan import MaskGITConfig, MaskGITVQGAN
        from cca_ray.models.rar import RAR, RARConfig

        return Parts(RAR, RARConfig, MaskGITVQGAN, MaskGITConfig)

    def kept_bytes(self, shape: Any) -> float:
        """Two tensors as wide as the MLP, in bfloat16, and the rest, half of it for what modulates every position."""
        return float(67 + 4 * shape.mlp_dim / shape.dim)

    def met_once(self, shape: Any) -> int:
        """Codes with the mask token, both tables of places, steps: their rows beyond the tokens, too."""
        tokens = shape.block_size
        rows = shape.vocab_size + 1 + 2 * (tokens + 1024) + tokens + 100
        return super().met_once(shape) + int(rows * shape.dim)

    def content_of(self, state: Mapping[str, Tensor]) -> Fields:
        """Tokens an image, where the tables are as long as the official ones or as those of small models."""
        from cca_ray.models.rar import PREFIX, SPARE_PLACES, SPARE_STEPS

        found = super().content_of(state)
        if "vocab_size" in found and "embeddings.weight" in state:  # beside the codes: a mask token, classes, null
            found["num_classes"] = len(state["embeddings.weight"]) - found["vocab_size"] - 2
        if "dim" in found and "blocks.0.attn.q_norm.weight" in state:
            found["n_head"] = found["dim"] // len(state["blocks.0.attn.q_norm.weight"])
        if "pos_embed" in state and "timesteps_embeddings" in state:
            places, steps = (state[name].shape[1] for name in ("pos_embed", "timesteps_embeddings"))
            for spare_places, spare_steps in ((SPARE_PLACES, SPARE_STEPS), (PREFIX, PREFIX)):
                if places - spare_places == steps - spare_steps > 0:
                    found |= dict(block_size=places - spare_places, spare_places=spare_places, spare_steps=spare_steps)
        return found

    def of_length(self, length: int) -> Fields:
        return {"block_size": length}

    def small_tokenizer(self, settings: Pretrain) -> MaskGITConfig:
        from cca_ray.models.maskgit_vqgan import MaskGITConfig

        return MaskGITConfig(
            codebook_size=settings.codebook_size,
            z_channels=settings.code_dim,
            hidden_channels=settings.tokenizer_width,
            channel_mult=channel_multiples(settings.downsample),
            num_res_blocks=1,
            norm_groups=8,
        )

    def codebook_of(self, tokenizer: Tokenizer) -> nn.Embedding:
        return own(tokenizer).quantize.embedding

    def quantised(self, tokenizer: Tokenizer, latents: Tensor, codebook: Codebook, step: int) -> tuple[Tensor, Tensor]:
        from cca_ray.models.codebook import straight_through

        quantizer = own(tokenizer).quantize
        codebook.revive(latents.flatten(0, 1), step)
        tokens = quantizer.nearest(latents)
        codebook.chosen(tokens)
        return straight_through(latents, quantizer.embedding(tokens))

    def small_model(self, tokenizer: Tokenizer, length: int) -> Fields:
        return {"block_size": length}

    def template(self, size: str) -> str:
        return "digits_rar"


def own(tokenizer: Tokenizer) -> MaskGITVQGAN:
    from cca_ray.models.maskgit_vqgan import MaskGITVQGAN

    assert isinstance(tokenizer, MaskGITVQGAN)
    return tokenizer


FAMILY = RARFamily()
