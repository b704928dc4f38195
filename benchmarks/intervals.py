"""Do the 95 % intervals of differences cover the truth? Studies simulated with known truth, many of them.

    python -m benchmarks.intervals

A model is a mixture of Gaussians in feature space, one for each class. Images of two models share a part of their
noise, as samples of the same noise do. The truth is the difference of the expected FIDs at that many images, from all
studies together. With replicates, training moves the tuned model's means by a random step, and the truth is over
trainings.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.common import Raw, options
from cca_ray.contracts import FID as FID_INFO
from cca_ray.contracts import Score
from cca_ray.evaluation.fid import frechet_distance
from cca_ray.evaluation.jackknife import jackknife_groups
from cca_ray.evaluation.reference import Moments, Reference, merge_all
from cca_ray.search.standings import Contender, Standing

CLASSES = 10


@dataclass(frozen=True)
class World:
    """Two models' features and those of real images. `training`: how far a training moves the tuned model's means."""

    features: int = 32
    samples: int = 900
    blocks: int = 3
    models: int = 1  # of the tuned model's settings
    common: float = 0.7  # correlation of the two models' noise
    apart: float = 0.3  # between the means of the models' classes
    training: float = 0.0
    seed: int = 0


def differences(world: World, studies: int) -> Iterator[tuple[float, float, float, float]]:
    """Of every study: the difference of one block, its mean over the blocks, and the ends of its interval."""
    rng = np.random.default_rng(world.seed)
    scale = 1 / np.sqrt(np.arange(1, world.features + 1))
    means = rng.normal(size=(CLASSES, world.features)) * scale
    base, tuned = means, means + world.apart * rng.normal(size=means.shape) * scale
    factors = [np.linalg.qr(rng.normal(size=(world.features,) * 2))[0] * scale * s for s in (1.0, 1.1, 0.9)]
    real = means + world.apart * rng.normal(size=means.shape) * scale
    covariance = factors[2] @ factors[2].T + np.cov(real.T, bias=True)
    reference = Reference(real.mean(0), covariance)
    labels = np.arange(world.samples) % CLASSES
    groups = jackknife_groups(np.arange(world.samples), world.samples, CLASSES)

    def score(means: np.ndarray, factor: np.ndarray, noise: np.ndarray) -> Score:
        features = means[labels] + noise @ factor.T
        parts = [Moments.of(features[groups == g]) for g in range(groups.max() + 1)]
        without = [merge_all([*parts[:g], *parts[g + 1 :]]) for g in range(len(parts))]
        left = tuple(frechet_distance(moments, reference) for moments in without)
        return Score(values={"fid": frechet_distance(merge_all(parts), reference)}, without={"fid": left})

    def standing(scores: Sequence[Sequence[Score]]) -> Standing:
        return Standing.of(Contender("a"), scores, np.empty(0))

    for _ in range(studies):
        noises = rng.normal(size=(world.blocks, world.samples, world.features))
        trained = [tuned + world.training * rng.normal(size=tuned.shape) * scale for _ in range(world.models)]

        def alike(noise: np.ndarray) -> np.ndarray:
            own = rng.normal(size=noise.shape)
            return world.common * noise + np.sqrt(1 - world.common**2) * own

        ours = standing([[score(each, factors[1], alike(noise)) for noise in noises] for each in trained])
        theirs = standing([[score(base, factors[0], noise) for noise in noises]])
        found = ours.beside(theirs, FID_INFO.name)
        one = ours.values["fid"][0, 0] - theirs.values["fid"][0, 0]
        yield float(one), found.value, *found.interval()


def coverage(studies: Iterable[tuple[float, ...]]) -> tuple[float, float, float, float]:
    """Of `differences`: the true one, the spread of one block's, the intervals' mean width, the share that holds it."""
    found = np.array(list(studies))
    truth = found[:, 1].mean()
    held = (found[:, 2] <= truth) & (truth <= found[:, 3])
    return float(truth), float(found[:, 0].std(ddof=1)), float((found[:, 3] - found[:, 2]).mean()), float(held.mean())


def row(name: str, studies: Iterable[tuple[float, ...]]) -> str:
    """Of the table."""
    truth, spread, width, held = coverage(studies)
    return f"| {name} | {truth:.3f} | {spread:.3f} | {width:.3f} | {held:.1%} |"


WORLDS = {
    "digits: 900 images, 32 features": World(),
    "1,800 images, 64 features": World(features=64, samples=1800),
    "one block": World(blocks=1),
    "little noise in common": World(common=0.2),
    "almost the same model": World(common=0.95, apart=0.05),
    "3 training seeds": World(models=3, training=0.05),
    "5 training seeds": World(models=5, training=0.05),
    "one training seed, and training is noisy": World(training=0.05),
}


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--studies", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    print("| what is simulated | true difference | std of one block's | width of the intervals | cover the truth |")
    print("|---|---|---|---|---|")
    raw = Raw(arguments.raw, "what is simulated", "study", "one block", "difference", "low", "high")
    studies = 2 if arguments.smoke else arguments.studies
    for name, world in WORLDS.items():
        world = replace(world, seed=arguments.seed, **({"samples": 200} if arguments.smoke else {}))
        found = list(differences(world, studies))
        for number, values in enumerate(found):
            raw.add(name, number, *(f"{value:.12g}" for value in values))
        print(row(name, found), flush=True)


if __name__ == "__main__":
    main()
