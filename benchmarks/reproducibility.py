"""How equal is a fine-tuning that is done again: in another process, in parts, by other workers, threads, arithmetics?

    python -m benchmarks.reproducibility                 # digits_s and digits_var

One base; one fine-tuning as it is, on one thread; the same under one difference after the other. An arithmetic is a
set of vector instructions that PyTorch may use (ATEN_CPU_CAPABILITY): it rounds sums as another processor would.
Images are sampled with the same noise under the same difference; an image is equal if every byte is.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from benchmarks.common import TINY, Raw, options, set_options
from cca_ray.models.files import read_checkpoint


@dataclass(frozen=True)
class Way:
    """One way to do the same fine-tuning."""

    name: str
    threads: int = 1
    arithmetic: str = ""  # "": the processor's own
    placement: tuple[str, ...] = ()


WAYS = (
    Way("as it is"),
    Way("again, in another process"),
    Way("in micro-batches of 32", placement=("placement.micro_batch=32",)),
    Way("by two workers, DDP", placement=("placement.workers=2",)),
    Way("by two workers, FSDP", placement=("placement.workers=2", "placement.strategy=fsdp")),
    Way("on two threads", threads=2),
    Way("in the arithmetic avx2", arithmetic="avx2"),
    Way("in the arithmetic default", arithmetic="default"),
)


@dataclass(frozen=True)
class Outcome:
    """What a fine-tuning came to."""

    weights: dict[str, torch.Tensor]
    images: np.ndarray  # [N, H, W, 3] uint8
    fid: float

    def distance(self, other: "Outcome") -> float:
        """Of all weights together, relative to their length."""
        ours, theirs = self.learnt(), other.learnt()
        return float((ours - theirs).norm() / ours.norm())

    def learnt(self) -> torch.Tensor:
        """All weights in one row, without the constants of a mask."""
        return torch.cat([w.double().flatten() for _, w in sorted(self.weights.items()) if w.isfinite().all()])

    def equal_images(self, other: "Outcome") -> int:
        return int((self.images == other.images).all(axis=(1, 2, 3)).sum())


def run(way: Way, verb: str, *words: str) -> str:
    """What a verb prints; CalledProcessError, after its own words, if it fails."""
    environment = os.environ | {"OMP_NUM_THREADS": str(way.threads), "MKL_NUM_THREADS": str(way.threads)}
    environment |= {"ATEN_CPU_CAPABILITY": way.arithmetic} if way.arithmetic else {}
    command = [sys.executable, "-m", f"cca_ray.{verb}", *words]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def outcome_of(way: Way, space: str, settings: list[str], count: int, storage: Path) -> Outcome:
    out = Path(tempfile.mkdtemp(dir=storage))
    told = run(
        way, "train", space, *settings, *set_options(way.placement), "--storage", str(storage), "--out", str(out)
    )
    sampled = ["--checkpoint", str(out / "model.pt"), "--count", str(count), "--npz", str(out / "images.npz")]
    run(way, "sample", space, *settings, "--storage", str(storage), *sampled)
    with np.load(out / "images.npz") as content:
        images = content["arr_0"]
    weights, _ = read_checkpoint(out / "model.pt")
    return Outcome(weights, images, float(re.findall(r"fid ([\d.]+)", told)[-1]))


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("spaces", nargs="*", default=["digits_s", "digits_var"])
    parser.add_argument("--count", type=int, default=1000, help="images to compare")
    arguments = parser.parse_args(words)
    ways: Sequence[Way] = WAYS
    settings, count = ["--set", "train.lambda=3", "--set", "train.learning_rate=5e-3"], arguments.count
    if arguments.smoke:
        settings, ways, count = [*settings, *set_options(TINY)], (WAYS[0], WAYS[2]), 20
    raw = Raw(arguments.raw, "space", "way", "distance", "equal_images", "images", "fid")
    print(f"| | weights apart, relative | equal images of {count:,} | FID |\n|---|---|---|---|")
    for space in arguments.spaces:
        with tempfile.TemporaryDirectory() as folder:
            first: Outcome | None = None
            for way in ways:
                outcome = outcome_of(way, space, settings, count, Path(folder))
                first = first or outcome
                distance, equal = first.distance(outcome), first.equal_images(outcome)
                raw.add(space, way.name, distance, equal, count, outcome.fid)
                print(f"| {space}, {way.name} | {distance:.1e} | {equal:,} | {outcome.fid:.2f} |", flush=True)


if __name__ == "__main__":
    main()
