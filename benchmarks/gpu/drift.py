"""How far a card's arithmetic moves samples: small trained bases, the same noise on a CPU, on the card, in bfloat16."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import numpy as np
import torch

from benchmarks.common import TINY
from benchmarks.gpu.made import Here
from benchmarks.gpu.training import Figures
from cca_ray.config import ResolvedStudy
from cca_ray.evaluation.measure import measure
from cca_ray.evaluation.scoring import load_base, protocol_of, sample_shards, scoring_of
from cca_ray.inputs import find_space
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import Precision
from cca_ray.space_file import load_config
from cca_ray.training.small_base import resolve

SEEDS = range(5)


@dataclass(frozen=True)
class Way:
    device: torch.device
    precision: Precision


@dataclass(frozen=True)
class Samples:
    """Images [N, H, W, 3] uint8 of a base, and their FID."""

    images: np.ndarray
    fid: float


def samples_of(config: ResolvedStudy, way: Way, seed: int) -> Samples:
    placement = config.placement.model_copy(update={"precision": way.precision})
    config, group = config.model_copy(update={"placement": placement}), Group(device=way.device)
    scoring = scoring_of(config, way.device)
    protocol = protocol_of(config, scoring, config.score.samples, seed=seed)
    with torch.inference_mode():
        model = for_sampling(load_base(config), placement, group)
        shards = [(index, images) for index, images, _ in sample_shards(model, scoring, protocol, group)]
    fid = measure(shards, protocol.samples, scoring, way.device)["fid"]
    assert fid is not None
    return Samples(np.concatenate([images.cpu().numpy() for _, images in shards]), fid)


def drift(space: str, here: Here) -> Figures:
    """Share of equal images and differences of FID over seeds: the card to a CPU, and bfloat16 to float32 on the card.

    FID differences: their mean, and their standard deviation over seeds. Beside them stands that of the FID itself over
    the same seeds, which is how far other noise moves it.
    """
    cpu = torch.device("cpu")
    ways = {"CPU": Way(cpu, "float32"), "card": Way(here.device, "float32"), "bf16": Way(here.device, "bfloat16")}
    settings = (*TINY, "pretrain.variants=1") if here.dry else ()
    config, seeds = load_config(find_space(space), settings), SEEDS[:2] if here.dry else SEEDS
    with tempfile.TemporaryDirectory() as folder:
        resolved = resolve(config, Path(folder), lambda what, done, total: None)
        found = [{name: samples_of(resolved, way, seed) for name, way in ways.items()} for seed in seeds]
    own = {"std of FID over seeds": stdev(of_seed["card"].fid for of_seed in found)}
    return compared(found, "card", "CPU") | compared(found, "bf16", "card") | own


def compared(found: list[dict[str, Samples]], one: str, other: str) -> dict[str, float]:
    equal = [(f[one].images == f[other].images).all(axis=(1, 2, 3)).mean() for f in found]
    apart = [f[one].fid - f[other].fid for f in found]
    name = f"{one} - {other}"
    return {f"equal, {name}": float(fmean(equal)), f"FID, {name}": fmean(apart), f"std, {name}": stdev(apart)}
