"""The embedded default over several study seeds: mean ± std of every FID, as in the README.

    python benchmarks/default.py --seeds 0 1 2

A study seed moves the order of the data, the pairs, the proposals and all sampling noise; the bases are the same.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

COLUMNS = {
    "without guidance": "fid_base",
    "with guidance": "fid_guided",
    "control": "fid_control",
    "after CCA": "fid_cca",
}
RATIOS = {"CCA / control": ("fid_cca", "fid_control"), "CCA / guided": ("fid_cca", "fid_guided")}


def run_study(storage: Path, seed: int) -> list[dict[str, Any]]:
    """One search over both sizes; its summary."""
    command = [sys.executable, "-m", "cca_ray.tune", "--storage", str(storage), "--seed", str(seed)]
    subprocess.run(command, check=True)
    name = f"digits-seed{seed}" if seed else "digits"
    sizes: list[dict[str, Any]] = json.loads((storage / name / "summary.json").read_text())["sizes"]
    return sizes


def cell(values: list[float]) -> str:
    return f"{mean(values):.2f} ± {stdev(values) if len(values) > 1 else 0:.2f}"


def table(studies: list[list[dict[str, Any]]]) -> str:
    """One row a size: mean ± std over the studies; for the ratios the largest, too."""
    lines = [
        f"| size | parameters | {' | '.join([*COLUMNS, *RATIOS])} | minutes |",
        "|" + "---|" * (3 + len(COLUMNS) + len(RATIOS)),
    ]
    for sizes in zip(*studies, strict=True):
        cells = [cell([size[key] for size in sizes]) for key in COLUMNS.values()]
        for above, below in RATIOS.values():
            ratios = [size[above] / size[below] for size in sizes]
            cells.append(f"{mean(ratios):.2f} (at most {max(ratios):.2f})")
        minutes = mean(size["seconds"] for size in sizes) / 60
        lines.append(f"| {sizes[0]['size']} | {sizes[0]['params']:,} | {' | '.join(cells)} | {minutes:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--storage", type=Path, default=Path("runs"))
    arguments = parser.parse_args()
    print("\n" + table([run_study(arguments.storage, seed) for seed in arguments.seeds]))


if __name__ == "__main__":
    main()
