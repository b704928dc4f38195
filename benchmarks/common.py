"""What the benchmarks share: two options, a file of single measurements, a search that is over in seconds."""

import argparse
import csv
import logging
import os
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
# `tune digits_s` with these makes a base and tries a setting in seconds; the figures mean nothing.
TINY = (
    "pretrain.codebook_size=32", "pretrain.tokenizer_width=8", "pretrain.tokenizer_epochs=1",
    "pretrain.feature_epochs=1", "pretrain.epochs=1", "train.epochs=1", "search.trials=1", "search.first_points=[]",
    "control.learning_rates=[1e-3]", "rungs=[{at: 1.0, samples: 60}]", "score.samples=80", "score.finalists=1",
    "score.guidance_scales=[1.5]", "score.blocks=2",
)  # fmt: skip


def options(doc: str | None) -> argparse.ArgumentParser:
    """A parser of what every benchmark takes."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--smoke", action="store_true", help="tiny sizes, to see that it runs; the figures mean nothing"
    )
    parser.add_argument("--raw", type=Path, metavar="FILE", help="write each single measurement to this CSV file")
    return parser


def set_options(settings: tuple[str, ...] | list[str]) -> list[str]:
    """These settings as words of a command."""
    return [word for setting in settings for word in ("--set", setting)]


class Raw:
    """A file of single measurements, of which the table shows medians or means; its first line says where they are of.

    Without a path there is none. `goes_on`: what the file has stays, with its first line.
    """

    def __init__(self, path: Path | None, *columns: str, goes_on: bool = False):
        self.path = path
        if goes_on and path is not None and path.exists():
            return
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"# {made_by()}\n", encoding="utf-8")
        self.add(*columns)

    def add(self, *values: object) -> None:
        if self.path is not None:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerow(values)


NO_RESULTS = ":(exclude)benchmarks/results"


@cache
def commit() -> str:
    """Of this checkout, with a + if the code has changed since. Results are no code."""
    git = ["git", "-C", str(ROOT)]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "cca_ray", "benchmarks", NO_RESULTS]).returncode
    return f"{found or 'unknown'}{'+' if changed else ''}"


def made_by(measured: str = "") -> str:
    """The commit; the day; the machine. `measured`: the commit, where it is known of the results and may be another."""
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    return f"commit {measured or commit()}, {date.today()}, {machine}"


@contextmanager
def some_ray(cpus: int | None = None) -> Iterator[None]:
    """The Ray that this process has, or one of its own for the while, with so many CPUs."""
    import ray  # here, so that benchmarks without Ray need not wait for its import

    from cca_ray.cluster.session import start_ray

    was_here = ray.is_initialized()
    if not was_here and cpus is None:
        start_ray()
    elif not was_here:
        ray.init(num_cpus=cpus, logging_level=logging.ERROR, log_to_driver=False)
    try:
        yield
    finally:
        if not was_here:
            ray.shutdown()
