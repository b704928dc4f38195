"""Images, of a checkpoint or from a file -> every metric that can be had of them."""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cca_ray.cluster.device import local_device
from cca_ray.config import ResolvedStudy
from cca_ray.evaluation.features import Extractor
from cca_ray.evaluation.metric import AnyMetric, Context, metric_named, obstacle
from cca_ray.evaluation.npz import open_images
from cca_ray.evaluation.protocol import Protocol
from cca_ray.evaluation.scoring import Scoring, features_of, load_base, protocol_of, sample_shards, scoring_of
from cca_ray.evaluation.thrift import Thrift
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.registry import METRICS
from cca_ray.storage.mirror import pull

Indexed = tuple[np.ndarray, torch.Tensor]  # indices [n] among all, and images [n, H, W, 3] uint8


@dataclass(frozen=True)
class Evaluation:
    """Values by metric, None where one cannot be had; the protocol, in which only the model is open.

    `given`: whether the images came from a file, of which extractor, reference and number are all that is known.
    """

    values: dict[str, float | None]
    protocol: Protocol
    given: bool


def on_device(batches: Iterable[np.ndarray], device: torch.device) -> Iterator[torch.Tensor]:
    return (torch.from_numpy(batch.copy()).to(device) for batch in batches)


def pooled_features(extractor: Extractor, batches: Iterable[torch.Tensor], device: torch.device) -> np.ndarray:
    """[N, D] float32. NoRoom if memory is too small."""
    thrift = Thrift(device)
    return np.concatenate([thrift(partial(features_of, extractor, batch)).pooled for batch in batches])


def with_real_images(scoring: Scoring, path: str, device: torch.device) -> Scoring:
    """An ADM reference file may have the images themselves, in `arr_0`: their features are the reference's."""
    if "arr_0.npy" not in zipfile.ZipFile(path).namelist():
        return scoring
    features = pooled_features(scoring.extractor, on_device(open_images(Path(path))[1], device), device)
    return replace(scoring, reference=replace(scoring.reference, features=features))


def mixed(batches: Iterable[torch.Tensor], count: int) -> Iterator[Indexed]:
    """With indices that mix the images of a file, for the inception score cuts them into blocks."""
    order, seen = np.random.default_rng(0).permutation(count), 0
    for batch in batches:
        yield order[seen : seen + len(batch)], batch
        seen += len(batch)


def measure(batches: Iterable[Indexed], count: int, scoring: Scoring, device: torch.device) -> dict[str, float | None]:
    """All registered metrics of `count` images, None where the extractor or the reference does not allow one.

    NoRoom if memory is too small.
    """
    context, named = Context(scoring.reference, count, device), {name: metric_named(name) for name in METRICS.names()}
    possible: dict[str, AnyMetric] = {
        name: metric
        for name, metric in named.items()
        if not obstacle(metric, scoring.extractor.provides, scoring.reference, count)
    }
    states, thrift = dict.fromkeys(possible), Thrift(device)
    for index, images in batches:
        features = thrift(partial(features_of, scoring.extractor, images))
        for name, metric in possible.items():
            states[name] = metric.merged([states[name], metric.state_of(features, index, context)])
    return {name: possible[name].value(states[name], context) if name in possible else None for name in named}


def evaluate(
    config: ResolvedStudy,
    checkpoint: Path | None = None,
    npz: Path | None = None,
    samples: int | None = None,
    guidance_scale: float = 1.0,
    seed: int | None = None,
) -> Evaluation:
    """Measure the images in `npz`, or else those of a checkpoint (None: the base). ConfigError if a file is bad."""
    group = Group(device=local_device(config.placement))
    scoring = scoring_of(config, group.device)
    protocol = protocol_of(config, scoring, samples or config.score.samples, guidance_scale, seed)
    scoring = with_real_images(scoring, config.score.reference, group.device)
    if npz is not None:
        pull(npz)
        count, batches = open_images(npz, protocol.image_size)
        found = measure(mixed(on_device(batches, group.device), count), count, scoring, group.device)
        return Evaluation(found, protocol.model_copy(update={"samples": count}), given=True)
    model = for_sampling(load_base(config, str(checkpoint) if checkpoint else None), config.placement, group)
    images = ((index, batch) for index, batch, _ in sample_shards(model, scoring, protocol, group))
    return Evaluation(measure(images, protocol.samples, scoring, group.device), protocol, given=False)
