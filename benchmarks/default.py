"""The embedded default over several study seeds: mean ± std of every FID, as in the README.

    python benchmarks/default.py --seeds 0 1 2

A study seed moves the order of the data, the pairs, the proposals and all sampling noise; the bases are the same.
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

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


def run_study(storage: Path, seed: int) -> tuple[SizeSummary, ...]:
    """One search over both sizes; its summary."""
    command = [sys.executable, "-m", "cca_ray.tune", "--storage", str(storage), "--seed", str(seed)]
    subprocess.run(command, check=True)
    name = f"digits-seed{seed}" if seed else "digits"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    print("\n" + table([run_study(arguments.storage, seed) for seed in arguments.seeds]))


if __name__ == "__main__":
    main()
