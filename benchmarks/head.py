"""What trials that are worker groups hold on the head of a cluster: its processes and their memory.

Ray Train drives every group by processes of its own, which lie where the trial's driver is; of ours, on the head.  A
head without CPUs and one other node, both on this machine, run `digits_s` in groups of two; every two seconds the
processes that the head started are summed up, each with its part of what it shares (PSS), and the median is taken of
those moments at which all trials trained.

    python -m benchmarks.head --at-once 1 3
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil
from ray.cluster_utils import Cluster

from benchmarks.common import TINY, Raw, options, set_options

MIB = 2**20
Held = dict[str, tuple[int, float]]  # of the processes of a name: how many there are, and their MiB
CONTROLLER = "ray::TrainController"  # one a trial


def name_of(process: psutil.Process) -> str:
    return " ".join(process.cmdline()).split(".")[0].split(" ")[0]


def memory(head: psutil.Process) -> Held:
    """Of the processes that this raylet started, by name."""
    number, size = Counter[str](), Counter[str]()
    for process in head.children(recursive=True):
        with suppress(psutil.Error):
            name, mib = name_of(process), process.memory_full_info().pss / MIB
            number[name] += 1
            size[name] += mib
    return {name: (number[name], size[name]) for name in number if name.startswith("ray::")}


def study(cluster: Cluster, at_once: int, folder: Path, settings: tuple[str, ...]) -> list[Held]:
    """Run so many trials at a time; what the head held whenever all of them trained."""
    head = psutil.Process(cluster.head_node.all_processes["raylet"][0].process.pid)
    rates = [1e-3 * (1 + n) for n in range(at_once)]
    command = [sys.executable, "-m", "cca_ray.tune", "digits_s", "--quiet", "--name", f"at-once-{at_once}"]
    command += ["--trials", "1", "--max-concurrent", str(at_once), *set_options(settings)]
    command += set_options([f"control.learning_rates={rates}", "placement.workers=2"])
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "RAY_ADDRESS": cluster.address})
    seen = []
    while process.poll() is None:
        time.sleep(2)
        trials = list((folder / "runs" / f"at-once-{at_once}" / "trials").glob("*-control-*/alive-1"))
        held = memory(head)
        if len(trials) == at_once and held.get(CONTROLLER, (0, 0))[0] == at_once:
            seen.append(held)
    return seen


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 3])
    arguments = parser.parse_args(words)
    settings: tuple[str, ...] = ("train.epochs=100", "score.samples=100")
    at_once = arguments.at_once
    if arguments.smoke:
        at_once, settings = [1], (*TINY, "train.epochs=20")
    raw = Raw(arguments.raw, "at once", "moment", "process", "of them", "MiB")
    sums: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        for trials in at_once:
            cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
            cluster.add_node(num_cpus=2 * trials)
            seen = study(cluster, trials, Path(folder), settings)
            cluster.shutdown()
            assert seen, "at no moment all trials trained"
            names = sorted({name for moment in seen for name in moment})
            for number, moment in enumerate(seen):
                for name, held in moment.items():
                    raw.add(trials, number, name, *held)
            print(f"\n{trials} at a time, {len(seen)} moments\n| process | of them | MiB |\n|---|---|---|")
            for name in names:
                found = [moment.get(name, (0, 0.0)) for moment in seen]
                number, size = (statistics.median(column) for column in zip(*found, strict=True))
                print(f"| {name} | {number:g} | {size:.0f} |")
            sums[trials] = statistics.median(sum(size for _, size in moment.values()) for moment in seen)
            print(f"| all | | {sums[trials]:.0f} |", flush=True)
    if len(sums) > 1:
        few, many = min(sums), max(sums)
        print(f"\na trial at a time more: {(sums[many] - sums[few]) / (many - few):.0f} MiB")


if __name__ == "__main__":
    main()
