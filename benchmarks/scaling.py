"""Does a study slow down as it grows? 10, 100 and 1,000 trials that train nothing: real Ray, Optuna and MLflow.

    python benchmarks/scaling.py

Seconds per trial are the median time from the end of one trial to the end of the next; the driver's memory is what
it holds at the end beyond what it held when Ray had started; MLflow's part is all that the tracker takes.
"""

import argparse
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
from PIL import Image
from ray import tune

from cca_ray.config import StudyConfig, load_config
from cca_ray.console import find_space
from cca_ray.search import Ledger, open_arms, open_storage, run_trials, start_ray
from cca_ray.tracking import Tracker
from cca_ray.worker import Job, rung_steps

STEPS = 100


def stub(packed: dict[str, Any]) -> None:
    """A trial that reports a smooth score at once."""
    job = Job.unpacked(packed["job"])
    fid = 10 + float(np.log10(job.train.lambda_ / 5) ** 2 + np.log10(job.train.learning_rate / 5e-3) ** 2)
    for step, samples in rung_steps(job.config, STEPS).items():
        tune.report({
            "step": step, "total_steps": STEPS, "history": [[step, 1.0, 0.5, 0.0]], "images_per_second": 1.0,
            "fid": fid + (STEPS - step) / STEPS, "inception_score": 1.0, "samples": samples, "protocol": "stub",
            "grid": str(job.folder.parent / "grid.png"),
        })  # fmt: skip


class TimedTracker(Tracker):
    """Adds up the seconds of every call that a trial makes."""

    seconds = 0.0

    def timed(self, call: Callable[..., Any], *arguments: Any) -> Any:
        started = time.perf_counter()
        try:
            return call(*arguments)
        finally:
            self.seconds += time.perf_counter() - started

    def run(self, *arguments: Any) -> str:
        return str(self.timed(super().run, *arguments))

    def last_step(self, *arguments: Any) -> int:
        return int(self.timed(super().last_step, *arguments))

    def params(self, *arguments: Any) -> None:
        self.timed(super().params, *arguments)

    def metrics(self, *arguments: Any) -> None:
        self.timed(super().metrics, *arguments)

    def image(self, *arguments: Any) -> None:
        self.timed(super().image, *arguments)

    def end(self, *arguments: Any) -> None:  # `tags` is timed where it is called, here and in `record`
        self.timed(super().end, *arguments)


class TimedLedger(Ledger):
    """Notes when trials end."""

    def __init__(self, *arguments: Any):
        super().__init__(*arguments)
        self.ends: list[float] = []

    def finish(self, trial_id: str, lost: bool = False) -> None:
        super().finish(trial_id, lost)
        self.ends.append(time.perf_counter())


def study(config: StudyConfig, trials: int, folder: Path) -> str:
    """One row of the table."""
    config = config.model_copy(update={"search": config.search.model_copy(update={"trials": trials})})
    (folder / "trials").mkdir(parents=True)
    Image.fromarray(np.zeros((60, 240, 3), dtype=np.uint8)).save(folder / "trials" / "grid.png")
    tracker = TimedTracker(f"sqlite:///{folder / 'mlflow.db'}", "scaling", folder / "artifacts")
    arms = open_arms(config, "scaling", open_storage(folder / "study.db"))
    parent = tracker.run("scaling", "scaling")
    ledger = TimedLedger(config, arms, tracker, parent, "scaling", lambda line: None)
    process = psutil.Process()
    before, tracker.seconds = process.memory_info().rss, 0.0
    run_trials(config, ledger, None, folder, stub)
    assert ledger.done()
    ends = ledger.ends
    between = statistics.median(b - a for a, b in itertools.pairwise(ends))
    late = statistics.median(b - a for a, b in itertools.pairwise(ends[-10:]))
    held = (process.memory_info().rss - before) / 2**20
    return f"| {trials:,} | {between:.3f} | {late:.3f} | {tracker.seconds / len(ends):.3f} | {held:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, nargs="+", default=[10, 100, 1000])
    arguments = parser.parse_args()
    config = load_config(find_space("digits_s"))
    start_ray()
    print("| trials | s a trial | s a trial, the last ten | of which MLflow, s | driver grew by, MiB |")
    print("|---|---|---|---|---|")
    for trials in arguments.trials:
        print(study(config, trials, Path(tempfile.mkdtemp()) / "study"), flush=True)
    ray.shutdown()


if __name__ == "__main__":
    main()
