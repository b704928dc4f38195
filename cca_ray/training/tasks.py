"""What a study computes besides its trials, as Ray tasks and actors: the reference's table, scores, a picture."""

from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch

from cca_ray.cluster.device import local_device
from cca_ray.cluster.placement import autocast, micro_batch_size, on_cards, ways
from cca_ray.contracts import OLD_METRICS, Score
from cca_ray.errors import reading
from cca_ray.evaluation.scoring import (
    GRID_IMAGES,
    Scored,
    load_base,
    load_tokens,
    protocol_of,
    sample_shards,
    score,
    scoring_of,
)
from cca_ray.models.files import digest_of_weights
from cca_ray.models.likelihood import Scorer
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import CPU, Placement
from cca_ray.storage.files import atomically, fingerprint
from cca_ray.storage.mirror import listed, patiently, pull
from cca_ray.storage.uris import local_path
from cca_ray.training.job import Job
from cca_ray.training.loop import card_here, save_grid
from cca_ray.training.reference_logps import Part, score_part, write_part
from cca_ray.training.setup import reference_key

NO_SCORE = "not a score that was kept here"


class TableMaker:
    """One of the workers that make a study's reference table; it holds the base, on what a trial's worker holds."""

    def __init__(self, packed: str, folder: str):
        self.job, self.folder, self.device = Job.unpacked(packed), local_path(folder), local_device()
        config, model = self.job.config, load_base(self.job.config)
        self.data = load_tokens(config.data.tokens)
        self.key = reference_key(digest_of_weights(model), config, self.job.train, self.data)
        self.scorer = Scorer(model).to(self.device)

    def make(self, part: Part) -> int:
        """Score a part and write its file; how many pairs it has."""
        config, train = self.job.config, self.job.train
        batch = min(micro_batch_size(way, train.global_batch) for way in ways(config.placement))
        with autocast(config.placement, self.device):  # as the trials score their own model
            scored = score_part(self.scorer, self.data, part, train.null_ratio, train.seed, batch, config.data.order)
        write_part(self.folder, part, self.key, *scored)
        return len(scored[0])


@dataclass(frozen=True)
class MadeOf:
    """What a kept score was made of: the fingerprint of the weights, and the id of the study in `study.db`."""

    weights: str
    study: str

    def allows(self, kept: "MadeOf") -> bool:
        """Whether a score of those is one of these. Of weights that are gone the same study must have made it."""
        return kept.weights == self.weights if self.weights else kept.study == self.study


def keep_score(path: Path, scored: Scored, made_of: MadeOf) -> None:
    """Write a score to a file of its own: `images`, `card`, and `value NAME` and `without NAME` of every metric."""
    score = scored.score
    arrays = {f"value {name}": np.array(value) for name, value in score.values.items()}
    arrays |= {f"without {name}": np.array(values) for name, values in score.without.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, images=scored.images, card=np.array(scored.card), **arrays, **asdict(made_of))  # type: ignore[arg-type]  # typeshed takes them for its flag

    patiently(lambda: atomically(path, write))


def kept_score(path: Path, made_of: MadeOf, weights: Path) -> Scored | None:
    """What `keep_score` wrote of these weights; None if there is nothing, nothing readable, or the score of others.

    Then it is made again: trials of another study may have had the same names. Version 0.1.0 wrote `fid`,
    `inception_score`, and rows of both in `without`, but not of what: its scores count if they are not older than the
    weights.
    """
    pull(path)
    with suppress(OSError, ValueError), reading(path, NO_SCORE):
        with np.load(path) as content:
            arrays = dict(content)
        if "weights" in arrays:
            if not made_of.allows(MadeOf(str(arrays["weights"]), str(arrays["study"]))):
                return None
        elif weights.exists() and path.stat().st_mtime < weights.stat().st_mtime:
            return None
        if "fid" in arrays:
            for name, column in zip(OLD_METRICS, arrays.pop("without").T, strict=True):
                arrays |= {f"value {name}": arrays[name], f"without {name}": column}
        values = {key.removeprefix("value "): float(x) for key, x in arrays.items() if key.startswith("value ")}
        without = {name: tuple(arrays[f"without {name}"].tolist()) for name in values}
        return Scored(Score(values=values, without=without), arrays["images"], str(arrays.get("card", "")))
    return None


def scored_weights(folder: Path, key: str, study: str) -> str:
    """The fingerprint of the weights of which this study keeps scores by this key; empty if it keeps none."""
    for path in listed(folder, f"{key}-*.npz"):
        with suppress(OSError, ValueError), reading(path, NO_SCORE):
            pull(path)
            with np.load(path) as content:
                if str(content["study"]) == study:
                    return str(content["weights"])
    return ""


def card_of(placement: Placement) -> str:
    """The type of card that this process computes on, as Ray names it, or CPU."""
    return card_here() if on_cards(placement) else CPU


def score_checkpoint(
    packed: str,
    folder: str,
    key: str,
    checkpoint: str | None,
    guidance_scale: float,
    samples: int,
    seed: int,
    study: str,
) -> Scored:
    """Score a checkpoint (None: the base) with this scale and noise, once: the score stays in `folder`, by `key`.

    `study`: the id of the study, which is not that of another one of the same name.
    """
    config, group = Job.unpacked(packed).config, Group()
    scoring = scoring_of(config, group.device)
    protocol = protocol_of(config, scoring, samples, guidance_scale, seed)
    path = local_path(folder) / f"{key}-{protocol.id}.npz"
    weights = local_path(checkpoint) if checkpoint else Path(config.base.checkpoint)
    pull(weights)
    made_of = MadeOf(fingerprint(weights), study)
    kept = kept_score(path, made_of, weights)
    if kept is not None and kept.score.values.keys() >= {metric.name for metric in scoring.metrics}:
        return kept
    model = for_sampling(load_base(config, str(weights)), config.placement, group)
    scored = replace(score(model, scoring, protocol, group), card=card_of(config.placement))
    keep_score(path, scored, made_of)
    return scored


def draw_base(packed: str, path: str) -> None:
    """What the base makes of the noise that all trials share: a grid like those of their rungs."""
    config, group = Job.unpacked(packed).config, Group()
    scoring = scoring_of(config, group.device)
    protocol = protocol_of(config, scoring, min(GRID_IMAGES, config.rungs[0].samples))
    with torch.inference_mode():
        model = for_sampling(load_base(config), config.placement, group)
        _, images, _ = next(sample_shards(model, scoring, protocol, group))
    save_grid(images.cpu().numpy(), scoring, local_path(path))
