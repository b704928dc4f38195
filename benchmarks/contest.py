"""The contest of searches: whole studies simulated on landscapes whose truth is known, many for every way to search.

    python -m benchmarks.contest                                  all that is installed, on the analytic landscapes
    python -m benchmarks.contest --ways random tpe gp --landscapes narrow-1 --studies 100
    python -m benchmarks.contest --table benchmarks/results/landscape.parquet
    python -m benchmarks.contest --studies 0                      only the table of what has been simulated

Shown are medians over studies: the cost, in whole trials, until the true FID of what the search would answer is within
3 % and within 1 % of the best, and how far it is above the best at 4, 8, 16 and 32 whole trials' cost. Every way meets
the same landscapes, windows of them and luck, and answers with the completed trial that scored best. A run that was cut
short goes on: what --raw has is not simulated again.
"""

import argparse
import csv
import itertools
import logging
import math
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from statistics import fmean, median

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from benchmarks.common import ROOT, Raw, commit, options
from benchmarks.landscape import read_rows
from benchmarks.search_peers import FIRST, Smac, SyneTune, installed
from benchmarks.simulator import FAMILIES, Known, Landscape, Tabulated, Task, Trial, Way, best_observed, simulate
from cca_ray.contracts import RungScore
from cca_ray.registry import SAMPLERS
from cca_ray.search.gp_sampler import worth_going_on
from cca_ray.search.rungs import Mark, goes_on
from cca_ray.search.samplers import Earlier, Question

RESULTS = ROOT / "benchmarks" / "results" / "contest.csv"
ON_REAL_TRIALS = RESULTS.with_name("contest-real.csv")
LADDER = (0.125, 0.5, 1.0)  # about that of the search spaces of ImageNet
KEEP, GRACE = (0.9, 0.5), 4  # of those spaces, and of the defaults
AT = (4, 8, 16, 32)  # costs at which regrets are taken
CLOSE = (0.03, 0.01)
TRIALS_BEFORE = 14.0  # cost of a smaller size's study, in whole trials: the digits' number
STATES = {
    "running": TrialState.RUNNING, "complete": TrialState.COMPLETE, "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}  # fmt: skip


def distributions(task: Task) -> dict[str, FloatDistribution]:
    ends = zip(("lambda", "learning_rate"), 10.0**task.low, 10.0**task.high, strict=True)
    return {name: FloatDistribution(float(low), float(high), log=True) for name, low, high in ends}


def mark(trial: Trial, rung: int) -> Mark:
    value, without = trial.scores[rung]
    return Mark(np.array([value]), without[None])


def rule(trials: Sequence[Trial], trial: Trial) -> bool:
    """Ours, at rungs."""
    rung = len(trial.scores) - 1
    others = [mark(other, rung) for other in trials if other is not trial and len(other.scores) > rung]
    return goes_on(mark(trial, rung), others, KEEP[rung], GRACE)


@dataclass
class Optunas:
    """One of Optuna's samplers, with a study of its own; with our rule at rungs or without rungs."""

    task: Task
    sampler: optuna.samplers.BaseSampler
    rungs: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        self.study, self.asked = optuna.create_study(sampler=self.sampler), dict[int, optuna.Trial]()
        if self.task.known:
            self.study.enqueue_trial(dict(self.task.known.best))

    def propose(self, trials: Sequence[Trial]) -> Mapping[str, float]:
        asked = self.study.ask(dict(distributions(self.task)))
        self.asked[len(trials)] = asked
        return asked.params

    def goes_on(self, trials: Sequence[Trial], trial: Trial) -> bool:
        return rule(trials, trial)

    def ended(self, trial: Trial) -> None:
        state, asked = STATES[trial.state], self.asked[trial.number]
        for at, (value, _) in zip(self.rungs, trial.scores, strict=False):
            asked.report(value, round(1000 * at))
        self.study.tell(asked, trial.scores[-1][0] if trial.state == "complete" else None, state=state)

    def incumbent(self, trials: Sequence[Trial]) -> Trial | None:
        return best_observed(trials)


@dataclass
class Ours:
    """A sampler as a study asks it, and the rule at a rung."""

    task: Task
    sampler: str
    rungs: tuple[float, ...] = LADDER
    posterior: bool = False  # rule at a rung
    smaller: "Ours | None" = None  # keeps the trials of the smaller size
    kept: dict[int, tuple[str, int, FrozenTrial]] = field(default_factory=dict)

    def frozen(self, trial: Trial) -> FrozenTrial:
        """As Optuna's storage would hold it."""
        state, count = trial.state, len(trial.scores)
        if trial.number in self.kept and self.kept[trial.number][:2] == (state, count):
            return self.kept[trial.number][2]
        attributes = {}
        for rung, (value, without) in enumerate(trial.scores):
            score = RungScore(
                values={"fid": value},
                without={"fid": tuple(without.tolist())},
                step=round(1000 * self.rungs[rung]),
                samples=1000,
                scoring_seconds=0.0,
            )
            attributes[f"rung {rung}"] = score.model_dump()
        done = STATES[state] == TrialState.COMPLETE
        found = FrozenTrial(
            number=trial.number,
            state=STATES[state],
            value=trial.scores[-1][0] if done else None,
            datetime_start=datetime.min,
            datetime_complete=None if state == "running" else datetime.min,
            params=dict(trial.params),
            distributions=dict(distributions(self.task)),
            user_attrs=attributes,
            system_attrs={},
            intermediate_values={round(1000 * at): v for at, (v, _) in zip(self.rungs, trial.scores, strict=False)},
            trial_id=trial.number,
        )
        self.kept[trial.number] = state, count, found
        return found

    def earlier(self) -> list[Earlier]:
        if self.task.known is None:
            return []
        if self.smaller is None:
            self.smaller = Ours(self.task, self.sampler)
        trials = [self.smaller.frozen(trial) for trial in self.task.known.trials]
        return [Earlier(trials, LADDER, self.task.known.doublings)]

    def question(self, trials: Sequence[Trial]) -> Question:
        return Question(
            trials=[self.frozen(trial) for trial in trials],
            space=distributions(self.task),
            metrics=("fid",),
            rungs=self.rungs,
            number=len(trials),
            seed=(1000 * self.task.seed + len(trials)) % 2**32,
            earlier=self.earlier(),
        )

    def propose(self, trials: Sequence[Trial]) -> Mapping[str, float]:
        if self.task.known and not trials:
            return self.task.known.best
        return SAMPLERS.get(self.sampler).propose(self.question(trials))

    def goes_on(self, trials: Sequence[Trial], trial: Trial) -> bool:
        if not self.posterior:
            return rule(trials, trial)
        asked = replace(self.question(trials), number=trial.number)
        return worth_going_on(asked, len(trial.scores) - 1)

    def ended(self, trial: Trial) -> None:
        pass

    def incumbent(self, trials: Sequence[Trial]) -> Trial | None:
        return best_observed(trials)


MakeWay = Callable[[Task], Way]
WAYS: dict[str, MakeWay] = {
    "random": lambda task: Optunas(task, optuna.samplers.RandomSampler(task.seed)),
    "quasi-random": lambda task: Optunas(task, optuna.samplers.QMCSampler(seed=task.seed, scramble=True)),
    "TPE": lambda task: Ours(task, "tpe"),
    "TPE, multivariate": lambda task: Optunas(
        task,
        optuna.samplers.TPESampler(seed=task.seed, multivariate=True, constant_liar=True, n_startup_trials=FIRST),
        LADDER,
    ),
    "CMA-ES": lambda task: Optunas(task, optuna.samplers.CmaEsSampler(seed=task.seed)),
    "Optuna's GP": lambda task: Optunas(
        task, optuna.samplers.GPSampler(seed=task.seed, n_startup_trials=FIRST), LADDER
    ),
    "gp": lambda task: Ours(task, "gp"),
    "gp, posterior": lambda task: Ours(task, "gp", posterior=True),
}
if installed("syne_tune"):
    WAYS |= {
        "Syne Tune's ASHA": lambda task: SyneTune(task, "ASHA"),
        "Syne Tune's BOHB": lambda task: SyneTune(task, "BOHB"),
        "Syne Tune's ASHA with BORE": lambda task: SyneTune(task, "ASHABORE"),
        "Syne Tune's ASHA with CQR": lambda task: SyneTune(task, "ASHACQR"),
    }
SLOW = ("Syne Tune's ASHA with BORE", "Syne Tune's ASHA with CQR")  # a second a proposal
if installed("smac", "ConfigSpace"):
    WAYS["SMAC3"] = Smac


@dataclass(frozen=True)
class Result:
    """One simulated study: costs until it was close, and regrets at costs; infinite if never, or nothing yet."""

    way: str
    landscape: str
    at_once: int
    hardship: str
    budget: float  # whole trials
    study: int
    costs: tuple[float, ...]  # by CLOSE
    regrets: tuple[float, ...]  # by AT
    proposal: float  # seconds, the mean
    commit: str = ""  # whose code searched

    COLUMNS = (
        "way", "landscape", "at once", "hardship", "budget", "study", *(f"cost to {c:.0%}" for c in CLOSE),
        *(f"regret at {a}" for a in AT), "seconds a proposal", "commit",
    )  # fmt: skip

    def cells(self) -> list[object]:
        numbers = [f"{value:.4g}" for value in (self.budget, self.study, *self.costs, *self.regrets, self.proposal)]
        return [self.way, self.landscape, self.at_once, self.hardship, *numbers, self.commit]

    @property
    def key(self) -> tuple[str, str, int, str, float, int]:
        return self.way, self.landscape, self.at_once, self.hardship, self.budget, self.study

    @staticmethod
    def read(cells: Sequence[str]) -> "Result":
        way, landscape, at_once, hardship, *numbers, commit = cells
        budget, study, *measured, proposal = map(float, numbers)
        costs, regrets = tuple(measured[: len(CLOSE)]), tuple(measured[len(CLOSE) :])
        return Result(way, landscape, int(at_once), hardship, budget, int(study), costs, regrets, proposal, commit)


IN_WORDS = {
    "none": "", "failures": "every eighth trial fails", "noise": "twice the noise",
    "smaller known": "a smaller size is known",
}  # fmt: skip
HARDSHIPS = tuple(IN_WORDS)


def smaller_of(known: Mapping[str, Landscape], name: str) -> Landscape | None:
    """The next smaller size of its family."""
    own = known[name]
    smaller = (one for one in known.values() if one.family == own.family and one.doublings < own.doublings)
    return max(smaller, key=lambda one: one.doublings, default=None)


def task_of(known: Mapping[str, Landscape], name: str, hardship: str, study: int) -> Task:
    """What a study of this number searches, whichever the way. The last hardship is none."""
    task = Task.of(known[name], study, 2.0 if hardship == "noise" else 1.0, hardship == "failures")
    if hardship != "smaller known":
        return task
    before = smaller_of(known, name)
    assert before is not None
    smaller = replace(task, landscape=before, seed=Task.of(before, study).seed)
    trials: list[Trial] = []
    list(simulate(smaller, WAYS["TPE"](smaller), 1, TRIALS_BEFORE, trials))
    doublings = task.landscape.doublings - smaller.landscape.doublings
    return replace(task, known=Known([t for t in trials if t.state != "running"], doublings))


def run(name: str, task: Task, at_once: int, hardship: str, study: int, budget: float) -> Result:
    """`study`: its number, and that of its window and luck."""
    way, spent, proposals = WAYS[name](task), 0.0, 0
    propose = way.propose

    def timed(trials: Sequence[Trial]) -> Mapping[str, float]:
        nonlocal spent, proposals
        began = time.perf_counter()
        found = propose(trials)
        spent, proposals = spent + time.perf_counter() - began, proposals + 1
        return found

    way.propose = timed  # type: ignore[method-assign]
    costs, regrets = [math.inf] * len(CLOSE), [math.inf] * len(AT)
    for cost, regret in simulate(task, way, at_once, budget):
        costs = [min(known, cost) if regret <= close else known for known, close in zip(costs, CLOSE, strict=True)]
        # What is known at a cost is known from then on.
        regrets = [regret if cost <= at + 1e-9 else known for known, at in zip(regrets, AT, strict=True)]
    regrets = [regret if at <= budget else math.nan for regret, at in zip(regrets, AT, strict=True)]
    costs_and_regrets = tuple(costs), tuple(regrets)
    return Result(
        name, task.landscape.name, at_once, hardship, budget, study, *costs_and_regrets, spent / proposals, commit()
    )


def read_results(path: Path | None) -> list[Result]:
    """None of a file that is not there."""
    if path is None or not path.exists():
        return []
    _, _, *lines = path.read_text(encoding="utf-8").splitlines()
    return [Result.read(cells) for cells in csv.reader(lines)]


def number(value: float) -> str:
    """`–`: at least half were never so close."""
    return "–" if math.isinf(value) else f"{value:.3g}"


def table(results: Sequence[Result]) -> str:
    """A row for every way under every hardship; medians, by landscape and of all studies."""
    shapes = list(dict.fromkeys(shape_of(r.landscape) for r in results))
    head = (
        "hardship", "trials at once", "search", *shapes, "all", "studies", "never", "all, to 1 %",
        *(f"regret at {at}" for at in AT), "ms a proposal",
    )  # fmt: skip
    lines = [f"| {' | '.join(head)} |", "|" + len(head) * "---|"]
    grouped: dict[tuple[str, int, str], list[Result]] = defaultdict(list)
    for r in results:
        grouped[r.hardship, r.at_once, r.way].append(r)
    ways = list(WAYS)

    def place(key: tuple[str, int, str]) -> tuple[int, int, int]:
        hardship, at_once, way = key
        return HARDSHIPS.index(hardship), at_once, ways.index(way) if way in ways else len(ways)

    for hardship, at_once, way in sorted(grouped, key=place):
        some = grouped[hardship, at_once, way]
        costs, regrets = zip(*(r.costs for r in some), strict=True), zip(*(r.regrets for r in some), strict=True)
        close, closer = map(list, costs)
        of_shapes = [[r.costs[0] for r in some if shape_of(r.landscape) == shape] for shape in shapes]
        cells = [
            IN_WORDS[hardship], at_once, way, *(number(median(of_shape)) if of_shape else "" for of_shape in of_shapes),
            number(median(close)), len(some), sum(map(math.isinf, close)), number(median(closer)),
            *map(regret, map(median, regrets)), f"{1000 * fmean(r.proposal for r in some):.0f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def shape_of(landscape: str) -> str:
    """Sizes of an analytic landscape stand together; real ones each for itself."""
    shape = landscape.rpartition("-")[0]
    return shape if shape in FAMILIES else landscape


def regret(value: float) -> str:
    """Empty beyond the budget."""
    return "" if math.isnan(value) else number(100 * value) + " %" * math.isfinite(value)


def landscapes(table: Path | None) -> dict[str, Landscape]:
    """The analytic ones, or those of a table of real trials."""
    if table is None:
        return {one.name: one for sizes in FAMILIES.values() for one in sizes}
    by_size = defaultdict(list)
    for row in read_rows(table):
        by_size[row.space].append(row)
    smallest = min((rows[0].parameters for rows in by_size.values()), default=1)
    return {space: Tabulated.of(rows, smallest) for space, rows in by_size.items()}


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--ways", nargs="+", default=[way for way in WAYS if way not in SLOW], choices=list(WAYS))
    parser.add_argument("--landscapes", nargs="+")
    parser.add_argument("--table", type=Path, help="of real trials, in place of the analytic landscapes")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--hardships", nargs="+", default=list(HARDSHIPS), choices=HARDSHIPS)
    parser.add_argument("--studies", type=int, default=100)
    parser.add_argument("--budget", type=float, default=32.0, help="whole trials")
    arguments = parser.parse_args(words)
    if arguments.raw is None and not arguments.smoke:
        arguments.raw = RESULTS if arguments.table is None else ON_REAL_TRIALS
    with silence():
        contest(arguments)


@contextmanager
def silence() -> Iterator[None]:
    """Neither the ways nor what they import say anything meanwhile; afterwards they may as before."""
    disabled, verbosity = logging.root.manager.disable, optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
        optuna.logging.set_verbosity(verbosity)


def contest(arguments: argparse.Namespace) -> None:
    """Simulate what has not been, and show the table of all."""
    known = landscapes(arguments.table)
    names = arguments.landscapes or list(known)
    if arguments.smoke:
        names, arguments.ways, arguments.studies, arguments.budget = names[:1], ["random", "TPE", "gp"], 1, 4.0
    done, budget = read_results(arguments.raw), arguments.budget
    keys, raw = {result.key for result in done}, Raw(arguments.raw, *Result.COLUMNS, goes_on=True)
    # One study of everything after the other, so that a part of them is a part of each.
    for study, hardship, at_once, name in itertools.product(
        range(arguments.studies), arguments.hardships, arguments.at_once, names
    ):
        if hardship == "smaller known" and smaller_of(known, name) is None:
            continue
        wanted = [way for way in arguments.ways if (way, name, at_once, hardship, budget, study) not in keys]
        if not wanted:
            continue
        task = task_of(known, name, hardship, study)
        for way in wanted:
            result = run(way, task, at_once, hardship, study, budget)
            raw.add(*result.cells())
            done.append(result)
    print(table([result for result in done if result.budget == budget]))


if __name__ == "__main__":
    main()
