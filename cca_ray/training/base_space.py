"""The search space for a base made from someone's images. docs/pretrain.md says where its ranges come from."""

import math
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from cca_ray.data.pairs import steps_per_epoch
from cca_ray.inputs import find_space
from cca_ray.models.family import Family
from cca_ray.registry import owner_of
from cca_ray.space_file import load_config
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import to_uri
from cca_ray.training.small_base import BaseFiles

PAPER_BETA, PAPER_TOKENS = 0.02, 256  # the paper's β, for so many tokens an image and more
STEPS = 112  # of one fine-tuning, at least: those of the embedded default
TRIALS = 20  # one more setting is searched than in the embedded default, which has 14

Yaml = dict[str, Any]  # the content of a search-space file, which `space_file` validates when it is read


@dataclass(frozen=True)
class BaseFacts:
    """What the ranges depend on: of the images, and how the base was trained."""

    tokens: int  # an image
    classes: int
    learning_rate: float


def betas(tokens: int) -> tuple[float, float]:
    """β if the terms of a log-likelihood ratio, one a token, were independent; and if they all agreed."""
    ratio = max(1.0, PAPER_TOKENS / tokens)
    return PAPER_BETA * math.sqrt(ratio), PAPER_BETA * ratio


def ranges(facts: BaseFacts) -> Yaml:
    """`search.space`: around the two rules for β, and around the number of classes for λ."""
    low, high = betas(facts.tokens)
    return {
        "lambda": between(max(0.3, facts.classes / 30), 4 * facts.classes),
        "beta": between(low / 2, 2 * high),
        "learning_rate": between(facts.learning_rate / 20, 2 * facts.learning_rate),
    }


def first_points(facts: BaseFacts) -> list[Yaml]:
    """One at each rule's β: λ as many as there are classes, and a third of that."""
    low, high = betas(facts.tokens)
    rate = rounded(facts.learning_rate / 4)
    return [
        {"lambda": rounded(max(0.3, facts.classes / 3)), "beta": rounded(high), "learning_rate": rate},
        {"lambda": rounded(facts.classes), "beta": rounded(low), "learning_rate": rate},
    ]


def rounded(value: float) -> float:
    """To two digits."""
    return float(f"{value:.1e}")


def between(low: float, high: float) -> Yaml:
    return {"low": rounded(low), "high": rounded(high)}


def template_of(family: Family, size: str) -> Path:
    """The shipped search space whose settings a base of one's own starts from."""
    return find_space(family.template(size))


def space_for(files: BaseFiles, images: int, facts: BaseFacts | None, family: Family, size: str, path: Path) -> Yaml:
    """A search space for a base made from so many images: that of the digits, on these files.

    `facts`: its ranges are for a base of such facts; None: those of the digits. If there is one
    at `path`, it keeps its settings, which someone may have edited, and gets the files (`with_files`).
    """
    paths = {key: to_uri(path.resolve()) for key, path in vars(files).items()}
    if pull(path):
        return with_files(content_of(path), paths)
    space: Yaml = yaml.safe_load(template_of(family, size).read_text())
    samples = max(2, min(images, 5000))
    space["base"] = {
        "family": family.name,
        "size": size,
        "checkpoint": paths["checkpoint"],
        "tokenizer": paths["tokenizer"],
    }
    if owner := owner_of("family", family.name):
        space = {"plugins": [owner.module], **space}
    space["data"] = {"tokens": paths["tokens"]}
    space["score"] |= {"features": paths["features"], "reference": paths["reference"], "samples": samples}
    space["rungs"] = [
        {**rung, "samples": samples if rung["at"] == 1 else max(2, samples // 2)} for rung in space["rungs"]
    ]
    space["train"]["global_batch"] = min(space["train"]["global_batch"], images)
    if facts is not None:
        with_ranges(space, images, facts)
    space.pop("pretrain", None)
    return space


def content_of(path: Path) -> Yaml:
    """A search space that is there, all defaults filled in."""
    return load_config(path).model_dump(mode="json", by_alias=True, exclude={"name"})


def with_files(edited: Yaml, paths: dict[str, str]) -> Yaml:
    """A search space that is there already, on this base's files: they may have moved since.

    Tokens, features or reference statistics that someone put in place of the base's stay.
    """
    edited["base"] |= {"checkpoint": paths["checkpoint"], "tokenizer": paths["tokenizer"]}
    for part, key in (("data", "tokens"), ("score", "features"), ("score", "reference")):
        was, now = PurePosixPath(edited[part][key] or ""), PurePosixPath(paths[key])
        if was.parts[-2:] == now.parts[-2:]:  # the folder's name has a digest
            edited[part][key] = paths[key]
    return edited


def with_ranges(space: Yaml, images: int, facts: BaseFacts) -> None:
    """Put in what is searched, from where, and how long a fine-tuning is."""
    points, batch = first_points(facts), space["train"]["global_batch"]
    if steps_per_epoch(images, batch) < STEPS <= steps_per_epoch(images, batch // 2):
        batch //= 2  # one epoch is then enough, as in the paper
    epochs = math.ceil(STEPS / steps_per_epoch(images, batch))
    space["train"] |= {"beta": points[0]["beta"], "global_batch": batch, "epochs": epochs}
    space["search"] |= {"space": ranges(facts), "first_points": points, "trials": TRIALS}
    space["control"] = {"learning_rates": [rounded(facts.learning_rate / part) for part in (60, 20, 6)]}
