"""How many training steps until a search is as good as a grid? On the digits, over several seeds.

    python -m benchmarks.search

A grid of 8 × 6 over (λ, learning rate) is trained to the end, and its best model is scored on fresh noise.  Then
searches without any first points; after every trial their best model so far is scored on the same fresh noise, until
it is within one standard error of the grid's, or within 3 %, whichever is wider.  Counted are the optimizer steps of
all trials until then, of stopped ones those that they made.

Then the rule at a rung, replayed on the trials that ran to their end: what share of the steps it saves with another
share kept and another number of first trials spared, and whether it would have stopped the best.
"""

import itertools
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState

from benchmarks.common import TINY, Raw, options, set_options
from cca_ray.config import ResolvedStudy, StudyConfig
from cca_ray.evaluation.scoring import load_base, protocol_of, score, scoring_of
from cca_ray.inputs import find_space
from cca_ray.models.parallel import Group
from cca_ray.search.records import rung_scores
from cca_ray.search.rungs import Mark, goes_on
from cca_ray.space_file import load_config
from cca_ray.training.small_base import resolve
from cca_ray.training.trial import trial_folder

SPACE, FRESH = "digits_m", range(9001, 9006)  # the search space; seeds of noise that no trial was scored on
WAYS = {
    "gp, rungs (the default)": [],
    "TPE, rungs": ["search.sampler=tpe"],
    "TPE, no rungs": ["search.sampler=tpe", "search.keep=1.0"],
    "random": ["search.sampler=random", "search.keep=1.0"],
}


@dataclass(frozen=True)
class Tried:
    """A trial: its optimizer steps, its score if it was completed, its weights, its first rung."""

    steps: int
    value: float | None
    weights: Path
    rung: Mark
    rung_step: int


def grid(config: StudyConfig, *counts: int) -> list[dict[str, float]]:
    """So many lambdas × so many learning rates, evenly over the space's logarithms, ends included."""
    lambdas, rates = (
        np.geomspace(config.search.space[name].low, config.search.space[name].high, count).clip(
            config.search.space[name].low, config.search.space[name].high
        )
        for name, count in zip(("lambda", "learning_rate"), counts, strict=True)
    )
    return [{"lambda": float(a), "learning_rate": float(b)} for a in lambdas for b in rates]


def study(storage: Path, name: str, settings: list[str], raw: Raw) -> list[Tried]:
    """Run it, or find it finished; its trials in order."""
    command = [sys.executable, "-m", "cca_ray.tune", SPACE, "--name", name, "--storage", str(storage)]
    # One trial at a time, so that the order of proposals is defined; the final comparison is not what is measured.
    settings = [
        *settings,
        "search.max_concurrent=1",
        "score.blocks=2",
        "score.finalists=1",
        "score.guidance_scales=[2]",
    ]
    subprocess.run([*command, *set_options(settings)], check=True, stdout=subprocess.DEVNULL)
    url = f"sqlite:///{storage / name / 'study.db'}"
    trials = optuna.load_study(study_name=f"{name}/{SPACE}/search", storage=url).trials
    tried = [
        Tried(
            max(trial.intermediate_values, default=0),
            trial.value if trial.state == TrialState.COMPLETE else None,
            trial_folder(storage / name, trial.user_attrs["key"]) / "model.pt",
            Mark.of(rung_scores(trial)[0], ["fid"]),
            rung_scores(trial)[0].step,
        )
        for trial in trials
    ]
    for number, one in enumerate(tried):
        raw.add(name, number, one.steps, one.value, one.rung_step)
    return tried


class Judge:
    """Scores weights on fresh noise."""

    def __init__(self, config: ResolvedStudy):
        self.config, self.group = config, Group()
        self.scoring = scoring_of(config, self.group.device)

    @lru_cache(maxsize=1000)  # noqa: B019 (one judge a process)
    def scores(self, weights: Path) -> list[float]:
        model, samples = load_base(self.config, str(weights)), self.config.score.samples
        protocols = [protocol_of(self.config, self.scoring, samples, seed=seed) for seed in FRESH]
        return [score(model, self.scoring, protocol, self.group).score.values["fid"] for protocol in protocols]

    def mean(self, weights: Path) -> float:
        return statistics.mean(self.scores(weights))


def steps_until(trials: list[Tried], judge: Judge, goal: float) -> float:
    """Optimizer steps until the best trial so far is as good as `goal` on fresh noise; infinite if never."""
    steps, best = 0, np.inf
    for trial in trials:
        steps += trial.steps
        if trial.value is not None and trial.value < best:
            best = trial.value
            if judge.mean(trial.weights) <= goal:
                return steps
    return np.inf


def replay(trials: list[Tried], keep: float, grace: int) -> tuple[float, bool]:
    """Share of the steps that this rule would have saved, and whether it would have stopped the best trial."""
    steps, marks, going = 0, list[Mark](), list[Tried]()
    for trial in trials:
        on = goes_on(trial.rung, marks, keep, grace)
        marks.append(trial.rung)
        going += [trial] * on
        steps += trial.steps if on else trial.rung_step
    best = min(trials, key=lambda trial: trial.value or 0.0)
    return 1 - steps / sum(trial.steps for trial in trials), best not in going


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--trials", type=int, default=24)
    arguments = parser.parse_args(words)
    tiny: tuple[str, ...] = ()
    counts, seeds, many, ways = (8, 6), arguments.seeds, arguments.trials, WAYS
    if arguments.smoke:
        counts, seeds, many, ways, tiny = (2, 1), [0], 1, {"TPE, no rungs": WAYS["TPE, no rungs"]}, TINY
    raw = Raw(arguments.raw, "study", "trial", "steps", "fid", "step of its first rung")
    config, storage = load_config(find_space(SPACE), tiny), arguments.storage.resolve()
    points = grid(config, *counts)
    first = [f"search.first_points={json.dumps(points)}", f"search.trials={len(points)}"]
    of_grid = study(storage, "grid", [*tiny, *first, "search.keep=1.0"], raw)
    judge = Judge(resolve(config, storage, lambda what, done, of: None))
    best = min((trial for trial in of_grid if trial.value is not None), key=lambda trial: trial.value or 0.0)
    fids, steps = judge.scores(best.weights), sum(trial.steps for trial in of_grid)
    goal = statistics.mean(fids) + max(statistics.stdev(fids) / len(fids) ** 0.5, 0.03 * statistics.mean(fids))
    print(f"grid: {steps:,} steps, FID {statistics.mean(fids):.2f} on fresh noise; the goal is {goal:.2f}\n")
    print("| search | share of the grid's steps, median | of each seed | reached |\n|---|---|---|---|")
    whole: list[list[Tried]] = []  # studies of which no trial was stopped
    for number, (way, settings) in enumerate(ways.items()):
        shares = []
        for seed in seeds:
            common = [*tiny, f"search.trials={many}", f"search.seed={seed}", "search.first_points=[]"]
            trials = study(storage, f"way{number}-seed{seed}", [*common, *settings], raw)
            shares.append(steps_until(trials, judge, goal) / steps)
            whole += [trials] if "search.keep=1.0" in settings else []
        each = ", ".join("never" if share == np.inf else f"{share:.2f}" for share in shares)
        reached = sum(share < np.inf for share in shares)
        print(f"| {way} | {statistics.median(shares):.2f} | {each} | {reached} of {len(shares)} |", flush=True)
    print("\n| kept | spared at first | steps saved, mean | best trial stopped |\n|---|---|---|---|")
    for keep, grace in itertools.product((0.25, 0.5), (1, 4, 8)):
        saved, stopped = zip(*(replay(trials, keep, grace) for trials in whole), strict=True)
        print(f"| {keep:g} | {grace} | {statistics.mean(saved):.0%} | in {sum(stopped)} of {len(whole)} studies |")


if __name__ == "__main__":
    main()
