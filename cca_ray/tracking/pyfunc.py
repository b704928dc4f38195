"""A winner, as MLflow or a study's folder keeps it -> images of the labels that are asked for.

`mlflow.pyfunc.load_model` finds this file by its name and calls `_load_pyfunc`; nothing is pickled, and MLflow is not
imported. Its folder: `settings.json`, and one official checkpoint each in `model/` and `tokenizer/`. A study's folder
has `SIZE/winner.pt` and `SIZE/champion.json`, which says where the tokenizer is.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cca_ray.cluster.device import local_device
from cca_ray.cluster.placement import precision_of
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import Contract
from cca_ray.data.tokens import TokenMeta
from cca_ray.errors import ConfigError, reading
from cca_ray.evaluation.sampler import Decoding, decode_images, sample_tokens, uniforms
from cca_ray.models.condition import Classes
from cca_ray.models.family import family_of
from cca_ray.models.official import load_official, load_tokenizer
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import Placement, Precision
from cca_ray.registry import load_plugins
from cca_ray.space_file import is_uri
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path, to_uri

SETTINGS, CHAMPION = "settings.json", "champion.json"


class Cut(Contract):
    """How probabilities become tokens, without guidance."""

    temperature: float
    top_k: int
    top_p: float
    last_temperature: float | None = None


class Settings(Contract):
    """What must be known besides the weights to sample as the study does: `settings.json`."""

    family: str
    size: str
    length: int  # tokens an image
    image_size: int  # pixels along a side
    precision: Precision
    decoding: Cut
    plugins: tuple[str, ...] = ()  # modules that the model's family, or what the study used besides, comes from

    @staticmethod
    def of(config: ResolvedStudy, meta: TokenMeta) -> "Settings":
        score = config.score
        return Settings(
            family=config.base.family,
            size=config.base.size,
            length=meta.length,
            image_size=score.image_size or meta.image_size,
            precision=precision_of(config.placement),
            decoding=Cut(
                temperature=score.temperature,
                top_k=score.top_k,
                top_p=score.top_p,
                last_temperature=score.last_temperature,
            ),
            plugins=tuple(info.module for info in config.plugins_used()),
        )


class InStudy(Contract):
    """What a study's folder keeps of a size besides the winner's weights: `champion.json`."""

    settings: Settings
    tokenizer: str  # its file; of one in the storage, the path there


class Champion:
    """The winner of a study. It samples without guidance, by the study's protocol, on a GPU if there is one."""

    def __init__(self, settings: Settings, weights: Path, codes: Path):
        load_plugins(settings.plugins)
        family, self.image_size = settings.family, settings.image_size
        model = load_official(
            family,
            settings.size,
            weights,
            codes if family_of(family).needs_codes else None,
            length=settings.length,
        )
        group = Group(device=local_device(Placement(gpus=float(torch.cuda.is_available()))))
        self.device, self.decoding = group.device, Decoding(**settings.decoding.model_dump())
        self.model = for_sampling(model, Placement(precision=settings.precision), group)
        self.tokenizer = load_tokenizer(family, codes).to(group.device)

    @property
    def classes(self) -> int:
        """How many there are; labels count from 0. ValueError if the model takes texts."""
        if not isinstance(self.model.takes, Classes):
            raise ValueError("this model takes texts, not labels: sample from it with `cca-ray sample`")
        return self.model.takes.count

    def sample(self, labels: Sequence[int] | np.ndarray, seed: int = 0) -> np.ndarray:
        """Images [N, H, W, 3] uint8 of these labels [N].

        Image i has the noise of image i of that seed, whatever the other labels are. ValueError for an unknown label,
        or for what is no whole number.
        """
        given = np.asarray(labels).reshape(-1)
        whole = given.dtype.kind in "iuf" and bool((given == np.floor(given)).all())
        if not len(given) or not whole or given.min() < 0 or given.max() >= self.classes:
            raise ValueError(f"label: expected at least one, each a whole number from 0 to {self.classes - 1}")
        wanted = given.astype(np.int64)
        noise = uniforms(seed, np.arange(len(wanted)), sum(self.model.decode_steps))
        here = torch.tensor(wanted, device=self.device)
        tokens = sample_tokens(self.model, here, noise.to(self.device), self.decoding)
        return decode_images(self.tokenizer, tokens, self.image_size).cpu().numpy()

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> np.ndarray:
        """`sample`, as MLflow calls it: labels [N] in `label`; `params`: `seed`, 0 if not given."""
        return self.sample(model_input["label"], int((params or {}).get("seed", 0)))


def packed_champion(folder: Path) -> Champion:
    """As MLflow keeps it."""
    ((weights,), (codes,)) = ([*(folder / part).iterdir()] for part in ("model", "tokenizer"))
    return Champion(Settings.model_validate_json((folder / SETTINGS).read_text()), weights, codes)


def write_champion(folder: Path, storage: Path, settings: Settings, tokenizer: Path) -> None:
    """`champion.json` of a size, beside its winner. `storage`: the study's, which may move."""
    inside = tokenizer.is_relative_to(storage)
    there = str(tokenizer.relative_to(storage)) if inside else to_uri(tokenizer)
    content = InStudy(settings=settings, tokenizer=there).model_dump_json(indent=1)
    atomically(folder / CHAMPION, lambda partial: partial.write_text(content, encoding="utf-8"))


def champion_in(folder: Path, storage: Path) -> Champion:
    """The winner of a size, of which this is the folder. ConfigError if a file is gone."""
    file, winner = folder / CHAMPION, folder / "winner.pt"
    if not pull(file):
        raise ConfigError(f"{to_uri(file)}: no such file; a `tune` that continues the study writes it")
    with reading(file, "does not say how to sample"):
        kept = InStudy.model_validate_json(file.read_text(encoding="utf-8"))
    tokenizer = kept.tokenizer if is_uri(kept.tokenizer) else storage / kept.tokenizer
    codes = local_path(tokenizer)
    for path in (winner, codes):
        if not pull(path):
            raise ConfigError(f"{to_uri(path)}: no such file; {to_uri(folder)} needs it to sample")
    return Champion(kept.settings, winner, codes)


def _load_pyfunc(path: str) -> Champion:
    """MLflow's name for it; `path`: the folder."""
    return packed_champion(Path(path))
