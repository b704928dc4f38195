"""Does a study slow down as it grows? 10, 100 and 1,000 trials that train nothing: real Ray, Optuna and MLflow.

    python -m benchmarks.scaling

Seconds per trial are the median time from the end of one trial to the end of the next; the driver's memory is what
it holds at the end beyond what it held when Ray had started. A thread carries the entries for MLflow: shown are what
entering them costs the driver, and how long after the last trial the thread was done.
"""

import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image
from ray import tune

from benchmarks.common import Raw, options, some_ray
from cca_ray.config import PATHS, ResolvedStudy
from cca_ray.contracts import RungScore, TrialReport
from cca_ray.inputs import find_space
from cca_ray.search.arms import open_arms
from cca_ray.search.ledger import Ledger
from cca_ray.search.listener import Listener, TrialEnd, TrialInfo
from cca_ray.search.mlflow_listener import MlflowListener
from cca_ray.search.ray_tune import run_trials
from cca_ray.search.size_study import open_storage
from cca_ray.space_file import load_config
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.job import Job
from cca_ray.training.loop import rung_steps
from cca_ray.training.objectives import objective_of
from cca_ray.training.reports import to_ray
from cca_ray.training.trial import TrialSettings

STEPS = 100


def stub(packed: TrialSettings) -> None:
    """A trial that reports a smooth score at once."""
    job = Job.unpacked(packed["job"])
    train, own = job.train, job.train.model_dump()
    fid = 10 + float(np.log10(own.get("lambda", 1.0) / 5) ** 2 + np.log10(train.learning_rate / 5e-3) ** 2)
    logged = objective_of(train).logged
    for step, samples in rung_steps(job.config, STEPS).items():
        score = RungScore(
            values={"fid": fid + (STEPS - step) / STEPS, "inception_score": 1.0},
            without={"fid": (fid,) * 10, "inception_score": (1.0,) * 10},
            step=step,
            samples=samples,
            scoring_seconds=0.1,
            protocol="stub",
            grid=str(job.folder.parent / "grid.png"),
        )
        report = TrialReport(
            step=step,
            total_steps=STEPS,
            seconds=0.1,
            logged=logged,
            history=((step, *(0.5 for _ in logged)),),
            images_per_second=1.0,
            accelerator="CPU",
            workers=1,
            micro_batch=128,
            device_seconds={"CPU": 0.1},
            score=score,
        )
        tune.report(to_ray(report))


class TimedTracker(Tracker):
    """Adds up the seconds that the driver spends on entries for MLflow, which a thread carries there."""

    seconds = 0.0

    def _enter(self, do: str, **content: Any) -> None:
        started = time.perf_counter()
        super()._enter(do, **content)
        self.seconds += time.perf_counter() - started


class Ends(Listener):
    """Notes when trials end."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_trial_complete(self, trial: TrialInfo, end: TrialEnd) -> None:
        self.times.append(time.perf_counter())


def study(config: ResolvedStudy, trials: int, folder: Path, raw: Raw) -> str:
    """One row of the table."""
    config = config.model_copy(update={"search": config.search.model_copy(update={"trials": trials})})
    (folder / "trials").mkdir(parents=True)
    Image.fromarray(np.zeros((60, 240, 3), dtype=np.uint8)).save(folder / "trials" / "grid.png")
    tracker = TimedTracker(f"sqlite:///{folder / 'mlflow.db'}", "scaling", folder / "artifacts")
    digests = {"base": "none", "tokens": "none", "protocol": "none"}
    arms = open_arms(config, "scaling", open_storage(folder / "study.db"), digests)
    tracker.run("scaling", "scaling")
    ends = Ends()
    ledger = Ledger(config, arms, [MlflowListener(tracker, config, "scaling"), ends])
    process = psutil.Process()
    before, tracker.seconds = process.memory_info().rss, 0.0
    run_trials(config, ledger, lambda train: None, folder, stub)
    assert ledger.done()
    ended = time.perf_counter()
    assert tracker.flush(600)
    behind = time.perf_counter() - ended
    for number, ended in enumerate(ends.times):
        raw.add(trials, number, ended - ends.times[0])
    between = statistics.median(b - a for a, b in itertools.pairwise(ends.times))
    late = statistics.median(b - a for a, b in itertools.pairwise(ends.times[-10:]))
    held = (process.memory_info().rss - before) / 2**20
    entered = tracker.seconds / len(ends.times)
    return f"| {trials:,} | {between:.3f} | {late:.3f} | {entered:.4f} | {behind:.1f} | {held:.0f} |"


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args(words)
    paths = {key: "not read" for keys in PATHS.values() for key in keys}
    config = ResolvedStudy.of(load_config(find_space("digits_s")), paths)
    raw = Raw(arguments.raw, "trials", "trial", "ended at, s")
    print("| trials | s a trial | the last ten | of which MLflow | MLflow done after, s | driver grew by, MiB |")
    print("|---|---|---|---|---|---|")
    with some_ray():
        for trials in [3] if arguments.smoke else arguments.trials:
            with tempfile.TemporaryDirectory() as folder:
                print(study(config, trials, Path(folder) / "study", raw), flush=True)


if __name__ == "__main__":
    main()
