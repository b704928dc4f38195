"""A recipe in which no part of a step is without effect, and a trial that is prepared to follow it."""

from pathlib import Path
from typing import Any

import torch

from cca_ray.config import StudyConfig
from cca_ray.models.parallel import Group
from cca_ray.training.job import Job
from cca_ray.training.setup import Loop, prepare

BATCH = 24
BETA, LAMBDA, NULL_RATIO = 0.5, 3.0, 0.2
RATE, WARMUP, BETA1, BETA2, EPSILON, DECAY, CLIP, EMA = 1e-2, 2, 0.7, 0.98, 1e-8, 0.3, 0.02, 0.2
RECIPE = dict(
    learning_rate=RATE, warmup_steps=WARMUP, adam_beta1=BETA1, adam_beta2=BETA2, weight_decay=DECAY, clip=CLIP,
    ema_decay=EMA, beta=BETA, null_ratio=NULL_RATIO, global_batch=BATCH, reference="live", **{"lambda": LAMBDA},
)  # fmt: skip


def prepared(config: StudyConfig, folder: Path, **placement: Any) -> Loop:
    config = config.model_copy(update={"placement": config.placement.model_copy(update=placement)})
    return prepare(Job(config, config.train, folder), Group(device=torch.device("cpu")))
