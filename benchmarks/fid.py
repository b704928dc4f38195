"""The Fréchet distance of 2,048 features: ours against scipy.linalg.sqrtm, the way of the official evaluators.

    python -m benchmarks.fid

Both sides are given means and covariances, ours below 2,048 samples the features.  The reference's factor is made
once a study and is not counted.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from scipy.linalg import sqrtm

from benchmarks.common import Raw, options
from cca_ray.evaluation.fid import frechet_distance, frechet_distance_few
from cca_ray.evaluation.reference import Moments, Reference


def features(count: int, seed: int, width: int) -> np.ndarray:
    """Correlated and positive, as pooled features are, with a spectrum that falls over four decades."""
    rng = np.random.default_rng(seed)
    turn = np.linalg.qr(np.random.default_rng(99).standard_normal((width, width)))[0]
    scale = np.logspace(0, -2, width)
    return 0.4 + 0.01 * seed + (rng.standard_normal((count, width)) * scale) @ turn


def official(sample: Moments, reference: Reference) -> float:
    """As pytorch-fid and ADM's evaluator have it, without their help for singular products."""
    delta = sample.mean - reference.mean
    root = sqrtm(sample.covariance @ reference.covariance)
    return float(delta @ delta + np.trace(sample.covariance + reference.covariance) - 2 * np.trace(root.real))


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    width, real, counts, rounds = 2048, 10_000, (5_000, 1_000), arguments.rounds
    if arguments.smoke:
        width, real, counts, rounds = 32, 200, (80, 20), 1
    raw = Raw(arguments.raw, "samples", "round", "way", "seconds", "distance")
    reference = Reference.of(Moments.of(features(real, 0, width)))
    assert reference.factor.shape == (width, width)  # made here, before the clock
    print("| samples | sqrtm, s | ours, s | ratio | apart, relative |\n|---|---|---|---|---|")
    for count in counts:
        sample = features(count, 1, width)
        moments = Moments.of(sample)
        assert moments.covariance.shape == (width, width)
        ways: dict[str, Callable[[], float]] = {
            "official": partial(official, moments, reference),
            "ours": partial(frechet_distance, moments, reference)
            if count > width
            else partial(frechet_distance_few, sample, reference),
        }
        seconds: dict[str, list[float]] = {"official": [], "ours": []}
        for number in range(rounds + 1):
            values = {}
            for name, distance in ways.items():
                started = time.perf_counter()
                values[name] = distance()
                if number:
                    seconds[name].append(time.perf_counter() - started)
                    raw.add(count, number, name, seconds[name][-1], values[name])
        ratio = statistics.median(a / b for a, b in zip(seconds["official"], seconds["ours"], strict=True))
        apart = abs(values["ours"] / values["official"] - 1)
        theirs, mine = (statistics.median(seconds[name]) for name in ("official", "ours"))
        print(f"| {count:,} | {theirs:.2f} | {mine:.2f} | {ratio:.1f} × | {apart:.0e} |", flush=True)


if __name__ == "__main__":
    main()
