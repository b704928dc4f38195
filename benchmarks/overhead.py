"""What a search costs besides training and scoring.

Seconds per empty trial of Ray Tune, ours against the nested TorchTrainer of Ray's documentation: trials that train
nothing, one after the other; what is left is the start and end of processes.  A run of one trial is taken off, so
that the start of Ray and Tune does not count.  Then real studies of `digits_s` at concurrency 1 and 2: wall time,
Tune's start included, times the concurrency, over the seconds that their trials trained and scored.

    python -m benchmarks.overhead
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from ray import train, tune
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from benchmarks.common import TINY, Raw, options, some_ray
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.evaluation.scoring import load_base, load_tokens
from cca_ray.inputs import find_space
from cca_ray.models.files import digest_of_weights
from cca_ray.placement_config import Placement
from cca_ray.search.arms import open_arms, trials_of
from cca_ray.search.ledger import Ledger
from cca_ray.search.mlflow_listener import MlflowListener
from cca_ray.search.ray_tune import run_trials
from cca_ray.search.records import used_device_seconds
from cca_ray.search.shared_files import reference_table
from cca_ray.search.size_study import open_storage
from cca_ray.space_file import load_config
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.group import build_group, build_local
from cca_ray.training.small_base import resolve
from cca_ray.training.trial import trial_resources

# As many as the driver of the documented way and two workers want together: on two it would wait for ever.
CPUS = 4


def nothing(config: object) -> None:
    train.report({"fid": 1.0})


def documented(config: dict[str, Any]) -> None:
    """https://docs.ray.io/en/latest/train/user-guides/hyperparameter-optimization.html"""
    TorchTrainer(
        nothing,
        scaling_config=ScalingConfig(num_workers=config["workers"]),
        run_config=RunConfig(
            name=f"documented-{tune.get_context().get_trial_id()}",
            storage_path=config["folder"],
            callbacks=[TuneReportCallback()],
        ),
    ).fit()


def ours(config: dict[str, Any]) -> None:
    placement = Placement(workers=config["workers"])
    if placement.workers == 1:
        build_local(lambda: tune.report({"fid": 1.0})).fit()
    else:
        name = f"ours-{tune.get_context().get_trial_id()}"
        build_group(nothing, {"job": ""}, placement, name, config["folder"], [TuneReportCallback()]).fit()


def seconds(way: str, workers: int, trials: int) -> float:
    """Of a study of so many trials, one at a time."""
    folder = tempfile.mkdtemp()
    alone = way == "ours" and workers == 1
    trainable = tune.with_resources(
        ours if way == "ours" else documented,
        trial_resources(Placement(workers=workers)) if way == "ours" else {"CPU": 0.01},
    )
    started = time.perf_counter()
    results = tune.Tuner(
        trainable,
        param_space={"workers": workers, "folder": folder},
        tune_config=tune.TuneConfig(num_samples=trials, max_concurrent_trials=1, reuse_actors=alone),
        run_config=tune.RunConfig(name="overhead", storage_path=str(Path(folder) / "tune"), verbose=0),
    ).fit()
    assert not results.errors, results.errors
    return time.perf_counter() - started


def study(base: ResolvedStudy, concurrency: int, folder: Path) -> float:
    """Wall time × concurrency, over the seconds that the trials trained and scored."""
    config = base.model_copy(update={"search": base.search.model_copy(update={"max_concurrent": concurrency})})
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", "overhead", folder / "artifacts", folder / "journal")
    digests = {"base": "none", "tokens": "none", "protocol": "none"}
    arms = open_arms(config, "overhead", open_storage(folder / "study.db"), digests)
    ledger = Ledger(config, arms, [MlflowListener(tracker, config, "overhead")])
    tracker.run("overhead", "overhead")
    data = load_tokens(config.data.tokens)
    digest = digest_of_weights(load_base(config))
    table = reference_table(config, digest, data, folder.parent, lambda line: None, Stop())
    started = time.perf_counter()
    run_trials(config, ledger, lambda train: table, folder)
    seconds = time.perf_counter() - started
    tracker.close(60)
    return seconds * concurrency / sum(used_device_seconds(trials_of(arms)).values())


def compare_studies(rounds: int, settings: tuple[str, ...], raw: Raw) -> None:
    root = Path(tempfile.mkdtemp())
    base = resolve(load_config(find_space("digits_s"), settings), root, lambda what, done, total: None)
    found: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for concurrency, values in found.items():
            folder = root / f"{number}-{concurrency}"
            folder.mkdir()
            values.append(study(base, concurrency, folder))
            raw.add(f"study, {concurrency} at a time", 1, number, values[-1])
    print("\n| trials at a time | wall time × concurrency / seconds of training and scoring |\n|---|---|")
    for concurrency, values in found.items():
        print(f"| {concurrency} | {statistics.median(values):.2f} |", flush=True)


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--trials", type=int, default=1, help="beside the one that is taken off")
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2])
    arguments = parser.parse_args(words)
    raw = Raw(arguments.raw, "way", "workers", "round", "seconds a trial, or ratio")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # with verbose=0 Tune then prints nothing
    with some_ray(CPUS):
        if arguments.smoke:  # without Ray's documented way, of which a trial takes 17 s
            print(f"ours, s: {seconds('ours', 1, 2):.3f}")
            compare_studies(1, TINY, raw)
        else:
            compare_trials(arguments, raw)
            compare_studies(arguments.rounds, (), raw)


def compare_trials(arguments: argparse.Namespace, raw: Raw) -> None:
    if arguments.workers:
        print("| workers a trial | documented, s | ours, s | ratio |\n|---|---|---|---|")
    for workers in arguments.workers:
        found: dict[str, list[float]] = {"documented": [], "ours": []}
        for number in range(arguments.rounds):
            for way, values in found.items():
                many = 50 if way == "ours" and workers == 1 else arguments.trials
                values.append((seconds(way, workers, 1 + many) - seconds(way, workers, 1)) / many)
                raw.add(way, workers, number, values[-1])
        theirs, mine = (statistics.median(values) for values in found.values())
        ratio = statistics.median(b / a for a, b in zip(*found.values(), strict=True))
        print(f"| {workers} | {theirs:.2f} | {mine:.3f} | {ratio:.3f} |", flush=True)


if __name__ == "__main__":
    main()
