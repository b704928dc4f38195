"""Features -> moments -> Fréchet distance, inception score, precision and recall; and the protocol that names a score.

Everything is summed in float64, but for the distances of precision and recall, which the ADM evaluator takes in
float16.  A score means nothing without its protocol: see `Protocol`.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import IO, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

SHARD = 256  # images a shard: moments are summed by shard, so the sum does not depend on who made which
BLOCK = 5000  # images a block of the inception score, as in the ADM evaluator
NEIGHBOUR = 3  # of precision and recall


class Protocol(BaseModel):
    """Everything that a FID depends on besides the model. Two scores compare only if their ids are equal.

    `guidance_scale` and the rest are those of `sampler.Decoding`. Labels are fixed by index and, if `random`, seed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    extractor: str  # digest of the feature network
    reference: str  # digest of the reference statistics
    samples: int
    seed: int
    image_size: int  # pixels along a side, as fed to the extractor
    labels: Literal["balanced", "random"] = "balanced"
    resize: str = "none"
    precision: Literal["float32", "bfloat16"] = "float32"  # of the model that is sampled
    guidance_scale: float = 1.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    plugins: tuple[str, ...] = ()  # the code of others that took part: module, version, digest of its source

    @property
    def id(self) -> str:
        """Ten hexadecimal digits that name this protocol."""
        canonical = json.dumps(self.model_dump(exclude=set() if self.plugins else {"plugins"}), sort_keys=True)
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


def merge_all(shards: Iterable[Moments]) -> Moments:
    """In order, and one after the other: only one is ever kept."""
    return reduce(Moments.merge, shards)


@dataclass(frozen=True)
class Reference:
    """Mean [D] and covariance [D, D] of the real images' features, float64; `spatial`: the same for sFID."""

    mean: np.ndarray
    covariance: np.ndarray
    spatial: "Reference | None" = None

    @cached_property
    def factor(self) -> np.ndarray:
        """L [D, D] with L Lᵀ = covariance; made once, used for every distance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return vectors * np.sqrt(values.clip(0))

    @cached_property
    def digest(self) -> str:
        content = self.mean.astype("<f8").tobytes() + self.covariance.astype("<f8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @staticmethod
    def of(moments: Moments, spatial: Moments | None = None) -> "Reference":
        return Reference(moments.mean, moments.covariance, Reference.of(spatial) if spatial else None)

    def save(self, path: str | Path | IO[bytes]) -> None:
        """As the ADM evaluator keeps them: `mu` and `sigma` in an `.npz`, `mu_s` and `sigma_s` for sFID."""
        if self.spatial is None:
            np.savez(path, mu=self.mean, sigma=self.covariance)
        else:
            spatial = self.spatial
            np.savez(path, mu=self.mean, sigma=self.covariance, mu_s=spatial.mean, sigma_s=spatial.covariance)

    @staticmethod
    def load(path: str | Path) -> "Reference":
        """ValueError, naming the file, if there are no such statistics in it."""
        try:
            with np.load(path) as content:
                statistics = {k: content[k].astype(np.float64) for k in content.files if k.startswith(("mu", "sigma"))}
        except (OSError, EOFError, ValueError, KeyError, AttributeError, BadZipFile) as error:
            raise ValueError(f"{path}: not reference statistics (an .npz with mu and sigma): {error}") from None

        def read(mu: str, sigma: str, spatial: "Reference | None" = None) -> "Reference":
            if missing := [key for key in (mu, sigma) if key not in statistics]:
                raise ValueError(
                    f"{path}: has no {missing[0]}; want an .npz with mu and sigma, such as ADM's "
                    "VIRTUAL_imagenet256_labeled.npz, or one of python -m cca_ray.prepare --reference"
                )
            mean, covariance = statistics[mu], statistics[sigma]
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise ValueError(f"{path}: {mu} is {mean.shape} and {sigma} {covariance.shape}: want [D] and [D, D]")
            return Reference(mean, covariance, spatial)

        return read("mu", "sigma", read("mu_s", "sigma_s") if "mu_s" in statistics else None)


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


@dataclass(frozen=True)
class Divergence:
    """Of one block of images: count, summed p(y | x) [K], summed p log p; float64."""

    n: int
    p: np.ndarray
    p_log_p: float

    @staticmethod
    def of(probabilities: np.ndarray) -> "Divergence":
        """probabilities [N, K]."""
        p = np.asarray(probabilities, dtype=np.float64).clip(1e-30)
        return Divergence(len(p), p.sum(0), float((p * np.log(p)).sum()))

    def merge(self, other: "Divergence") -> "Divergence":
        return Divergence(self.n + other.n, self.p + other.p, self.p_log_p + other.p_log_p)

    @property
    def score(self) -> float:
        """exp of the mean divergence between p(y | x) and p(y)."""
        marginal = self.p / self.n
        return float(np.exp(self.p_log_p / self.n - (marginal * np.log(marginal)).sum()))


def divergences(probabilities: np.ndarray, index: np.ndarray, block: int = BLOCK) -> dict[int, Divergence]:
    """By block, of images with these indices: probabilities [N, K], index [N]."""
    return {int(b): Divergence.of(probabilities[index // block == b]) for b in np.unique(index // block)}


def inception_score(parts: Iterable[Mapping[int, Divergence]]) -> float:
    """The mean over the blocks, each merged from its parts. Blocks must mix the classes: permute a file that does not.

    Source: the ADM evaluator, after Salimans et al. 2016.
    """
    blocks: dict[int, Divergence] = {}
    for part in parts:
        for block, divergence in part.items():
            blocks[block] = blocks[block].merge(divergence) if block in blocks else divergence
    return float(np.mean([divergence.score for divergence in blocks.values()]))


def distances(u: Tensor, v: Tensor) -> Tensor:
    """Squared, in float16 where that is finite, as the ADM evaluator takes them: u [N, D], v [M, D] -> [N, M]."""
    u16, v16 = u.half(), v.half()
    result = u16.square().sum(1)[:, None] - 2 * (u16 @ v16.T) + v16.square().sum(1)
    if result.isfinite().all():
        return result.clamp(min=0).float()
    return (u.square().sum(1)[:, None] - 2 * (u @ v.T) + v.square().sum(1)).clamp(min=0)


def radii(features: Tensor, rows: int) -> Tensor:
    """Squared distance of each vector [N, D] to its third neighbour among the others: [N]."""
    blocks, found = features.split(rows), []
    for block in blocks:
        of_block = torch.cat([distances(block, other) for other in blocks], dim=1)
        found.append(of_block.kthvalue(NEIGHBOUR + 1, dim=1).values)  # the nearest is the vector itself
    return torch.cat(found)


def precision_recall(
    reference: np.ndarray, samples: np.ndarray, device: torch.device | None = None, rows: int = 10_000
) -> tuple[float, float]:
    """Shares of samples [M, D] within the reference's manifold, and of the reference [N, D] within the samples'.

    Kynkäänniemi et al. 2019 with k = 3, as the ADM evaluator computes it, with `rows` rows of distances at a time.
    """
    real, made = (torch.from_numpy(np.asarray(x, dtype=np.float32)).to(device) for x in (reference, samples))
    for name, features in (("reference", real), ("sample", made)):
        if len(features) <= NEIGHBOUR:
            raise ValueError(f"precision and recall want more than {NEIGHBOUR} {name} images, not {len(features)}")
    real_radii, made_radii = radii(real, rows), radii(made, rows)
    precise = torch.zeros(len(made), dtype=torch.bool, device=device)
    recalled = torch.zeros(len(real), dtype=torch.bool, device=device)
    for i in range(0, len(real), rows):
        for j in range(0, len(made), rows):
            d = distances(real[i : i + rows], made[j : j + rows])
            precise[j : j + rows] |= (d <= real_radii[i : i + rows, None]).any(0)
            recalled[i : i + rows] |= (d <= made_radii[j : j + rows]).any(1)
    return precise.double().mean().item(), recalled.double().mean().item()
