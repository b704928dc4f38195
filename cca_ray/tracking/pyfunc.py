"""A winner as MLflow keeps it -> images of the labels that are asked for.

`mlflow.pyfunc.load_model` finds this file by its name and calls `_load_pyfunc`; nothing is pickled, and MLflow is not
imported. The folder: `settings.json`, and one official checkpoint each in `model/` and `tokenizer/`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cca_ray.cluster.device import local_device
from cca_ray.cluster.placement import precision_of
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import Contract
from cca_ray.data.tokens import TokenMeta
from cca_ray.evaluation.sampler import Decoding, decode_images, sample_tokens, uniforms
from cca_ray.models.condition import Classes
from cca_ray.models.family import family_of
from cca_ray.models.official import load_official, load_tokenizer
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import Placement, Precision
from cca_ray.registry import load_plugins

SETTINGS = "settings.json"


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


class Champion:
    """Samples without guidance, by the study's protocol, on a GPU if there is one."""

    def __init__(self, folder: Path):
        settings = Settings.model_validate_json((folder / SETTINGS).read_text())
        load_plugins(settings.plugins)
        family, self.image_size = settings.family, settings.image_size
        ((weights,), (codes,)) = ([*(folder / part).iterdir()] for part in ("model", "tokenizer"))
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

    def predict(self, model_input: Mapping[str, Any], params: Mapping[str, Any] | None = None) -> np.ndarray:
        """Labels [N], in `label` -> images [N, H, W, 3] uint8. `params`: `seed` of the noise, 0 if not given.

        Row i has the noise of image i of that seed, whatever the other labels are. ValueError for an unknown label.
        """
        if not isinstance(self.model.takes, Classes):
            raise ValueError("this model takes texts, not labels: sample from it with `cca-ray sample`")
        labels, classes = np.asarray(model_input["label"], dtype=np.int64).reshape(-1), self.model.takes.count
        if not len(labels) or labels.min() < 0 or labels.max() >= classes:
            raise ValueError(f"label: expected at least one, each from 0 to {classes - 1}")
        noise = uniforms(int((params or {}).get("seed", 0)), np.arange(len(labels)), sum(self.model.decode_steps))
        here = torch.tensor(labels, device=self.device)
        tokens = sample_tokens(self.model, here, noise.to(self.device), self.decoding)
        return decode_images(self.tokenizer, tokens, self.image_size).cpu().numpy()


def _load_pyfunc(path: str) -> Champion:
    """MLflow's name for it; `path`: the folder."""
    return Champion(Path(path))
