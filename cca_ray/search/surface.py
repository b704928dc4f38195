"""A Gaussian process of how a score depends on a trial's settings, on its progress and on the model's size.

Pure functions of arrays, of NumPy alone. The surface is a shallow bowl, plus a quadratic, plus what is neither but
smooth; that of an earlier rung or of another size is the same, moved and bent, the more the further it is away.

scikit-learn's process can have no noise by observation together with factors of three kinds, and fits its
hyperparameters by gradient from a point; Optuna's is no public interface, and knows neither noise nor rungs. Here some
dozens of hyperparameters, drawn once and for all, are weighted by their likelihoods: with ten observations the best
one alone would be far too sure, and there is no optimizer that could fail.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.linalg import solve_triangular
from scipy.special import erf
from scipy.stats import norm, qmc

DRAWS, KEPT = 32, 4  # sets of hyperparameters that are tried, and of them the likeliest, which predict
OFFSET = 1.0  # standard deviation of what a rung or a size adds to all its scores: as good as unknown
BEND = 0.5  # of a quadratic's curvature, how unsure it is
JITTER = 1e-9


@dataclass(frozen=True)
class Points:
    """Where trials were scored, or would be: x [N, D] in -1..1.

    distance [N, 2]: how far a score is from that of a whole trial of this size, in doublings of the training and of the
    parameters; 0 is none. group [N]: scores of one size at one rung have one number, 0 is that of whole trials.
    """

    x: np.ndarray
    distance: np.ndarray
    group: np.ndarray
    trial: np.ndarray

    @staticmethod
    def whole(x: np.ndarray) -> "Points":
        """Trials of this size, run to their end; each another one."""
        return Points(x, np.zeros((len(x), 2)), np.zeros(len(x), int), -1 - np.arange(len(x)))

    def __len__(self) -> int:
        return len(self.x)

    def and_(self, more: "Points") -> "Points":
        names = ("x", "distance", "group", "trial")
        return Points(*(np.concatenate([getattr(self, name), getattr(more, name)]) for name in names))


@dataclass(frozen=True)
class Hyper:
    """Sets of hyperparameters, [H] each: length scales [H, D], and standard deviations."""

    lengths: np.ndarray
    smooth: np.ndarray  # of what is neither bowl nor quadratic
    bowl: np.ndarray  # of the quadratic: its expected curvature
    rung: np.ndarray  # a doubling of the training away
    size: np.ndarray  # a doubling of the parameters away
    training: np.ndarray  # from one training to another with the same settings

    def of(self, chosen: np.ndarray) -> "Hyper":
        return Hyper(*(getattr(self, name)[chosen] for name in self.__dataclass_fields__))

    def column(self, name: str) -> np.ndarray:
        """The squares of one, [H, 1, 1]."""
        return np.square(getattr(self, name))[:, None, None]


@lru_cache(maxsize=8)
def prior(dimensions: int) -> Hyper:
    """The same sets every time, evenly from log-normal distributions. Scores are in shares of the best one."""
    uniform = qmc.Sobol(dimensions + 5, rng=0).random(DRAWS)
    z = norm.ppf(uniform * 0.998 + 0.001)
    lengths = 0.9 * np.sqrt(max(dimensions, 2) / 2) * np.exp(0.5 * z[:, 5:])
    middle = {"smooth": (0.1, 0.7), "bowl": (0.2, 0.6), "rung": (0.06, 0.6), "size": (0.05, 0.6)}
    found = {name: m * np.exp(s * z[:, i]) for i, (name, (m, s)) in enumerate(middle.items())}
    return Hyper(lengths=lengths, training=0.015 * np.exp(0.6 * z[:, 4]), **found)


def matern(a: np.ndarray, b: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Matérn's function of order 5/2, [H, N, M] for a [N, D], b [M, D]."""
    squares = np.square(a[:, None] - b[None]).transpose(2, 0, 1)
    r = np.sqrt(np.tensordot(5.0 / np.square(lengths), squares, 1))
    return (1 + r * (1 + r / 3)) * np.exp(-r)


def surface_covariance(h: Hyper, a: Points, b: Points) -> np.ndarray:
    """Of the surface, without offsets and noise: [H, N, M]."""
    m, linear = matern(a.x, b.x, h.lengths), (a.x @ b.x.T)[None]
    # As of a random walk that starts at a whole trial of this size: what two share is the part of the way in common.
    near_rung, near_size = (np.minimum(a.distance[:, None, k], b.distance[None, :, k])[None] for k in (0, 1))
    quadratic = h.column("bowl") * (linear + BEND**2 * linear**2)
    bent = h.column("rung") * near_rung + h.column("size") * near_size
    return (h.column("smooth") + bent) * m + quadratic + bent * linear


def data_covariance(h: Hyper, points: Points, noise: np.ndarray) -> np.ndarray:
    """Of observed scores, whose own variances are `noise` [N]: [H, N, N]."""
    moved = points.group > 0
    offset = OFFSET**2 * (1.0 + (points.group[:, None] == points.group[None, :]) * moved)
    # One training's luck stays with it, from rung to rung.
    luck = (points.trial[:, None] == points.trial[None, :]) * 0.75 + 0.25 * np.eye(len(points))
    covariance = surface_covariance(h, points, points) + offset[None] + h.column("training") * luck[None]
    return covariance + np.diag(noise + JITTER)[None]


def solved_by(factor: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Of lower triangles [H, N, N] and right sides [H, N, M]."""
    pairs = zip(factor, right, strict=True)
    return np.array([solve_triangular(lower, columns, lower=True, check_finite=False) for lower, columns in pairs])


def own_variance(h: Hyper, x: np.ndarray) -> np.ndarray:
    """Of the surface at x [M, D], for whole trials of this size: [H, M]."""
    squares = np.square(x).sum(1)
    return h.column("smooth")[:, 0] + h.column("bowl")[:, 0] * squares * (1 + BEND**2 * squares)


def mean_of(h: Hyper, x: np.ndarray) -> np.ndarray:
    """A bowl with its bottom somewhere in the box, on the average over all places there: [H, N]."""
    return h.bowl[:, None] * np.square(x).sum(1)


@dataclass(frozen=True)
class Surface:
    """What is known of it: the hyperparameters that remain, their weights, and the data."""

    hyper: Hyper
    weights: np.ndarray  # [H]
    points: Points
    values: np.ndarray
    noise: np.ndarray
    expected: Points  # trials that run, of which nothing is known yet

    @staticmethod
    def of(points: Points, values: np.ndarray, noise: np.ndarray) -> "Surface":
        """After these scores, in shares of the best; `noise`: their variances."""
        hyper = prior(points.x.shape[1])
        factor = np.linalg.cholesky(data_covariance(hyper, points, noise))
        left = solved_by(factor, (values - mean_of(hyper, points.x))[:, :, None])
        log = -0.5 * np.square(left).sum((1, 2)) - np.log(np.diagonal(factor, axis1=1, axis2=2)).sum(1)
        best = np.argsort(-log, kind="stable")[:KEPT]
        weights = np.exp(log[best] - log[best[0]])
        return Surface(hyper.of(best), weights / weights.sum(), points, values, noise, Points.whole(points.x[:0]))

    def solved(self, across: Callable[[Points], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """The data's residuals [H, N] and these covariances with them [H, N, M], both whitened by the data's own.

        Trials that are expected count as if they had come out as the data say: no mean changes, only what is left to
        be learnt.
        """
        points, more = self.points.and_(self.expected), len(self.expected)
        noise = np.concatenate([self.noise, np.full(more, np.median(self.noise))])
        factor = np.linalg.cholesky(data_covariance(self.hyper, points, noise))
        residual = np.pad(self.values - mean_of(self.hyper, self.points.x), ((0, 0), (0, more)))
        both = solved_by(factor, np.concatenate([residual[:, :, None], across(points)], 2))
        return both[:, : len(self.points), 0], both[:, :, 1:]

    def predict(self, x: np.ndarray, origin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of whole trials of this size at x [M, D], against one at the origin [D]: mean and deviation, [H, M] each.

        A difference, because what all scores have in common is of no interest, and is known the least.
        """
        wanted, there = Points.whole(x), Points.whole(origin[None])
        h = self.hyper
        residual, white = self.solved(lambda ps: surface_covariance(h, ps, wanted) - surface_covariance(h, ps, there))
        mean = (
            mean_of(h, x) - mean_of(h, origin[None]) + np.einsum("hn,hnm->hm", residual, white[:, : residual.shape[1]])
        )
        own = own_variance(h, x) + own_variance(h, origin[None])
        before = own - 2 * surface_covariance(h, there, wanted)[:, 0]
        return mean, np.sqrt(np.maximum(before - np.square(white).sum(1), JITTER))

    def mean(self, x: np.ndarray) -> np.ndarray:
        """[M], against the middle of the box."""
        return self.weights @ self.predict(x, np.zeros(x.shape[1]))[0]

    def expecting(self, x: np.ndarray) -> "Surface":
        """With whole trials at x [M, D] under way."""
        return replace(self, expected=Points.whole(x))

    def gain(self, x: np.ndarray, origin: np.ndarray) -> np.ndarray:
        """How much lower than at the origin a trial is expected to come out, counting only what is lower: [M]."""
        mean, deviation = self.predict(x, origin)
        return self.weights @ improvement(-mean, deviation)

    def chance(self, x: np.ndarray, origin: np.ndarray, least: float) -> float:
        """That a trial at x [D] is lower than one at the origin by more than this."""
        mean, deviation = self.predict(x[None], origin)
        return float(self.weights @ norm.cdf((-least - mean[:, 0]) / deviation[:, 0]))


def improvement(mean: np.ndarray, deviation: np.ndarray) -> np.ndarray:
    """Expected positive part of a normal variable."""
    z = mean / deviation
    return deviation * (z * 0.5 * (1 + erf(z / np.sqrt(2))) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))
