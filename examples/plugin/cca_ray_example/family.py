"""A model family: `mixer`, with LlamaGen's tokenizer. Nothing here imports torch before a model is wanted."""

from __future__ import annotations

from cca_ray.models.family import Parts
from cca_ray.models.llamagen_family import LlamaGenFamily

# From small to large: fields of the model's config.
SIZES = {"S": dict(n_layer=2, dim=32), "M": dict(n_layer=4, dim=64)}

# What shapes in a checkpoint say of its model: field of the config -> tensor, axis, what to add.
SHAPES = {
    "num_classes": ("classes.weight", 0, -1),  # the last row is the null condition
    "vocab_size": ("tokens.weight", 0, 0),
    "dim": ("tokens.weight", 1, 0),
    "block_size": ("positions", 0, 0),
}


class MixerFamily(LlamaGenFamily):
    """The tokenizer is LlamaGen's, and so is the way in which a small base is made: both are inherited."""

    name = "mixer"
    sizes = SIZES
    small_sizes = ("S", "M")  # those that `pretrain` makes, and an embedded base has
    layers, shapes = ("n_layer", "layers."), SHAPES  # how a checkpoint is recognised
    passes = "one small pass a token"  # what sampling costs, in words
    official_codes = False  # there are no token files of an official code to import

    def parts(self) -> Parts:
        from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig
        from cca_ray_example.mixer import Mixer, MixerConfig

        return Parts(Mixer, MixerConfig, LlamaGenVQ, VQConfig)

    def template(self, size: str) -> str:
        """The shipped search space that the one of a small base starts from."""
        return "digits_s"

    def space_name(self, images: str, size: str) -> str:
        return f"{images}_mixer_{size.lower()}"
