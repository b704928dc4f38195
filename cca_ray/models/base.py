"""The face of a model and of its image tokenizer: all that the rest of the code knows of any family.

Shapes: B batch, L tokens an image, C width of the model, V codes of the vocabulary. The tests that every family must
pass are in `cca_ray.testing`.
"""

from abc import ABC, abstractmethod
from dataclasses import Field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from cca_ray.models.condition import Classes, Kind
from cca_ray.models.dropout import Dropout


def finite(numbers: Tensor, what: str) -> Tensor:
    """The same. ValueError if one is not finite: a NaN is nearest to the first code, and most likely of all tokens."""
    if not numbers.isfinite().all():
        raise ValueError(f"{what} gives numbers that are not finite: its weights are damaged, or have diverged")
    return numbers


class ModelConfig(Protocol):
    """A frozen dataclass, stored beside the weights; its other fields are the family's own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def num_classes(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def block_size(self) -> int:
        """Tokens an image, L."""


class TokenizerConfig(Protocol):
    """A frozen dataclass, stored beside the weights; its other fields are the family's own."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def downsample(self) -> int:
        """Pixels a token (the finest ones) along a side."""

    @property
    def codebook_size(self) -> int: ...
    def length(self, image_size: int) -> int:
        """Tokens an image of so many pixels a side. ValueError if it cannot be encoded."""


class Tokenizer(nn.Module, ABC):
    """Images <-> tokens. `grey`: the byte value of a pixel of 0, with which the official sampler rounds.

    `bare_file`: whether the official code takes a file for a state dict, and not for one under "model".
    """

    config: TokenizerConfig
    grey: float
    bare_file: ClassVar[bool] = False

    def __init__(self, config: TokenizerConfig):
        super().__init__()
        self.config = config

    @abstractmethod
    def encode(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] in [-1, 1] -> tokens [B, L]. ValueError if the latents are not finite."""

    @abstractmethod
    def decode(self, tokens: Tensor) -> Tensor:
        """tokens [B, L] -> images [B, 3, H, W], about [-1, 1]."""

    @abstractmethod
    def latents(self, images: Tensor) -> Tensor:
        """What is quantised, in the shape that suits the family. Only training of a small base calls it."""

    @abstractmethod
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Quantised latents -> images [B, 3, H, W], not clamped. Only training of a small base calls it."""


def channels_last(tokenizer: Tokenizer) -> None:
    """Lay its convolutions out as their fast kernels want them, which changes images by rounding."""
    tokenizer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


class Model(nn.Module, ABC):
    """`model(condition, tokens [B, L]) -> logits [B, L, V]`: row t predicts token t.

    A condition is a batch of what the model `takes`: labels [B], from 0 to `null_label`, which is no class: the null
    condition; or `TextFeatures`. Its type is left open below, for each family takes one kind; most call it `labels`.

    Names of parameters are those of the official files. A buffer that no checkpoint holds is not persistent. `exact`:
    how names end of what is sampled in float32 even where the weights are in bfloat16. `bare_file`: see `Tokenizer`.
    """

    config: ModelConfig
    exact: ClassVar[tuple[str, ...]] = ()
    bare_file: ClassVar[bool] = False

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config

    if TYPE_CHECKING:  # declared, not defined: an official file may call its last layer `head`, which this would hide

        @property
        def head(self) -> nn.Linear:
            """The last layer, from `hidden` to logits: an attribute or a property."""

    @property
    @abstractmethod
    def stack(self) -> nn.ModuleList:
        """The blocks, one after the other: the units that are cut, or computed again, to save memory.

        A block calls its parts: one whose weights are all of `nn.Linear` is cut by itself.
        """

    @property
    def takes(self) -> Kind:
        """Its kind of conditions: labels, unless a family says otherwise."""
        return Classes(self.config.num_classes)

    @property
    def null_label(self) -> int:
        """What stands for the null condition among labels, and among numbers of captions."""
        return self.config.num_classes

    @abstractmethod
    def initialize(self, generator: torch.Generator) -> None:
        """Fill the parameters as the official code does."""

    def unfilled(self) -> Self:
        """A model like this one whose weights are on `meta`, to be loaded; what no checkpoint holds is real."""
        with torch.device("meta"):
            return type(self)(self.config)

    def attach(self, tokenizer: Tokenizer) -> None:
        """Take what the model needs of its tokenizer; nothing, unless a family says so.

        ValueError if the two do not belong together.
        """
        codes = tokenizer.config.codebook_size
        if codes != self.config.vocab_size:
            raise ValueError(f"{codes} codes, but the model has {self.config.vocab_size} tokens")

    @abstractmethod
    def hidden(self, condition: Any, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        """What the head takes, of all positions at once: [B, L, C]. Dropout: on embeddings and residual branches."""

    def hidden_in_order(self, places: Tensor, condition: Any, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        """The same of tokens that come in an order of their own: `places` [B, L] says where in the image each lies.

        Row t predicts the t-th that comes. Only a model whose family has `any_order` can.
        """
        raise NotImplementedError(f"{type(self).__name__} supports raster order only")

    def forward(self, condition: Any, tokens: Tensor, dropout: Dropout | None = None) -> Tensor:
        """Logits [B, L, V] in float32, row t predicting token t."""
        return self.head(self.hidden(condition, tokens, dropout)).float()

    @property
    @abstractmethod
    def decode_steps(self) -> list[int]:
        """How many tokens each decoding step yields; L in all."""

    @abstractmethod
    def new_cache(self, batch: int) -> Any:
        """Room for what decoding `batch` sequences keeps, in the weights' dtype, on their device.

        The kind is the family's own; a step of a shallow copy leaves the original good for the same step.
        """

    @property
    @abstractmethod
    def cache_bytes(self) -> int:
        """What the cache's keys and values take for one sequence."""

    @abstractmethod
    def decode(self, condition: Any, last_tokens: Tensor | None, step: int, cache: Any) -> Tensor:
        """Logits [B, count, V] of a step, given the tokens of the step before [B, count] (None at step 0)."""

    def guidance_at(self, scale: float, step: int) -> float:
        """The guidance of a decoding step of a sample at `scale`, in uncond + s (cond - uncond): the same at all."""
        return scale
