"""The embedded default over base seeds, study seeds and arithmetics: the README's table, and the rows it is made of.

    python benchmarks/default.py --bases 0 1 2 3 4 --seeds 0 1 2 --arithmetics default avx2

A base seed makes another model; tokenizer and feature network come with the project. A study seed moves the order of
the data, the pairs, the proposals and all sampling noise. An arithmetic is a set of vector instructions that PyTorch
may use (ATEN_CPU_CAPABILITY): it rounds sums differently, as another machine would. Each study adds its rows to the
CSV, and rows that are there are not measured again, so that a run that was cut short goes on.

    python benchmarks/default.py --finished runs/stripes --raw docs/studies/striped_digits.csv

Of studies that are finished, whatever they are of: the same table, with rows of base 0 and seed 0.
"""

import csv
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import groupby, product
from pathlib import Path
from statistics import fmean, median, variance
from typing import Any

from benchmarks.common import TINY, made_by, options, set_options
from cca_ray.contracts import SizeSummary
from cca_ray.reporting.results import read_summary
from cca_ray.storage.files import atomically

ROWS = Path(__file__).parent / "results" / "default.csv"


@dataclass(frozen=True)
class Row:
    """What one study found for one size."""

    size: str
    parameters: int
    arithmetic: str  # ATEN_CPU_CAPABILITY
    base: int  # seed of the base
    seed: int  # of the study
    fid_base: float
    fid_guided: float
    fid_control: float
    fid_cca: float
    guidance_scale: float
    lambda_: float
    learning_rate: float
    control_learning_rate: float
    seconds: float  # without the base's
    processor: str
    commit: str

    @staticmethod
    def of(size: SizeSummary, arithmetic: str, base: int, seed: int) -> "Row":
        machine = size.machine
        assert machine is not None
        return Row(
            size=size.size,
            parameters=size.parameters,
            arithmetic=arithmetic,
            base=base,
            seed=seed,
            fid_base=round(size.value("base"), 3),
            fid_guided=round(size.value("guided"), 3),
            fid_control=round(size.value("control"), 3),
            fid_cca=round(size.value("tuned"), 3),
            guidance_scale=size.models["guided"].guidance_scale,
            lambda_=float(f"{size.settings['lambda']:.4g}"),
            learning_rate=float(f"{size.settings['learning_rate']:.4g}"),
            control_learning_rate=size.control_learning_rate or 0.0,
            seconds=round(size.seconds, 1),
            processor=machine.processor,
            commit=machine.revision,
        )


def read_rows(path: Path) -> list[Row]:
    if not path.exists():
        return []
    kinds: dict[str, Any] = {field.name: field.type for field in fields(Row)}
    with path.open(newline="") as file:
        lines = csv.DictReader(line for line in file if not line.startswith("#"))
        return [Row(**{name: kinds[name](text) for name, text in line.items()}) for line in lines]


def write_rows(path: Path, rows: Sequence[Row], measured: str = "") -> None:
    """All of them, whole or not at all. `measured`: see `made_by`."""

    def write(partial: Path) -> None:
        with partial.open("w", newline="") as file:
            file.write(f"# {made_by(measured)}\n")
            writer = csv.DictWriter(file, [field.name for field in fields(Row)], lineterminator="\n")
            writer.writeheader()
            writer.writerows(map(asdict, rows))

    atomically(path, write)


def run_study(storage: Path, arithmetic: str, base: int, seed: int, arguments: Sequence[str]) -> list[Row]:
    """One study of all sizes, continued if it was cut short."""
    storage = storage / f"{arithmetic}-{base}"
    command = [sys.executable, "-m", "cca_ray.tune", *arguments, "--storage", str(storage), "--quiet"]
    command += ["--name", f"seed{seed}", "--seed", str(seed), "--set", f"pretrain.seed={base}"]
    subprocess.run(command, check=True, env={**os.environ, "ATEN_CPU_CAPABILITY": arithmetic})
    sizes = read_summary(storage / f"seed{seed}" / "summary.json").sizes
    return [Row.of(size, arithmetic, base, seed) for size in sizes]


def rows_of_finished(folder: Path) -> list[Row]:
    """One a size."""
    sizes = read_summary(folder / "summary.json").sizes
    return [Row.of(size, size.machine.arithmetic.lower() if size.machine else "", 0, 0) for size in sizes]


@dataclass(frozen=True)
class Spread:
    """A value over bases and studies. A base is a base seed under one arithmetic."""

    mean: float
    between_bases: float | None  # std; None of one base
    between_studies: float | None  # std, of one base; None if none has more than one

    @staticmethod
    def of(rows: Sequence[Row], value: Callable[[Row], float]) -> "Spread":
        """By one-way analysis of variance, with unequal groups as Searle et al. (1992) have them.

        What the studies of a base scatter is taken off what the means of bases scatter.
        """
        groups = [[value(row) for row in of_base] for _, of_base in by_base(rows)]
        count, bases = len(rows), len(groups)
        mean = fmean(value(row) for row in rows)
        freedom = count - bases
        within = sum((len(g) - 1) * variance(g) for g in groups if len(g) > 1) / freedom if freedom else 0.0
        of_studies = within**0.5 if freedom else None
        if bases < 2:
            return Spread(mean, None, of_studies)
        between = sum(len(g) * (fmean(g) - mean) ** 2 for g in groups) / (bases - 1)
        studies = (count - sum(len(g) ** 2 for g in groups) / count) / (bases - 1)  # of a base, effectively
        return Spread(mean, max(0.0, (between - within) / studies) ** 0.5, of_studies)

    def __str__(self) -> str:
        """`?` stands for the std between bases where only that between studies is known."""
        known = [self.between_bases, self.between_studies]
        while known and known[-1] is None:
            known.pop()
        return " ± ".join([f"{self.mean:.1f}", *("?" if std is None else f"{std:.1f}" for std in known)])


def by_base(rows: Sequence[Row]) -> list[tuple[tuple[str, int], list[Row]]]:
    def base_of(row: Row) -> tuple[str, int]:
        return row.arithmetic, row.base

    return [(base, list(some)) for base, some in groupby(sorted(rows, key=base_of), key=base_of)]


VALUES: dict[str, Callable[[Row], float]] = {
    "without guidance": lambda row: row.fid_base,
    "with guidance": lambda row: row.fid_guided,
    "control": lambda row: row.fid_control,
    "after CCA": lambda row: row.fid_cca,
}
RATIOS: dict[str, Callable[[Row], float]] = {
    "guided / without": lambda row: row.fid_guided / row.fid_base,
    "CCA / control": lambda row: row.fid_cca / row.fid_control,
    "CCA / guided": lambda row: row.fid_cca / row.fid_guided,
}


def table(rows: Sequence[Row]) -> str:
    """One row a size: mean ± std between bases ± std between studies of a base, as far as they are known.

    Of ratios the median and the largest.
    """
    lines = [
        f"| size | parameters | {' | '.join([*VALUES, *RATIOS])} |",
        "|" + "---|" * (2 + len(VALUES) + len(RATIOS)),
    ]
    for size in dict.fromkeys(row.size for row in rows):
        own = [row for row in rows if row.size == size]
        cells = [str(Spread.of(own, value)) for value in VALUES.values()]
        for value in RATIOS.values():
            ratios = [value(row) for row in own]
            cells.append(f"{median(ratios):.2f}, at most {max(ratios):.2f}")
        lines.append(f"| {size} | {own[0].parameters:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


# What the embedded default promises: in words, and whether it holds for all rows of one size.
PROMISES: dict[str, Callable[[Sequence[Row]], Sequence[bool]]] = {
    "guidance takes at least 20 % off": lambda rows: [row.fid_guided <= 0.8 * row.fid_base for row in rows],
    "CCA ≤ 0.8 × control": lambda rows: [row.fid_cca <= 0.8 * row.fid_control for row in rows],
    "CCA ≤ 1.2 × guided": lambda rows: [row.fid_cca <= 1.2 * row.fid_guided for row in rows],
    "CCA ≤ 1.1 × guided at the median": lambda rows: [median(r.fid_cca / r.fid_guided for r in rows) <= 1.1],
    "std between bases ≤ 15 % of the mean, without guidance": lambda rows: [
        spread.between_bases <= 0.15 * spread.mean
        for spread in [Spread.of(rows, VALUES["without guidance"])]
        if spread.between_bases is not None
    ],
}


def promises(rows: Sequence[Row]) -> str:
    """In how many of how many studies each promise holds, by size."""
    sizes = list(dict.fromkeys(row.size for row in rows))
    lines = [f"| holds in | {' | '.join(sizes)} |", "|" + "---|" * (1 + len(sizes))]
    for words, holds in PROMISES.items():
        kept = [holds([row for row in rows if row.size == size]) for size in sizes]
        lines.append(f"| {words} | {' | '.join(f'{sum(of)} of {len(of)}' for of in kept)} |")
    return "\n".join(lines)


def made_of(rows: Sequence[Row]) -> str:
    """What the tables are made of."""
    arithmetics = sorted({row.arithmetic for row in rows})
    minutes = sum(fmean(row.seconds for row in of_size) for of_size in by_size(rows)) / 60
    return (
        f"{len(by_base(rows))} bases a size ({len({row.base for row in rows})} seeds × {len(arithmetics)} arithmetics: "
        f"{', '.join(arithmetics)}), {len({row.seed for row in rows})} study seeds. ± std between bases ± std between "
        f"studies of a base, where there are several. {minutes:.1f} minutes a study, besides the bases. "
        f"{', '.join(sorted({row.processor for row in rows}))}; "
        f"commit {', '.join(sorted({row.commit for row in rows}))}"
    )


def by_size(rows: Sequence[Row]) -> list[list[Row]]:
    return [[row for row in rows if row.size == size] for size in dict.fromkeys(row.size for row in rows)]


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("spaces", nargs="*", help="search spaces; by default those of the default command")
    parser.add_argument("--bases", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--arithmetics", nargs="+", default=["default", "avx2"])
    parser.add_argument("--storage", type=Path, default=Path("runs/bases-of-default"))
    parser.add_argument("--only-table", action="store_true", help="of the rows that are there")
    parser.add_argument("--finished", type=Path, nargs="+", metavar="FOLDER", help="of these studies, with --raw")
    arguments = parser.parse_args(words)
    path, spaces = arguments.raw or ROWS, arguments.spaces
    seeds, bases, arithmetics = arguments.seeds, arguments.bases, arguments.arithmetics
    if arguments.smoke:
        seeds, bases, arithmetics, spaces = [0], [0], ["default"], ["digits_s", *set_options(TINY)]
    if arguments.finished:
        if arguments.raw is None:
            parser.error("--finished: give --raw, too; the rows of the default are not overwritten")
        found = [row for folder in arguments.finished for row in rows_of_finished(folder)]
        write_rows(path, found, found[0].commit[:7])
    rows = read_rows(path)
    for seed, base, arithmetic in product(seeds, bases, arithmetics):
        done = any((row.arithmetic, row.base, row.seed) == (arithmetic, base, seed) for row in rows)
        if not (done or arguments.only_table or arguments.finished):
            rows += run_study(arguments.storage, arithmetic, base, seed, spaces)
            write_rows(path, rows)
    print(f"\n{made_of(rows)}\n\n{promises(rows)}\n\n{table(rows)}")


if __name__ == "__main__":
    main()
