"""The sampler `gp`: what to try next by a Gaussian process of all scores so far, those of rungs too.

Smaller sizes and earlier studies count as well. Its only memory is the trials: the same ones give the same proposal.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState
from scipy.stats import qmc

from cca_ray.contracts import CHANCE_OF, Prospect
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.search.records import rung_scores
from cca_ray.search.rungs import Mark
from cca_ray.search.samplers import TPE, Distribution, Earlier, Question
from cca_ray.search.surface import Points, Surface

KNEE = 0.3  # what is worse than the best by more than this share counts less and less: it only says where not to look
MOST = 150  # scores that the surface is computed from; of more, the best, its own before others'
SPREAD = 256  # points over the whole space among which the next is looked for
BEST = 6  # trials about which is looked
NEAR, REACH = 16, (0.08, 0.25)  # points about each of the best trials, and how far from it
UNSURE = 0.1  # of a trial that failed, in shares of the best: its error is at least this
WORTH = 0.7  # of what a new trial promises: this one's score is there, a new one's may yet disappoint
APART = 0.1  # from a trial that runs, along one side at least: a twin of it would only tell the noise
REFINED = 3  # the best of these are looked around again


@dataclass(frozen=True)
class Scores:
    """Scores of one size at one rung: costs [N], their standard errors, settings in the box, and whose they are."""

    costs: np.ndarray
    errors: np.ndarray
    x: np.ndarray
    trials: np.ndarray

    def shares(self) -> tuple[np.ndarray, np.ndarray]:
        """By how much they are above the best, in shares of it, and the variances of that."""
        best = self.costs.min()
        # Of a cost about zero, such as KID's, shares would be meaningless: then of what the better half differs by.
        unit = max(abs(best), (np.median(self.costs) - best) / 5, 1e-12)
        above = (self.costs - best) / unit
        slope = 1 / (1 + above / KNEE)
        return KNEE * np.log1p(above / KNEE), np.square(self.errors / unit * slope)


class Box:
    """The search space as a cube from -1 to 1."""

    def __init__(self, space: Mapping[str, Distribution]):
        self.space = dict(space)
        self.log = np.array([values.log for values in space.values()])
        ends = np.array([(values.low, values.high) for values in space.values()], float)
        self.low, high = (self.scaled(end) for end in ends.T)
        self.width = high - self.low

    def scaled(self, values: np.ndarray) -> np.ndarray:
        return np.where(self.log, np.log(np.where(self.log, values, 1.0)), values)

    def inside(self, params: Iterable[Mapping[str, float]]) -> np.ndarray:
        """[N, D]; settings beyond the ends are beyond -1 or 1."""
        rows = [[one[name] for name in self.space] for one in params]
        values = np.array(rows, float).reshape(-1, len(self.space))
        return 2 * (self.scaled(values) - self.low) / self.width - 1

    def params(self, x: np.ndarray) -> dict[str, float]:
        """Of one point [D]; whole numbers are rounded."""
        scaled = self.low + (x + 1) / 2 * self.width
        values = np.where(self.log, np.exp(scaled), scaled)
        found: dict[str, float] = {}
        for (name, bounds), value in zip(self.space.items(), values, strict=True):
            inside = min(max(float(value), bounds.low), bounds.high)
            found[name] = round(inside) if isinstance(bounds, IntDistribution) else inside
        return found


def common_noise(without: Sequence[np.ndarray]) -> float:
    """How much of their noise the scores at a rung have in common: the mean correlation of what the groups change."""
    if len(without) < 2 or len({len(one) for one in without}) > 1 or len(without[0]) < 3:
        return 0.0
    moves = np.array(without) - np.mean(without, 1, keepdims=True)
    lengths = np.linalg.norm(moves, axis=1)
    moves = moves[lengths > 0] / lengths[lengths > 0, None]
    if len(moves) < 2:
        return 0.0
    pairs = moves @ moves.T
    mean = (pairs.sum() - len(moves)) / (len(moves) * (len(moves) - 1))
    return float(np.clip(mean, 0.0, 0.95))


def by_rung(trials: Sequence[FrozenTrial], box: Box, metrics: tuple[str, ...]) -> dict[int, Scores]:
    """The scores of one size, by the number of the rung."""
    found: dict[int, list[tuple[FrozenTrial, Mark]]] = {}
    for trial in trials:
        if trial.params.keys() >= box.space.keys():
            for rung, score in enumerate(rung_scores(trial)):
                found.setdefault(rung, []).append((trial, Mark.of(score, metrics)))
    result = {}
    for rung, marks in found.items():
        own = 1 - common_noise([mark.without[0] for _, mark in marks])  # what all share moves all alike
        result[rung] = Scores(
            costs=np.array([mark.costs[0] for _, mark in marks]),
            errors=np.sqrt(own) * np.array([jackknife_error(mark.without[0]) for _, mark in marks]),
            x=box.inside(trial.params for trial, _ in marks),
            trials=np.array([trial.number for trial, _ in marks]),
        )
    return result


@dataclass(frozen=True)
class Data:
    """All scores, as the surface takes them."""

    points: Points
    values: np.ndarray
    noise: np.ndarray

    def of(self, chosen: np.ndarray) -> "Data":
        p = self.points
        points = Points(p.x[chosen], p.distance[chosen], p.group[chosen], p.trial[chosen])
        return Data(points, self.values[chosen], self.noise[chosen])

    @staticmethod
    def joined(parts: Sequence["Data"]) -> "Data":
        points = parts[0].points
        for part in parts[1:]:
            points = points.and_(part.points)
        return Data(points, np.concatenate([p.values for p in parts]), np.concatenate([p.noise for p in parts]))


LEAST_AWAY = 0.25  # doublings of the parameters: another size is never just the same
MOST_RUNGS, MOST_TRIALS = 100, 10**6  # of one size: for numbers that tell sizes apart


def data_of(size: Earlier, box: Box, metrics: tuple[str, ...], number: int = 0) -> list[Data]:
    """Of one size, by rungs; the number of the one at work is 0."""
    found, last = [], len(size.rungs) - 1
    for rung, scores in by_rung(size.trials, box, metrics).items():
        values, noise = scores.shares()
        count = len(values)
        away = max(abs(size.doublings), LEAST_AWAY) if number else 0.0
        distance = np.tile([-np.log2(size.rungs[min(rung, last)]), away], (count, 1))
        group = np.full(count, number * MOST_RUNGS + max(last - rung, 0))
        found.append(Data(Points(scores.x, distance, group, number * MOST_TRIALS + scores.trials), values, noise))
    return found


def failed(trials: Sequence[FrozenTrial], box: Box, own: Sequence[Data], others: Sequence[Data]) -> list[Data]:
    """A trial that failed may have been a bad one, or had bad luck: a bad score with a large error.

    Beside the scores that are nearest to a whole trial's, for in a group of its own it would only tell of a constant.
    """
    some = [t for t in trials if t.state == TrialState.FAIL and t.params.keys() >= box.space.keys()]
    parts = own or others
    if not some or not parts:
        return []
    values = np.concatenate([part.values for part in parts])
    bad, spread = max(np.quantile(values, 0.8), KNEE), max(float(np.ptp(values)) if own else 0.0, UNSURE)
    x, group = box.inside(t.params for t in some), min(int(part.points.group[0]) for part in parts)
    points = Points(x, np.zeros((len(x), 2)), np.full(len(x), group), np.array([t.number for t in some]))
    return [Data(points, np.full(len(x), bad), np.full(len(x), spread**2))]


def knowledge(question: Question, box: Box) -> Data | None:
    """What is known before the proposal; None if nothing is."""
    own = data_of(Earlier(question.trials, question.rungs, 0.0), box, question.metrics)
    others = [part for i, size in enumerate(question.earlier, 1) for part in data_of(size, box, question.metrics, i)]
    parts = [*own, *failed(question.trials, box, own, others), *others]
    if not parts:
        return None
    data = Data.joined(parts)
    if len(data.values) > MOST:  # its own come first, for a large study that it learns from could push them all out
        others_last = np.lexsort((data.values, data.points.trial >= MOST_TRIALS))
        data = data.of(np.sort(others_last[:MOST]))
    return data


def candidates(rng: np.random.Generator, dimensions: int, best: np.ndarray) -> np.ndarray:
    """Points over the whole cube, and about the best ones: [N, D]."""
    spread = 2 * qmc.Sobol(dimensions, rng=rng).random(SPREAD) - 1
    near = [best + reach * rng.standard_normal((NEAR, *best.shape)) for reach in REACH]
    return np.clip(np.concatenate([spread, *(points.reshape(-1, dimensions) for points in near)]), -1, 1)


@dataclass(frozen=True)
class GpSampler:
    """`search.sampler: gp`. Of several metrics, TPE searches the front."""

    name: str = "gp"
    kind: str = "sampler"

    def propose(self, question: Question) -> Mapping[str, float]:
        if len(question.metrics) > 1:
            return TPE.propose(question)
        box, rng = Box(question.space), np.random.default_rng(question.seed)
        data = knowledge(question, box)
        waiting = [t for t in question.trials if t.state in (TrialState.RUNNING, TrialState.WAITING)]
        running = box.inside(t.params for t in waiting if t.params.keys() >= box.space.keys())
        if data is None:
            placed = sum(t.params.keys() >= box.space.keys() for t in question.trials)  # those that failed, too
            return box.params(first_points(len(box.space), placed + 1)[-1])
        surface = Surface.of(data.points, data.values, data.noise)
        tried = data.points.x[data.points.group < MOST_RUNGS]
        tried = np.clip(tried if len(tried) else data.points.x, -1, 1)
        best = tried[np.argsort(surface.mean(tried), kind="stable")[:BEST]]
        points = candidates(rng, len(box.space), best)
        return box.params(best_gain(surface.expecting(running), best[0], points, rng)[0])


def first_points(dimensions: int, count: int) -> np.ndarray:
    """While nothing is known: the middle, then evenly about it."""
    drawn = qmc.Sobol(dimensions, scramble=False).random_base2(count.bit_length())
    return drawn[1 : count + 1] * 2 - 1  # without the corner, with which it begins


def best_gain(
    surface: Surface, origin: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """The point of the largest expected gain, [D], and that gain; looked for among these and around the best."""
    gains = surface.gain(points, origin)
    top = points[np.argsort(-gains, kind="stable")[:REFINED]]
    around = np.clip(top + 0.04 * rng.standard_normal((NEAR, *top.shape)), -1, 1).reshape(-1, points.shape[1])
    points, gains = np.concatenate([points, around]), np.concatenate([gains, surface.gain(around, origin)])
    if len(running := surface.expected.x):
        far = (np.abs(points[:, None] - running[None]).max(2) >= APART).all(1)
        gains = np.where(far, gains, 0.0)
    return points[int(np.argmax(gains))], float(gains.max())


def worth_going_on(question: Question, rung: int) -> bool:
    """Whether the trial of this number, which has come to this rung, goes on: `search.rungs: posterior`.

    It does if the rest of it promises at least `WORTH` of what as much of a new trial would: both by how much they are
    expected to improve on the best completed one. Until one is completed, all go on: no rung alone says what a whole
    trial comes to.
    """
    box, rng, number = Box(question.space), np.random.default_rng([question.seed, rung]), question.number
    data, done = knowledge(question, box), [t for t in question.trials if t.state == TrialState.COMPLETE]
    if data is None or not done:
        return True
    surface = Surface.of(data.points, data.values, data.noise)
    completed, own = box.inside(t.params for t in done), box.inside([question.trials[number].params])
    origin = completed[int(np.argmin(surface.mean(completed)))]
    running = [t for t in question.trials if t.state == TrialState.RUNNING and t.number != number]
    others = surface.expecting(box.inside(t.params for t in running))
    _, new = best_gain(others, origin, candidates(rng, len(box.space), np.concatenate([completed, own])), rng)
    return bool(surface.gain(own, origin)[0] >= WORTH * (1 - question.rungs[rung]) * new)


def prospect(question: Question) -> Prospect | None:
    """What the trial that is asked for should bring; None of several metrics, or before one is completed."""
    box, rng = Box(question.space), np.random.default_rng(question.seed)
    done = [t for t in question.trials if t.state == TrialState.COMPLETE]
    data = knowledge(question, box) if len(question.metrics) == 1 and done else None
    if data is None:
        return None
    surface = Surface.of(data.points, data.values, data.noise)
    completed = box.inside(t.params for t in done)
    best = completed[np.argsort(surface.mean(completed), kind="stable")[:BEST]]
    running = [t for t in question.trials if t.state == TrialState.RUNNING]
    surface = surface.expecting(box.inside(t.params for t in running))
    point, gain = best_gain(surface, best[0], candidates(rng, len(box.space), best), rng)
    return Prospect(expected_gain=gain, chance=surface.chance(point, best[0], CHANCE_OF))


GP = GpSampler()
