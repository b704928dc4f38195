"""The embedded default over several study seeds: mean ± std of every FID, as in the README.

    python -m benchmarks.default --seeds 0 1 2

A study seed moves the order of the data, the pairs, the proposals and all sampling noise; the bases are the same.
"""

import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

from benchmarks.common import TINY, Raw, options, set_options
from cca_ray.contracts import Role, SizeSummary
from cca_ray.reporting.results import read_summary
from cca_ray.verdict import ratio

COLUMNS: dict[str, Role] = {
    "without guidance": "base",
    "with guidance": "guided",
    "control": "control",
    "after CCA": "tuned",
}
RATIOS: dict[str, Role] = {"CCA / control": "control", "CCA / guided": "guided"}


def run_study(storage: Path, seed: int, more: list[str]) -> tuple[SizeSummary, ...]:
    """One search over all sizes; its summary."""
    name = f"digits-seed{seed}" if seed else "digits"
    command = [sys.executable, "-m", "cca_ray.tune", "--storage", str(storage), "--seed", str(seed), "--name", name]
    subprocess.run([*command, *more], check=True)
    return read_summary(storage / name / "summary.json").sizes


def cell(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


def table(studies: list[tuple[SizeSummary, ...]]) -> str:
    """One row a size: mean ± std over the studies; for the ratios the largest, too."""
    lines = [
        f"| size | parameters | {' | '.join([*COLUMNS, *RATIOS])} | minutes |",
        "|" + "---|" * (3 + len(COLUMNS) + len(RATIOS)),
    ]
    for sizes in zip(*studies, strict=True):
        cells = [cell([size.value(role) for size in sizes]) for role in COLUMNS.values()]
        for other in RATIOS.values():
            ratios = [ratio(size, other) for size in sizes]
            cells.append(f"{mean(ratios):.2f} (at most {max(ratios):.2f})")
        minutes = mean(size.seconds for size in sizes) / 60
        lines.append(f"| {sizes[0].size} | {sizes[0].parameters:,} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    arguments = parser.parse_args(words)
    seeds, more = ([0], ["digits_s", *set_options(TINY)]) if arguments.smoke else (arguments.seeds, [])
    studies = [run_study(arguments.storage, seed, more) for seed in seeds]
    raw = Raw(arguments.raw, "seed", "size", *COLUMNS, "seconds")
    for seed, sizes in zip(seeds, studies, strict=True):
        for size in sizes:
            raw.add(seed, size.size, *(size.value(role) for role in COLUMNS.values()), size.seconds)
    print("\n" + table(studies))


if __name__ == "__main__":
    main()
