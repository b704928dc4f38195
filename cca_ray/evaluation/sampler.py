"""Sampling token sequences, with and without guidance, as small pure functions.

One random stream per image: image `index` of `seed` is made from its own uniform numbers, one per token,
so it is the same image whatever the batch, the number of workers or the number of images asked for; and
two models sampled with one seed differ only where their probabilities do (common random numbers). That is so
in float32 on a CPU. Elsewhere kernels of another batch size or card round otherwise, and one flipped token
changes the rest of its image: in bfloat16 another card is another draw of the same distribution.
"""

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from cca_ray.evaluation.decoder import Decoder
from cca_ray.models.base import Model, Tokenizer, finite
from cca_ray.models.condition import Condition, joined, nulled

GRAPH_BYTES = 2**31  # of the next, where a step's buffers stay with its graph: at most 1.7 GiB for official models
BESIDE_BYTES = 2**32  # what else is held at a time: a step, drawing its tokens, decoding images, their features
CACHE_BYTES = 2**34  # of keys and values at a time: 3B at 384 pixels takes 184 MB an image, twice that guided
DRAWN = 2**24  # logits that tokens are drawn from at a time: VAR's last scale has 2²⁰ an image, eight bytes each here
# Of attention in decoding: all but cuDNN's, which plans anew for every number of keys, and each step has another.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
PIXELS_AT_A_TIME = 2**20  # of the images that the tokenizer decodes at once: LlamaGen's takes 2.5 kB a pixel, VAR's 3.2


@dataclass(frozen=True)
class Decoding:
    """How probabilities become tokens. `guidance_scale` s: uncond + s (cond - uncond); 1 is guidance-free.

    In VAR it grows from 1 at the first scale to s at the last: see the model's `guidance_at`. With a `guidance_power`
    it grows in every family from 1 towards s: see `cosine_guidance`.
    """

    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0  # 0: all
    top_p: float = 1.0  # 1: all
    guidance_power: float = 0.0  # 0: as the model does it
    last_temperature: float | None = None  # that of the last step, towards which it goes evenly; None: the same at all

    def guidance_at(self, model: Model, step: int) -> float:
        """Of a decoding step."""
        if self.guidance_power:
            return cosine_guidance(self.guidance_scale, self.guidance_power, step, len(model.decode_steps))
        return model.guidance_at(self.guidance_scale, step)

    def at(self, step: int, steps: int) -> "Decoding":
        """The same with the temperature of this one of so many steps."""
        if self.last_temperature is None or steps < 2:
            return self
        gone = step / (steps - 1)
        return replace(self, temperature=(1 - gone) * self.temperature + gone * self.last_temperature)


def cosine_guidance(scale: float, power: float, step: int, steps: int) -> float:
    """RAR's: 1 + (s - 1) (1 - cos(pi (k / N)^power)) / 2 at step k of N; the higher the power, the later it grows."""
    return 1 + (scale - 1) * (1 - math.cos(math.pi * (step / steps) ** power)) / 2


def uniforms(seed: int, indices: np.ndarray, length: int) -> Tensor:
    """The streams of the given images: uniform numbers in [0, 1), [len(indices), length] float64."""
    streams = [np.random.Generator(np.random.Philox(key=[seed, int(i)])).random(length) for i in indices]
    return torch.from_numpy(np.stack(streams)) if streams else torch.empty(0, length, dtype=torch.float64)


def labels_of(kind: Literal["balanced", "random"], seed: int, indices: np.ndarray, num_classes: int) -> Tensor:
    """Class of each image index, [len(indices)].

    `balanced`: the classes in turn, so that every prefix is as balanced as it can be.  `random`: drawn by
    (seed, index), as the official LlamaGen sampler draws them; a FID of it has a larger spread.
    """
    if kind == "balanced":
        return torch.from_numpy(np.asarray(indices) % num_classes)
    streams = (np.random.Generator(np.random.Philox(key=[seed, int(i)], counter=[0, 0, 0, 1])) for i in indices)
    return torch.tensor([int(stream.integers(num_classes)) for stream in streams], dtype=torch.int64)


def filter_logits(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Set to -inf what is outside the top k or, after that, outside the nucleus of mass p. logits [..., V].

    Equals stay together, so that nothing hangs on the order of a sort; only the top k, if given, are sorted.
    """
    cut = 0 < top_k < logits.shape[-1]
    if not cut and top_p >= 1.0:
        return logits
    ordered = logits.topk(top_k if cut else logits.shape[-1]).values
    if cut:
        logits = logits.masked_fill(logits < ordered[..., -1:], -torch.inf)
    if top_p < 1.0:
        mass = (ordered - logits.logsumexp(-1, keepdim=True)).exp()
        inside = (mass.cumsum(-1) - mass <= top_p).sum(-1, keepdim=True)  # at least the first: nothing is before it
        # Of logits that are no numbers it is none: an index below 0 would end a GPU's process, not only this batch.
        logits = logits.masked_fill(logits < ordered.gather(-1, (inside - 1).clamp(min=0)), -torch.inf)
    return logits


def draw(logits: Tensor, noise: Tensor) -> Tensor:
    """Invert the cumulative distribution: logits [..., V], noise [...] in [0, 1) -> tokens [...].

    In float64, so that rounding never reaches a token of zero probability.
    """
    mass = logits.double().softmax(-1).cumsum(-1)
    target = noise.unsqueeze(-1) * mass[..., -1:]
    found = torch.searchsorted(mass, target, right=True).squeeze(-1)
    return found.clamp(max=logits.shape[-1] - 1)  # past the last only of logits that are no numbers


def pick(logits: Tensor, noise: Tensor, decoding: Decoding, scale: float) -> tuple[Tensor, Tensor]:
    """The tokens of a step, and the highest of their logits, which is not finite if any is not: [B, T] each.

    logits [B, T, V], with guidance [2B, T, V] of both branches, here at `scale`; noise [B, T]. Some rows at a time:
    of VAR's last scale all, in float64, would be 10 GiB.
    """
    batch, few = len(noise), max(1, DRAWN // logits[0].numel())
    tokens, highest = [], []
    for start in range(0, batch, few):
        rows = slice(start, min(start + few, batch))
        some = logits[rows]
        if len(logits) > batch:
            uncond = logits[batch:][rows]
            some = uncond + scale * (some - uncond)
        some = filter_logits(some / decoding.temperature, decoding.top_k, decoding.top_p)
        tokens.append(draw(some, noise[rows]))
        highest.append(some.amax(-1))
    return torch.cat(tokens), torch.cat(highest)


def room_for_cache(device: torch.device, graphs: bool) -> int:
    """Bytes of keys and values at a time: `CACHE_BYTES`, less where a card has less memory free."""
    most = CACHE_BYTES - (GRAPH_BYTES if graphs else 0)
    if device.type != "cuda":
        return most
    free, _ = torch.cuda.mem_get_info(device)
    return max(GRAPH_BYTES, min(most, free - BESIDE_BYTES))


def images_at_a_time(batch: int, cache_bytes: int, cache: int = CACHE_BYTES) -> int:
    """How many of a batch's images are sampled together: `cache_bytes` of keys and values each, twice that guided.

    Parts are of one size where that costs little.
    """
    most = max(1, cache // cache_bytes)
    if batch <= most:
        return batch
    even = next(size for size in range(most, 0, -1) if batch % size == 0)
    return even if 2 * even >= most else most


@torch.inference_mode()
def sample_tokens(
    model: Model,
    condition: Condition,
    noise: Tensor,
    decoding: Decoding,
    cache: int = CACHE_BYTES,
    decoder: Decoder | None = None,
) -> Tensor:
    """A condition of B images, noise [B, L] -> tokens [B, L]. Guidance runs both branches in one batch of 2B.

    As many at a time as `cache` bytes of keys and values allow; streams are the images' own, so no image changes.
    `decoder`: the model's, kept from batch to batch where it has something to keep.
    ValueError if the logits are not finite.
    """
    decoder = decoder or Decoder(model)
    guided = decoding.guidance_scale != 1.0
    batch = len(condition)
    at_a_time = images_at_a_time(batch, model.cache_bytes * (2 if guided else 1), cache)
    if batch > at_a_time:
        parts = zip(condition.split(at_a_time), noise.split(at_a_time), strict=True)
        return torch.cat([sample_tokens(model, *part, decoding, cache, decoder) for part in parts])
    if guided:
        condition = joined(condition, nulled(condition, model.null_label))
    decoder.begin(condition)
    tokens: list[Tensor] = []
    highest: list[Tensor] = []
    position = 0
    with sdpa_kernel(KERNELS):
        for step, count in enumerate(model.decode_steps):
            last = None
            if tokens:
                last = torch.cat([tokens[-1], tokens[-1]]) if guided else tokens[-1]
            logits = decoder.step(step, last)
            cut, scale = decoding.at(step, len(model.decode_steps)), decoding.guidance_at(model, step)
            drawn, highs = pick(logits, noise[:, position : position + count], cut, scale)
            tokens.append(drawn)
            highest.append(highs)
            position += count
    decoder.end()
    finite(torch.cat(highest, dim=1), "the model")  # once a batch: a GPU would wait for the answer at each step
    return torch.cat(tokens, dim=1)


@torch.inference_mode()
def decode_images(
    tokenizer: Tokenizer, tokens: Tensor, side: int | None = None, pixels: int = PIXELS_AT_A_TIME
) -> Tensor:
    """tokens [B, L] -> images [B, H, W, 3] uint8, rounded as the family's own sampler does.

    `side`: pixels to which they are resized before that, bicubically and without antialiasing, again as there.
    `pixels`: about as many at a time.
    """
    at_a_time = max(1, pixels // (tokens.shape[1] * tokenizer.config.downsample**2))
    return torch.cat([to_pixels(tokenizer.decode(part), tokenizer.grey, side) for part in tokens.split(at_a_time)])


def to_pixels(images: Tensor, grey: float, side: int | None) -> Tensor:
    """[B, 3, S, S], about [-1, 1] -> [B, H, W, 3] uint8; `grey` is the byte value of 0."""
    if side is not None and side != images.shape[-1]:
        images = F.interpolate(images, size=(side, side), mode="bicubic")
    return (127.5 * images + grey).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)


def image_grid(images: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
    """images [N, H, W, 3] uint8, row after row -> one picture [H', W', 3], enlarged to at least 24 pixels an image."""
    zoom = max(1, -(-24 // images.shape[1]))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    n, height, width, _ = images.shape
    rows = -(-n // columns)
    canvas = np.full((rows * (height + gap) + gap, columns * (width + gap) + gap, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = gap + i // columns * (height + gap), gap + i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
