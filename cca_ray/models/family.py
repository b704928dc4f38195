"""What a model family is: one object, which a file of its own registers.

Importing a family's file must not import torch: sizes and words are asked for where no model is. Its classes come from
`parts`, when they are wanted.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from cca_ray.registry import FAMILIES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from cca_ray.config import Pretrain
    from cca_ray.models.base import Model, Tokenizer
    from cca_ray.models.codebook import Codebook

# Sizes of bases of someone's own images, about 0.1, 1 and 5 M parameters; for short S, M and L. In files they have
# names of their own: there S and M are tiny models for the embedded digits, and L is LlamaGen's official one.
OWN_SIZES = ("small", "medium", "large")

Fields = dict[str, Any]  # of a model's or tokenizer's config, by name: each family has its own


def letter(size: str) -> str:
    """How people name a size: S for small; others as they are called."""
    return size[0].upper() if size in OWN_SIZES else size


@dataclass(frozen=True)
class Eager:
    """What official models of a family do besides the products of matrices of training, uncompiled, as counted.

    Training, there and back: bytes that kernels other than products of matrices and attention read and write.
    """

    channel_bytes: float  # a channel, layer and token; LlamaGen's has dropout, which is 270 of them
    logit_bytes: float  # a number of the vocabulary and token
    layer_kernels: int  # a layer and decoding step
    step_kernels: int  # a decoding step, its draws included
    decoder_gflop: float  # of the tokenizer, from an image's tokens to its pixels

    def launches(self, layers: int) -> int:
        return layers * self.layer_kernels + self.step_kernels


@dataclass(frozen=True)
class Parts:
    """The classes of a family. The configs are frozen dataclasses: see `base.ModelConfig`, `base.TokenizerConfig`."""

    model: type[Model]
    model_config: type[Any]
    tokenizer: type[Tokenizer]
    tokenizer_config: type[Any]


class Family(ABC):
    """A kind of autoregressive image generator with its tokenizer. What has no default must be given.

    The model's own face is `base.Model`, guidance a step included; the tokenizer's `base.Tokenizer`.
    """

    kind = "family"
    name: str
    sizes: Mapping[str, Mapping[str, Any]]  # from small to large: fields of the model's config
    passes: str  # what sampling an image without guidance costs, in words: "one forward pass per token"
    needs_codes: bool = False  # whether a model is of no use before it is given its tokenizer
    activation_bytes: float = 57  # see `kept_bytes`; of all sizes
    eager: Eager | None = None  # what `plan` estimates the time of official sizes from; None: it does not
    any_order: bool = False  # whether a model can be trained on tokens in any order: see `Model.hidden_in_order`

    # How a file is recognised.
    layers: tuple[str, str]  # the config's field for their number, their prefix in the file
    shapes: Mapping[str, tuple[str, int, int]]  # the config's field -> a tensor, an axis, what to add

    # Defaults of `prepare`.
    image_size: int  # pixels along a side
    augmentations: tuple[str, ...]  # see `data.images.crops_of`
    text_positions: int = 0  # of a text, of its official models; 0: their conditions are classes
    official_codes: bool = False  # whether the official code leaves tokens in .npy files, for `--npy`

    # Small bases, which `pretrain` makes; without sizes the methods below are not called. Those of the embedded digits;
    # of someone's own images too, unless some of `OWN_SIZES` are among `sizes`.
    small_sizes: tuple[str, ...] = ()

    @abstractmethod
    def parts(self) -> Parts:
        """Its classes."""

    def configure(self, size: str, **overrides: Any) -> Any:
        """The config of a size, with some fields replaced. ValueError for an unknown size or override."""
        if size not in self.sizes:
            raise ValueError(f"unknown size {size!r} of {self.name}: one of {', '.join(self.sizes)}")
        kind = self.parts().model_config
        allowed = {f.name for f in fields(kind)}
        if unknown := sorted(set(overrides) - allowed):
            raise ValueError(f"unknown override {unknown[0]!r} of {self.name}: one of {', '.join(sorted(allowed))}")
        return kind(**{**self.sizes[size], **overrides})

    def official_shape(self, size: str) -> Any:
        """The config of an official size, for images of the usual size."""
        return self.configure(size)

    def kept_bytes(self, shape: Any) -> float:
        """At most so many does training in bfloat16 keep for the backward pass, a channel, layer and token.

        With dropout, eagerly computed: a compiled one keeps two less. Counted by hooks on saved tensors.
        """
        return self.activation_bytes

    def met_once(self, shape: Any) -> int:
        """How many parameters of a model of this config tokens do not meet, or an image only once."""
        return 1001 * int(shape.dim)  # the classes'

    def content_of(self, state: Mapping[str, Tensor]) -> Fields:
        """What names and shapes in an official file say of its model: fields of the config."""
        field, prefix = self.layers
        found: Fields = {field: len({name.split(".")[1] for name in state if name.startswith(prefix)})}
        for key, (name, axis, extra) in self.shapes.items():
            if name in state and state[name].ndim > axis:
                found[key] = state[name].shape[axis] + extra
        return found

    def own_sizes(self) -> tuple[str, ...]:
        """Sizes of bases of someone's own images, from small to large."""
        return tuple(size for size in OWN_SIZES if size in self.sizes) or self.small_sizes

    def of_length(self, length: int) -> Fields:
        """Fields of the config of a model for so many tokens an image, where the file does not say how many."""
        return {}

    def small_tokenizer(self, settings: Pretrain) -> Any:
        """The config of a small base's tokenizer."""
        raise NotImplementedError

    def codebook_of(self, tokenizer: Tokenizer) -> nn.Embedding:
        """Its codes, one a row."""
        raise NotImplementedError

    def quantised(self, tokenizer: Tokenizer, latents: Tensor, codebook: Codebook, step: int) -> tuple[Tensor, Tensor]:
        """A step of a small tokenizer's training: straight-through latents for the decoder, and the quantiser's loss.

        The codebook is told what was chosen, and at some steps revives codes that nothing chose.
        """
        raise NotImplementedError

    def small_model(self, tokenizer: Tokenizer, length: int) -> Fields:
        """Fields of the config of a small base's model beside `vocab_size` and `num_classes`; `length`: its tokens."""
        raise NotImplementedError

    def template(self, size: str) -> str:
        """The shipped search space whose settings a small base's own starts from."""
        return "digits_s"

    def space_name(self, images: str, size: str) -> str:
        """What the search space of a small base made from these images is called."""
        return f"{images}_{self.name}_{size.lower()}"


def channel_multiples(downsample: int) -> tuple[int, ...]:
    """Widths of a small tokenizer's levels, as multiples of the first: one level more for each halving."""
    return (1,) + (2,) * int(math.log2(downsample))


def family_of(name: str) -> Family:
    """ValueError, naming those that there are, if there is none of this name."""
    found = FAMILIES.get(name)
    if not isinstance(found, Family):
        raise ValueError(f"family {name!r}: expected an object of a class made from cca_ray.models.family.Family")
    return found
