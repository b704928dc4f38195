"""Sampling of tokens, ours and the official one; tokens <-> images; features, Fréchet distance, a whole block."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import torch

from benchmarks.fid import features as correlated
from benchmarks.fid import official as official_distance
from benchmarks.gpu.made import Here, Shape, extractor_of, model_of, scoring_of, study_of, tokenizer_of
from benchmarks.gpu.training import Figures
from benchmarks.peers import official_vq, synchronised
from benchmarks.sample import Sampler, official, ours, rates
from cca_ray.cluster.device import free_memory
from cca_ray.data.encode import PIXELS_AT_A_TIME
from cca_ray.data.tokens import encode_images, to_input
from cca_ray.errors import is_out_of_memory
from cca_ray.evaluation.decoder import Decoder, GraphDecoder
from cca_ray.evaluation.features import extract
from cca_ray.evaluation.fid import frechet_distance
from cca_ray.evaluation.protocol import SHARD
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.evaluation.sampler import decode_images, room_for_cache
from cca_ray.evaluation.scoring import protocol_of, score
from cca_ray.models.base import Model, channels_last
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import Placement
from cca_ray.testing.fake_graphs import FakeRecorder

ROUNDS = 3
CROPS = 10  # an image, as the official extractor encodes them
BLOCK = 50_000  # images of the final comparison


def half(model: Model, here: Here) -> Model:
    """As a study samples from it on a card."""
    return for_sampling(model, Placement(precision="bfloat16"), Group(device=here.device))


def images_a_second(sample: Sampler, here: Here, count: int = SHARD) -> float:
    """At the median of a few rounds after the first."""
    labels = torch.arange(4 if here.dry else count, device=here.device) % 1000
    return statistics.median(rates({"": sample}, labels, 1 if here.dry else ROUNDS)[""])


def sampling(shape: Shape, here: Here, scale: float, graphs: bool) -> Figures:
    """Tokens of a shard, in bfloat16, as many at a time as a study samples: graphs take room from keys and values."""
    model = half(model_of(shape.at(here), here.device), here)
    decoder = Decoder(model)
    if graphs:
        decoder = GraphDecoder(model) if here.device.type == "cuda" else GraphDecoder(model, FakeRecorder)
    cache = room_for_cache(here.device, graphs)
    return {"images/s": images_a_second(ours(model, scale, 4 if here.dry else SHARD, decoder, cache), here)}


def official_sampling(shape: Shape, here: Here) -> Figures:
    """Guidance-free: LlamaGen's in bfloat16, VAR's under half precision's autocast, as their scripts have it.

    As many images at a time as ours, or half of them as often as memory runs out.
    """
    assert here.peer is not None
    model, count = model_of(shape.at(here), here.device), SHARD
    llamagen = isinstance(model, LlamaGen)
    sample = official(half(model, here) if llamagen else model, here.peer, 1.0)
    narrow = torch.float16 if here.device.type == "cuda" else torch.bfloat16
    while True:
        try:
            with torch.autocast(here.device.type, narrow, enabled=not llamagen):
                return {"images/s": images_a_second(sample, here, count), "images at a time": count}
        except Exception as error:
            if not is_out_of_memory(error) or count == 1:
                raise
        count //= 2
        free_memory(here.device)


def timed(run: Callable[[], object], here: Here) -> float:
    """Seconds at the median of a few rounds after the first."""
    seconds = []
    for _ in range(2 if here.dry else ROUNDS + 1):
        synchronised(here.device)
        started = time.perf_counter()
        run()
        synchronised(here.device)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


def some_crops(shape: Shape, here: Here) -> np.ndarray:
    """[N, crops, S, S, 3] uint8."""
    count = 2 if here.dry else 32
    return np.random.default_rng(0).integers(
        0, 256, (count, CROPS, shape.image_size, shape.image_size, 3), dtype=np.uint8
    )


def encoding(shape: Shape, here: Here) -> Figures:
    """Of ten crops an image, cut already, as `cca_ray.data.encode.Encode` does it."""
    shape = shape.at(here)
    crops, tokenizer = some_crops(shape, here), tokenizer_of(shape, here.device)
    channels_last(tokenizer)
    at_a_time = max(1, PIXELS_AT_A_TIME[here.device.type] // shape.image_size**2)
    flat = crops.reshape(-1, *crops.shape[2:])
    return {"images/s": len(crops) / timed(lambda: list(encode_images(tokenizer, flat, at_a_time)), here)}


def official_encoding(shape: Shape, here: Here) -> Figures:
    """The official extractor's loop: an image's ten crops as a batch, two files an image. Its network is VQ-16."""
    assert here.peer is not None
    crops = some_crops(replace(shape, pixels=32 if here.dry else 0), here)
    network = official_vq(tokenizer_of(Shape(shape.space), here.device).state_dict(), here.peer / "LlamaGen")
    network = network.to(here.device)

    def run() -> None:
        for i, views in enumerate(crops):
            with torch.no_grad():
                codes = network.encode(to_input(views).to(here.device))[2][2]
            np.save(f"{folder}/{i}.npy", codes.reshape(1, CROPS, -1).cpu().numpy())
            np.save(f"{folder}/label-{i}.npy", np.array([0]))

    with tempfile.TemporaryDirectory() as folder:
        return {"images/s": len(crops) / timed(run, here)}


def decoding(shape: Shape, here: Here) -> Figures:
    """Tokens -> pixels, in the tokenizer's own float32."""
    shape = shape.at(here)
    tokenizer, count = tokenizer_of(shape, here.device), 4 if here.dry else SHARD
    length, codes = tokenizer.config.length(shape.image_size), tokenizer.config.codebook_size
    tokens = torch.arange(count * length, device=here.device).view(count, -1) % codes
    return {"images/s": count / timed(lambda: decode_images(tokenizer, tokens, shape.image_size), here)}


def inception(shape: Shape, here: Here) -> Figures:
    """Features of images of 256 pixels, in full float32."""
    network, count = extractor_of(shape.at(here), here.device), 1 if here.dry else SHARD
    side = network.image_size or 256
    images = torch.arange(count * side * side * 3, device=here.device).view(count, side, side, 3).to(torch.uint8)
    return {"images/s": count / timed(lambda: extract(network, images), here)}


def distance(here: Here) -> tuple[Callable[[], float], Callable[[], float]]:
    """FID of moments, ours and scipy's way. Both compute on the machine's CPU."""
    width = 16 if here.dry else 2048
    reference, sample = (Reference.of(Moments.of(correlated(3 * width, 0, width))), correlated(3 * width, 1, width))
    moments = Moments.of(sample)
    assert reference.factor.shape == moments.covariance.shape  # made here, before the clock
    return partial(frechet_distance, moments, reference), partial(official_distance, moments, reference)


def fid(here: Here) -> Figures:
    way, peers_way = distance(here)
    return {"s": timed(way, here), "s by sqrtm": timed(peers_way, here)}


def block(shape: Shape, here: Here) -> Figures:
    """A block of 50,000 images, sampled, decoded and scored by the product: hours, from those of two shards."""
    shape = shape.at(here)
    config = study_of(shape, here, 1, 1)
    tokenizer = tokenizer_of(shape, here.device)
    scoring = scoring_of(shape, config, here, tokenizer)
    model, times = half(model_of(shape, here.device, tokenizer), here), list[float]()

    def shard_done() -> None:
        synchronised(here.device)
        times.append(time.perf_counter())

    samples = SHARD + 2 if here.dry else 3 * SHARD
    score(model, scoring, protocol_of(config, scoring, samples), Group(device=here.device), shard_done)
    seconds = (times[-1] - times[0]) / (len(times) - 1)
    return {"images/s": SHARD / seconds, "h a block": BLOCK / SHARD * seconds / 3600}
