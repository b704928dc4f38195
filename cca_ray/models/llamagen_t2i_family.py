"""LlamaGen's text-conditional models as a family: the tokenizer is LlamaGen's own."""

from __future__ import annotations

from cca_ray.models.family import Parts
from cca_ray.models.llamagen_family import SHAPES, SIZES, LlamaGenFamily

# S and M are ours: the embedded digits. Of XL the files are published, for 256 and for 512 pixels.
T2I_SIZES = {size: SIZES[size] for size in ("S", "M", "XL")}
T2I_SHAPES = {
    "vocab_size": SHAPES["vocab_size"],
    "dim": SHAPES["dim"],
    "cls_token_num": ("cls_embedding.uncond_embedding", 0, 0),
    "caption_dim": ("cls_embedding.uncond_embedding", 1, 0),
}


class LlamaGenT2IFamily(LlamaGenFamily):
    name = "llamagen_t2i"
    sizes = T2I_SIZES
    shapes = T2I_SHAPES
    image_size = 256
    augmentations = ("centre",)  # as its training script, which knows no other
    text_positions = 120
    official_codes = False
    eager = None  # not counted
    small_sizes = ()  # `pretrain` makes bases of classes

    def parts(self) -> Parts:
        from cca_ray.models.llamagen_t2i import LlamaGenT2I, LlamaGenT2IConfig
        from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig

        return Parts(LlamaGenT2I, LlamaGenT2IConfig, LlamaGenVQ, VQConfig)


FAMILY = LlamaGenT2IFamily()
