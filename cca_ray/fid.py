"""Features -> moments -> Fréchet distance, in float64; and the protocol that names a score.

`FeatureNet` is the extractor for small images (`pretrain` trains it); its features stand where Inception's
stand for ImageNet.  A score means nothing without its protocol: see `Protocol`.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property, reduce
from itertools import pairwise
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

SHARD = 256  # images a shard: moments are summed by shard, so the sum does not depend on who made which


class Protocol(BaseModel):
    """Everything that a FID depends on besides the model. Two scores compare only if their ids are equal.

    `guidance_scale` and the rest are those of `sampler.Decoding`. Labels are class-balanced and fixed by index.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    extractor: str  # digest of the feature network
    reference: str  # digest of the reference statistics
    samples: int
    seed: int
    image_size: int  # pixels along a side, as fed to the extractor
    labels: str = "balanced"
    resize: str = "none"
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that name this protocol."""
        canonical = json.dumps(self.model_dump(), sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:10]


@dataclass(frozen=True)
class Moments:
    """Count, mean [D] and summed outer products of deviations [D, D] of features, in float64."""

    n: int
    mean: np.ndarray
    m2: np.ndarray

    @staticmethod
    def of(features: np.ndarray) -> "Moments":
        """features [N, D]."""
        x = np.asarray(features, dtype=np.float64)
        mean = x.mean(0)
        return Moments(len(x), mean, (x - mean).T @ (x - mean))

    def merge(self, other: "Moments") -> "Moments":
        """Chan, Golub & LeVeque's pairwise update."""
        n = self.n + other.n
        delta = other.mean - self.mean
        m2 = self.m2 + other.m2 + np.outer(delta, delta) * (self.n * other.n / n)
        return Moments(n, self.mean + delta * (other.n / n), m2)

    @property
    def covariance(self) -> np.ndarray:
        """[D, D], with N - 1 in the denominator."""
        return self.m2 / (self.n - 1)


def merge_all(shards: list[Moments]) -> Moments:
    return reduce(Moments.merge, shards)


@dataclass(frozen=True)
class Reference:
    """Mean [D] and covariance [D, D] of the real images' features, float64."""

    mean: np.ndarray
    covariance: np.ndarray

    @cached_property
    def factor(self) -> np.ndarray:
        """L [D, D] with L Lᵀ = covariance; made once, used for every distance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return vectors * np.sqrt(values.clip(0))

    @cached_property
    def digest(self) -> str:
        content = self.mean.astype("<f8").tobytes() + self.covariance.astype("<f8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    def save(self, path: str | Path) -> None:
        """As the ADM evaluator keeps them: `mu` and `sigma` in an `.npz`."""
        np.savez(path, mu=self.mean, sigma=self.covariance)

    @staticmethod
    def load(path: str | Path) -> "Reference":
        try:
            with np.load(path) as content:
                mean, covariance = content["mu"].astype(np.float64), content["sigma"].astype(np.float64)
        except (OSError, EOFError, ValueError, KeyError, AttributeError, BadZipFile) as error:
            raise ValueError(f"{path}: not reference statistics (an .npz with mu and sigma): {error}") from None
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise ValueError(f"{path}: mu is {mean.shape} and sigma {covariance.shape}: want [D] and [D, D]")
        return Reference(mean, covariance)


def frechet_distance(sample: Moments, reference: Reference) -> float:
    """|mu - mu_r|² + tr(S + S_r - 2 (S S_r)^½).

    tr (S S_r)^½ is the sum of the roots of the eigenvalues of Lᵀ S L, which is symmetric (L Lᵀ = S_r).
    """
    delta = sample.mean - reference.mean
    inner = reference.factor.T @ sample.covariance @ reference.factor
    trace_root = np.sqrt(np.linalg.eigvalsh(inner).clip(0)).sum()
    return float(delta @ delta + np.trace(sample.covariance) + np.trace(reference.covariance) - 2 * trace_root)


def frechet_distance_few(features: np.ndarray, reference: Reference) -> float:
    """The same from features [N, D] with N < D, by the N x N Gram matrix: smaller, and exact at low rank.

    With S = Xᵀ X / (N - 1), the eigenvalues of Lᵀ S L other than 0 are those of X S_r Xᵀ / (N - 1).
    """
    x = np.asarray(features, dtype=np.float64)
    mean = x.mean(0)
    x = (x - mean) / np.sqrt(len(x) - 1)
    projected = x @ reference.factor
    trace_root = np.sqrt(np.linalg.eigvalsh(projected @ projected.T).clip(0)).sum()
    delta = mean - reference.mean
    return float(delta @ delta + np.square(x).sum() + np.trace(reference.covariance) - 2 * trace_root)


def inception_score(probabilities: np.ndarray) -> float:
    """exp of the mean divergence between p(y | x) and p(y): probabilities [N, K] of one block."""
    p = np.asarray(probabilities, dtype=np.float64).clip(1e-30)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


class FeatureNet(nn.Module):
    """A small convolutional classifier; `forward` gives its features [B, D] and its logits [B, K].

    Takes images [B, H, W, 3] uint8: what is scored is what would be saved. Strides until the grid is 4 or less.
    """

    def __init__(self, image_size: int, num_classes: int, features: int = 64, width: int = 32):
        super().__init__()
        stages, side = 0, image_size
        while side > 4:
            side, stages = -(-side // 2), stages + 1
        widths = [3] + [min(width * 2**i, 128) for i in range(stages + 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in widths[1:])
        self.project = nn.Linear(widths[-1] * side * side, features)
        self.classify = nn.Linear(features, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        features = self.project(x.flatten(1))
        return features, self.classify(F.silu(features))


def digest_of_weights(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
