"""A model and a study's protocol -> a score: sample, decode, extract, measure, where the weights are.

Also what that needs, loaded once a process: tokens, tokenizer, feature network, reference, models.
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cca_ray.cluster.placement import precision_of
from cca_ray.config import DEFAULT_METRICS, ResolvedStudy
from cca_ray.contracts import Score
from cca_ray.data.tokens import MANIFEST, TokenSet, read_token_set
from cca_ray.errors import ConfigError
from cca_ray.evaluation.conditions import CaptionsOfImages
from cca_ray.evaluation.decoder import Decoder, GraphDecoder, NoGraphs
from cca_ray.evaluation.features import Extractor, FeatureArrays, extract, load_extractor
from cca_ray.evaluation.jackknife import fewest_left, jackknife_groups
from cca_ray.evaluation.metric import AnyMetric, Context, Sums, metric_named, obstacle, one_by_one
from cca_ray.evaluation.protocol import SHARD, Protocol
from cca_ray.evaluation.reference import Reference
from cca_ray.evaluation.sampler import (
    PIXELS_AT_A_TIME,
    Decoding,
    decode_images,
    labels_of,
    room_for_cache,
    sample_tokens,
    uniforms,
)
from cca_ray.evaluation.thrift import Thrift
from cca_ray.models.base import Model, Tokenizer, channels_last
from cca_ray.models.condition import Condition
from cca_ray.models.family import family_of
from cca_ray.models.files import digest_of_weights
from cca_ray.models.official import load_official, load_tokenizer
from cca_ray.models.parallel import Group
from cca_ray.storage.files import State, state_of
from cca_ray.storage.mirror import pull

LOG = logging.getLogger(__name__)
GRID_IMAGES = 80  # kept for pictures


@dataclass(frozen=True)
class Scoring:
    """All that turns a model's tokens into a score."""

    tokenizer: Tokenizer
    extractor: Extractor
    reference: Reference
    num_classes: int  # 1 where conditions are captions, which come in no rounds
    image_size: int  # pixels along a side of a decoded image
    graphs: bool = False  # whether decoding steps are CUDA graphs
    metrics: tuple[AnyMetric, ...] = ()
    captions: CaptionsOfImages | None = None

    @property
    def columns(self) -> int:
        """Of a picture of samples: one a class, where there are no more than ten."""
        return 10 if self.captions else min(self.num_classes, 10)

    def drawn(self, protocol: Protocol, index: np.ndarray) -> tuple[Tensor, Condition]:
        """The conditions of these samples: labels, or numbers of captions, and what the model is given."""
        if self.captions is None:
            labels = labels_of(protocol.labels, protocol.seed, index, self.num_classes)
            return labels, labels
        numbers = self.captions.drawn(protocol.labels, protocol.seed, index)
        return numbers, self.captions.texts(numbers)


@dataclass(frozen=True)
class Scored:
    """A score, the first images [n, H, W, 3] uint8, and the type of card that drew them, where that is kept."""

    score: Score
    images: np.ndarray
    card: str = ""


@lru_cache(maxsize=2)
def kept_tokens(folder: str, state: State) -> TokenSet:
    return read_token_set(folder)


def load_tokens(folder: str) -> TokenSet:
    """Kept between the trials of one process, until it is made again."""
    return kept_tokens(folder, state_here(Path(folder) / MANIFEST))


def state_here(path: Path) -> State:
    """Of a file that is brought here if it is not: two calls, and what was read for the first serves the second."""
    if not path.exists():
        pull(path)
    return state_of(path)


@lru_cache(maxsize=2)
def load_scoring(
    family: str, tokenizer: str, features: str, reference: str, tokens: str, device: torch.device, graphs: bool,
    trust_torchscript: bool, states: tuple[State, ...],
) -> Scoring:  # fmt: skip
    """Kept between the trials of one process; `states`: of the files, of which one may be made again."""
    for path in (tokenizer, features, reference):
        pull(Path(path))
    data, statistics = load_tokens(tokens), Reference.load(reference)
    extractor = load_extractor(features, trust_torchscript)
    decoder = load_tokenizer(family, tokenizer)
    if digest_of_weights(decoder) != data.meta.tokenizer:
        raise ValueError(f"{tokenizer}: is not the tokenizer that made {tokens}; prepare the tokens with this one")
    if extractor.width != len(statistics.mean):
        raise ValueError(
            f"{reference}: statistics of {len(statistics.mean)} features, but {features} gives {extractor.width}"
        )
    captions = CaptionsOfImages(data.captions, data.labels, data.digest) if data.captions else None
    classes, size = 1 if captions else len(data.meta.class_names), data.meta.image_size
    decoder.to(device)
    if device.type == "cuda":
        channels_last(decoder)
    return Scoring(decoder, extractor.to(device), statistics, classes, size, graphs, captions=captions)


def scoring_of(config: ResolvedStudy, device: torch.device) -> Scoring:
    """ConfigError if a metric that the study asks for cannot be had."""
    files = config.base.tokenizer, config.score.features, config.score.reference
    scoring = load_scoring(
        config.base.family,
        *files,
        config.data.tokens,
        device,
        config.placement.graphs and device.type == "cuda",
        config.score.trust_torchscript,
        tuple(state_here(Path(file)) for file in (*files, f"{config.data.tokens}/{MANIFEST}")),
    )
    return replace(scoring, metrics=metrics_of(config, scoring))


def metrics_of(config: ResolvedStudy, scoring: Scoring) -> tuple[AnyMetric, ...]:
    """Those of `score.metrics`. A default one that cannot be had, and is not searched, is left out."""
    counts = [config.score.samples, *(rung.samples for rung in config.rungs)]
    fewest, found = min(fewest_left(count, scoring.num_classes) for count in counts), []
    for name in config.score.metrics:
        metric = metric_named(name)
        why = obstacle(metric, scoring.extractor.provides, scoring.reference, fewest)
        if not why:
            found.append(metric)
        elif config.score.metrics != DEFAULT_METRICS or name in config.search.metrics:
            raise ConfigError(f"{config.name}: score.metrics: {name} cannot be computed: {why}")
    return tuple(found)


def load_base(config: ResolvedStudy, checkpoint: str | None = None) -> Model:
    """The study's base, or the same architecture with another checkpoint's weights."""
    path = checkpoint or config.base.checkpoint
    meta = load_tokens(config.data.tokens).meta
    codes = config.base.tokenizer if family_of(config.base.family).needs_codes else None
    for file in (path, codes):
        if file is not None:
            pull(Path(file))
    model = load_official(config.base.family, config.base.size, path, codes, length=meta.length)
    wanted = (meta.length, meta.codebook_size, meta.kind)
    found = (model.config.block_size, model.config.vocab_size, str(model.takes))
    if found != wanted:
        raise ValueError(
            f"{path}: models {found[0]} tokens of {found[1]} codes and {found[2]}, but "
            f"{config.data.tokens} holds {wanted[0]} of {wanted[1]} and {wanted[2]}"
        )
    return model


def protocol_of(
    config: ResolvedStudy, scoring: Scoring, samples: int, guidance_scale: float = 1.0, seed: int | None = None
) -> Protocol:
    """The protocol of a score in this study; noise seed `score.seed` unless another is given.

    ValueError if the samples are not of the size that the feature network takes, or of that of the real images.
    """
    size = config.score.image_size or scoring.image_size
    wanted, real = scoring.extractor.image_size, scoring.reference.image_size
    if wanted is not None and size != wanted:
        raise ValueError(
            f"{config.score.features}: takes images {wanted} pixels wide, not {size}; see score.image_size"
        )
    if real is not None and size != real:
        raise ValueError(
            f"{config.score.reference}: statistics of images {real} pixels wide, but the samples are {size} wide; set "
            f"score.image_size={real}, or make them with prepare --reference-size {size}"
        )
    return Protocol(
        extractor=scoring.extractor.digest,
        reference=scoring.reference.digest,
        samples=samples,
        seed=config.score.seed if seed is None else seed,
        image_size=size,
        labels=config.score.labels,
        precision=precision_of(config.placement),
        resize="none" if size == scoring.image_size else "bicubic",
        guidance_scale=guidance_scale,
        temperature=config.score.temperature,
        top_k=config.score.top_k,
        top_p=config.score.top_p,
        guidance_power=config.score.guidance_power if guidance_scale != 1 else 0.0,
        last_temperature=config.score.last_temperature,
        plugins=tuple(map(str, config.plugins_used())),
        captions=scoring.captions.digest if scoring.captions else "",
    )


def sample_shards(
    model: Model, scoring: Scoring, protocol: Protocol, group: Group, thrift: Thrift | None = None
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """This worker's images, a shard at a time: index [n], images [n, H, W, 3] uint8, labels [n].

    Workers hold consecutive blocks of shards, so that rank order is image order.
    """
    shards, thrift = -(-protocol.samples // SHARD), thrift or Thrift(group.device)
    decoder = GraphDecoder(model) if scoring.graphs else Decoder(model)
    cache = room_for_cache(group.device, scoring.graphs)
    decoding = Decoding(**{field.name: getattr(protocol, field.name) for field in fields(Decoding)})
    for shard in np.array_split(np.arange(shards), group.world)[group.rank]:
        index = np.arange(shard * SHARD, min((shard + 1) * SHARD, protocol.samples))
        labels, condition = scoring.drawn(protocol, index)
        labels, condition = labels.to(group.device), condition.to(group.device)
        noise = uniforms(protocol.seed, index, sum(model.decode_steps)).to(group.device)

        def images(share: int, condition: Condition = condition, noise: Tensor = noise) -> Tensor:
            nonlocal decoder, cache
            try:
                tokens = sample_tokens(model, condition, noise, decoding, cache // share, decoder)
            except NoGraphs as error:
                LOG.warning("decoding is not recorded as CUDA graphs here: slower, with the same images (%s)", error)
                decoder = Decoder(model)  # the graphs' memory goes with the one before
                cache = room_for_cache(group.device, graphs=False)
                tokens = sample_tokens(model, condition, noise, decoding, cache // share, decoder)
            return decode_images(scoring.tokenizer, tokens, protocol.image_size, PIXELS_AT_A_TIME // share)

        yield index, thrift(images, lambda: decoder.drop()), labels


def features_of(extractor: Extractor, images: Tensor, share: int) -> FeatureArrays:
    return extract(extractor, images, share).arrays()


@torch.inference_mode()
def score(
    model: Model, scoring: Scoring, protocol: Protocol, group: Group, alive: Callable[[], None] = lambda: None
) -> Scored:
    """Sample, decode, extract and score where the weights are; every worker gets the result.

    `alive` is called after every shard. What one worker's images are found wrong for, all raise as a ValueError.
    """
    metrics = scoring.metrics
    context = Context(scoring.reference, protocol.samples, group.device, partial(among, group))
    mine, first = group.agreed(lambda: own_states(model, scoring, protocol, group, context, alive))
    # One group after the other: the moments of all groups of all workers together would be gigabytes.
    groups_of_all = [merged(metrics, group.gather(states)) for states in mine]
    values, without = {}, {}
    for metric, states in zip(metrics, zip(*groups_of_all, strict=True), strict=True):
        values[metric.name], without[metric.name] = metric.with_jackknife(states, context)
    return Scored(Score(values=values, without=without), group.gather(first)[0])


def own_states(
    model: Model, scoring: Scoring, protocol: Protocol, group: Group, context: Context, alive: Callable[[], None]
) -> tuple[list[list[Any]], np.ndarray]:
    """Of this worker's images: the metrics' states, by jackknife group and metric; and the first of all images."""
    metrics, classes = scoring.metrics, scoring.num_classes
    count = int(jackknife_groups(np.arange(protocol.samples), protocol.samples, classes).max()) + 1
    mine: list[list[Any]] = [[None] * len(metrics) for _ in range(count)]
    first, thrift = np.empty(0), Thrift(group.device)
    for index, images, _ in sample_shards(model, scoring, protocol, group, thrift):
        features = thrift(partial(features_of, scoring.extractor, images))
        groups = jackknife_groups(index, protocol.samples, classes)
        for g in np.unique(groups):
            some, at = features.of(groups == g), index[groups == g]
            new = [metric.state_of(some, at, context) for metric in metrics]
            mine[g] = merged(metrics, [mine[g], new])
        if index[0] == 0:
            first = images[:GRID_IMAGES].cpu().numpy()
        alive()
    return mine, first


def among(group: Group, sums: Sums) -> list[float]:
    """What the sums come to, each worked out by one worker: Fréchet distances take the CPU most of a second each."""
    shares = group.gather(group.agreed(lambda: one_by_one(sums[group.rank :: group.world])))
    return [shares[i % group.world][i // group.world] for i in range(len(sums))]


def merged(metrics: Sequence[AnyMetric], parts: Sequence[Sequence[Any]]) -> list[Any]:
    """One state a metric, from several parts that have one each."""
    return [metric.merged(states) for metric, states in zip(metrics, zip(*parts, strict=True), strict=True)]
