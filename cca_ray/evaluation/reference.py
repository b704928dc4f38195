"""Features of real images, by which a model's are measured: moments, and for some metrics the features themselves.

Moments are summed in float64.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from pathlib import Path
from typing import IO

import numpy as np

from cca_ray.errors import reading
from cca_ray.storage.arrays import read_arrays

KEPT = 10_000  # features of real images that a reference keeps, as many as the ADM evaluator's


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


def evenly_spaced(count: int, most: int = KEPT) -> np.ndarray:
    """Which of `count` images a reference keeps the features of: `most` of them at most, in order."""
    kept = min(count, most)
    return np.arange(kept) * count // max(kept, 1)


@dataclass(frozen=True, eq=False)
class Reference:
    """Mean [D] and covariance [D, D] of the real images' features, float64; `spatial`: the same for sFID.

    `features`: those of some of the images, [M, D] float32, for the metrics that moments are not enough for.
    `image_size`: their side in pixels, None if the file does not say, as ADM's.
    """

    mean: np.ndarray
    covariance: np.ndarray
    spatial: "Reference | None" = None
    features: np.ndarray | None = None
    image_size: int | None = None

    @cached_property
    def factor(self) -> np.ndarray:
        """L [D, D] with L Lᵀ = covariance; made once, used for every distance."""
        values, vectors = np.linalg.eigh(self.covariance)
        return vectors * np.sqrt(values.clip(0))

    @cached_property
    def digest(self) -> str:
        """Of the moments alone: they tell the images that the features are of."""
        content = self.mean.astype("<f8").tobytes() + self.covariance.astype("<f8").tobytes()
        return hashlib.sha256(content).hexdigest()[:16]

    @staticmethod
    def of(
        moments: Moments, spatial: Moments | None = None, features: np.ndarray | None = None,
        image_size: int | None = None,
    ) -> "Reference":  # fmt: skip
        of_space = Reference.of(spatial) if spatial else None
        return Reference(moments.mean, moments.covariance, of_space, features, image_size)

    def save(self, path: str | Path | IO[bytes]) -> None:
        """As the ADM evaluator keeps them: `mu` and `sigma` in an `.npz`, `mu_s` and `sigma_s` for sFID.

        Besides, `features` and `image_size`, as far as they are known.
        """
        content = {"mu": self.mean, "sigma": self.covariance}
        if self.spatial is not None:
            content |= {"mu_s": self.spatial.mean, "sigma_s": self.spatial.covariance}
        if self.features is not None:
            content["features"] = self.features.astype(np.float32)
        if self.image_size is not None:
            content["image_size"] = np.array(self.image_size)
        np.savez(path, **content)  # type: ignore[arg-type]  # typeshed takes the arrays for its flag

    @staticmethod
    def load(path: str | Path) -> "Reference":
        """ValueError, naming the file, if there are no such statistics in it."""
        with reading(path, "not reference statistics, which are an .npz with mu and sigma"):
            content = read_arrays(path, ("mu", "sigma", "features", "image_size"))
            statistics = {k: real(array) for k, array in content.items() if k.startswith(("mu", "sigma"))}
            features = content["features"].astype(np.float32) if "features" in content else None
            image_size = int(content["image_size"]) if "image_size" in content else None

        def read(mu: str, sigma: str) -> tuple[np.ndarray, np.ndarray]:
            if missing := [key for key in (mu, sigma) if key not in statistics]:
                raise ValueError(
                    f"{path}: has no {missing[0]}; expected an .npz with mu and sigma, such as ADM's "
                    "VIRTUAL_imagenet256_labeled.npz, or one of python -m cca_ray.prepare --reference"
                )
            mean, covariance = statistics[mu], statistics[sigma]
            if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
                raise ValueError(
                    f"{path}: {mu} is {mean.shape} and {sigma} {covariance.shape}: expected [D] and [D, D]"
                )
            refuse_impossible(path, mu, mean, sigma, covariance)
            return mean, covariance

        spatial = Reference(*read("mu_s", "sigma_s")) if "mu_s" in statistics else None
        mean, covariance = read("mu", "sigma")
        if features is not None and not np.isfinite(features).all():
            raise ValueError(f"{path}: features holds a number that is not finite; make the statistics again")
        if features is not None and (features.ndim != 2 or len(features) < 2 or features.shape[1] != len(mean)):
            raise ValueError(f"{path}: features is {features.shape}: expected [M, {len(mean)}], M at least 2")
        return Reference(mean, covariance, spatial, features, image_size)


def real(array: np.ndarray) -> np.ndarray:
    """As float64. ValueError if it holds anything but real numbers."""
    if not np.issubdtype(array.dtype, np.floating) and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"numbers of type {array.dtype}, not real ones")
    return array.astype(np.float64)


def refuse_impossible(path: str | Path, mu: str, mean: np.ndarray, sigma: str, covariance: np.ndarray) -> None:
    """ValueError, naming file and key, if these can be no moments: a FID of them would be NaN, or below zero."""
    for key, values in ((mu, mean), (sigma, covariance)):
        if not np.isfinite(values).all():
            raise ValueError(f"{path}: {key} holds a number that is not finite; make the statistics again")
    size = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > 1e-3 * size:
        raise ValueError(f"{path}: {sigma} is not symmetric, as a covariance is; make the statistics again")
    lowest = np.linalg.eigvalsh(covariance)[0]
    if lowest < -1e-3 * size:  # of fewer images than features it is singular, and rounding goes a little below zero
        raise ValueError(f"{path}: {sigma} has the eigenvalue {lowest:.3g}; a covariance has none below zero")
