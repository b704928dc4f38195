"""What a trial and its scores should take on a card, by arithmetic: no card has measured it (docs/scale.md)."""

from dataclasses import dataclass

import torch

from cca_ray.cluster.placement import CARDS, Load, accelerator_of, exchange_seconds
from cca_ray.config import StudyConfig
from cca_ray.evaluation.protocol import SHARD
from cca_ray.evaluation.sampler import CACHE_BYTES, GRAPH_BYTES, images_at_a_time
from cca_ray.models.family import Eager, family_of
from cca_ray.models.official import parameters
from cca_ray.placement_config import Placement

INCEPTION_GFLOP = 11.4  # an image, counted by torch's FlopCounterMode
MATRIX_SHARE = 0.60  # of the peak, in the products of matrices of training; an assumption, as the next three
MEMORY_SHARE = 0.80  # of the bandwidth, in the kernels between them
LAUNCH_S = 5e-6  # from one launch to the next: what a kernel of a decoding step takes at least
SAMPLING_MFU = 0.10  # share of the peak in decoding tokens and images, as docs/imagenet.md assumes


@dataclass(frozen=True)
class Size(Load):
    """A model size, counted on the model itself."""

    config: StudyConfig
    eager: Eager
    once: int  # parameters that tokens do not meet: see `Family.met_once`
    codes: int
    passes: int  # of the model, to decode an image's tokens
    cache_bytes: int  # keys and values of one sequence in bfloat16

    @property
    def name(self) -> str:  # of its search space
        return self.config.name

    @property
    def family(self) -> str:
        return self.config.base.family

    @property
    def forward_flop(self) -> float:
        """Of one sequence: 2 a parameter and token, and attention. For LlamaGen within 4 % of 2·N·tokens."""
        return self.tokens * (2.0 * (self.parameters - self.once) + 4.0 * self.tokens * self.width * self.layers)

    @property
    def forward_bytes(self) -> float:
        """Of one sequence, a third of what training moves there and back."""
        channels = self.width * self.layers * self.eager.channel_bytes
        return self.tokens * (channels + self.codes * self.eager.logit_bytes) / 3


def size_of(config: StudyConfig) -> Size | None:
    """None of sizes that are not official ones, and of families that have not been counted."""
    family = family_of(config.base.family)
    if family.eager is None or config.base.embedded or config.base.size in {*family.small_sizes, *family.own_sizes()}:
        return None
    shape = family.official_shape(config.base.size)
    with torch.device("meta"):
        model = family.parts().model(shape).bfloat16()
    return Size(
        parameters(model),
        len(model.stack),
        shape.dim,
        shape.block_size,
        config,
        family.eager,
        family.met_once(shape),
        shape.vocab_size,
        len(model.decode_steps),
        model.cache_bytes,
        activation_bytes=family.kept_bytes(shape),
    )


def training_seconds(size: Size, way: Placement, pairs: float, passes: int = 6) -> float:
    """Of so many pairs with forward passes of one sequence each: three for each of a pair's two (6·N·D).

    Products of matrices and the kernels between them take turns. What workers exchange, at every micro-batch if they
    are parted and else at every step, is hidden behind a micro-batch as far as it goes.
    """
    type_ = accelerator_of(way)
    card, bandwidth = CARDS[type_], MEMORY_SHARE * CARDS[type_].bandwidth_tb_s * 1e12
    pair = passes * (size.forward_flop / (MATRIX_SHARE * card.tflops * 1e12) + size.forward_bytes / bandwidth)
    together = way.micro_batch or 1  # pairs
    waiting = max(0.0, exchange_seconds(size, card, way.workers) - together * pair)
    a_step = size.config.train.global_batch / way.workers
    return pairs / way.workers * (pair + waiting / (together if way.strategy == "fsdp" else a_step))


def image_seconds(size: Size, type_: str, guided: bool = False) -> float:
    """Tokens, pixels and features of one image on one GPU; guidance doubles the tokens' part.

    Tokens take the longest of arithmetic (2·N a token), launches and memory: at every pass the keys and values, half
    filled on average, and, as the launches, once for all images of a batch, the weights.
    """
    branches = 1 + guided
    together = images_at_a_time(SHARD, branches * size.cache_bytes, CACHE_BYTES - GRAPH_BYTES)
    read = size.passes * (branches * size.cache_bytes / 2 + 2.0 * size.parameters / together)
    launches = size.passes * size.eager.launches(size.layers) / together
    compute = SAMPLING_MFU * CARDS[type_].tflops * 1e12
    tokens = (
        branches * size.forward_flop / compute,
        read / (CARDS[type_].bandwidth_tb_s * 1e12),
        launches * LAUNCH_S,
    )
    return max(tokens) + (size.eager.decoder_gflop + INCEPTION_GFLOP) * 1e9 / compute
