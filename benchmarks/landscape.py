"""The table of real trials: a grid over (λ, learning rate), scored at every rung, as `contest` simulates studies on it.

    python -m benchmarks.landscape digits_s digits_m digits_var
    python -m benchmarks.landscape digits_s --grid 5 4 --seeds 1                 coarse, to see magnitudes
    python -m benchmarks.landscape digits_s --grid 8 6 --seeds 1 --beta 0.04 0.08 0.16 --null-ratio 0.05 0.1 0.2

The grid is even in the logarithms, as wide as --decades says, around the middle of each space's own ranges. Trials run
one after another in this process. Each is added to the Parquet file as soon as it has ended; what is there is not run
again, so a run that was cut short goes on. A trial that diverged has the rungs that it reached.
"""

import itertools
import tempfile
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.common import ROOT, TINY, Raw, made_by, options
from cca_ray.config import Range, ResolvedStudy, Rung, Train
from cca_ray.contracts import RungScore
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.evaluation.scoring import load_base, load_tokens
from cca_ray.inputs import find_space
from cca_ray.models.files import digest_of_weights
from cca_ray.models.official import parameters
from cca_ray.models.parallel import Group
from cca_ray.space_file import load_config
from cca_ray.storage.files import atomically
from cca_ray.training.checkpoint import Progress
from cca_ray.training.job import Job
from cca_ray.training.loop import fine_tune
from cca_ray.training.reference_logps import missing_parts, parts_of
from cca_ray.training.setup import reference_key
from cca_ray.training.small_base import one_thread, resolve
from cca_ray.training.step import Diverged
from cca_ray.training.tasks import TableMaker

TABLE = ROOT / "benchmarks" / "results" / "landscape.parquet"
AXES = ("lambda", "learning_rate", "beta", "null_ratio")
SCHEMA = pa.schema(
    [
        *((name, pa.string()) for name in ("space", "family", "size", "base", "protocol")),
        ("parameters", pa.int64()),
        *((name, pa.float64()) for name in (*AXES, "at")),
        *((name, pa.int32()) for name in ("seed", "step", "samples")),
        *((name, pa.float64()) for name in ("fid", "error")),
        ("without", pa.list_(pa.float32())),  # the FID without each group of the jackknife
        *((name, pa.float32()) for name in ("seconds", "scoring_seconds")),  # of training so far; of this score
    ]
)


@dataclass(frozen=True)
class Row:
    """A trial at a rung. The FID is infinite where the trial had diverged before."""

    space: str
    family: str
    size: str
    base: str  # digest of its weights
    protocol: str
    parameters: int
    settings: tuple[float, ...]  # by AXES
    seed: int
    at: float
    step: int
    samples: int
    fid: float
    error: float
    without: tuple[float, ...]
    seconds: float
    scoring_seconds: float

    @property
    def trial(self) -> tuple[str, tuple[float, ...], int]:
        return self.space, self.settings, self.seed

    def columns(self) -> dict[str, object]:
        content = asdict(self)
        return {**dict(zip(AXES, content.pop("settings"), strict=True)), **content}


def read_rows(path: Path) -> list[Row]:
    """None of a file that is not there."""
    if not path.exists():
        return []
    table = pq.read_table(path, schema=SCHEMA).to_pylist()
    return [
        Row(settings=tuple(row.pop(name) for name in AXES), without=tuple(row.pop("without")), **row) for row in table
    ]


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """All of them, whole or not at all."""
    table = pa.Table.from_pylist([row.columns() for row in rows], SCHEMA)
    table = table.replace_schema_metadata({"made_by": made_by()})
    atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))


def axis(bounds: Range, decades: float, count: int) -> list[float]:
    """So many values around the middle of these bounds, in logarithms; rounded, so that they are the same again."""
    middle = (np.log10(bounds.low) + np.log10(bounds.high)) / 2
    return [float(f"{value:.4g}") for value in np.logspace(middle - decades / 2, middle + decades / 2, count)]


def grid(config: ResolvedStudy, arguments: Namespace) -> list[tuple[float, ...]]:
    """Settings by AXES."""
    space, train = config.search.space, config.train.model_dump(by_alias=True)
    searched = [
        axis(space[name], decades, count)
        for name, decades, count in zip(AXES, arguments.decades, arguments.grid, strict=False)
    ]
    others = [arguments.beta or [train["beta"]], arguments.null_ratio or [train["null_ratio"]]]
    return list(itertools.product(*searched, *others))


@dataclass(frozen=True)
class Field:
    """One size's base, on which the trials run."""

    config: ResolvedStudy
    storage: Path
    base: str
    parameters: int

    @staticmethod
    def of(space: str, settings: Sequence[str], rungs: Sequence[float], storage: Path) -> "Field":
        config = load_config(find_space(space), settings)
        few, many = config.rungs[0].samples, config.rungs[-1].samples
        ladder = tuple(Rung(at=at, samples=few if at < 1 else many) for at in rungs)
        config = config.model_copy(update={"rungs": ladder})
        resolved = resolve(config, storage, lambda what, done, of: None)
        model = load_base(resolved)
        return Field(resolved, storage, digest_of_weights(model), parameters(model))

    def reference(self, train: Train) -> Path:
        """The folder with the reference's log-likelihoods of these pairs; made now if it is not there."""
        data = load_tokens(self.config.data.tokens)
        folder = self.storage / "reference" / reference_key(self.base, self.config, train, data)
        if missing := missing_parts(folder, parts_of(len(data.labels), train.epochs)):
            maker = TableMaker(Job(self.config, train, self.storage).packed(), str(folder))
            for part in missing:
                maker.make(part)
        return folder

    def run(self, settings: tuple[float, ...], seed: int) -> list[Row]:
        """One trial; a row for every rung."""
        train = self.config.train_with(
            {**dict(zip(AXES, settings, strict=True)), "seed": self.config.train.seed + seed}
        )
        progress = Progress()
        with tempfile.TemporaryDirectory(dir=self.storage) as folder:
            job = Job(self.config, train, Path(folder), self.reference(train))
            with suppress(Diverged):
                fine_tune(job, progress.add, Group())
        reached = {report.score.step: report for report in progress.reports if report.score}
        rows = []
        for rung, report in itertools.zip_longest(self.config.rungs, reached.values()):
            score = report.score if report else None
            rows.append(self.row(settings, seed, rung, score, report.seconds if report else 0.0))
        return rows

    def row(self, settings: tuple[float, ...], seed: int, rung: Rung, score: RungScore | None, seconds: float) -> Row:
        without = score.without["fid"] if score else ()
        return Row(
            space=self.config.name,
            family=self.config.base.family,
            size=self.config.base.size,
            base=self.base,
            protocol=score.protocol if score else "",
            parameters=self.parameters,
            settings=settings,
            seed=seed,
            at=rung.at,
            step=score.step if score else 0,
            samples=rung.samples,
            fid=score.values["fid"] if score else np.inf,
            error=jackknife_error(np.array(without)) if score else np.inf,
            without=without,
            seconds=seconds,
            scoring_seconds=score.scoring_seconds if score else 0.0,
        )


def correlation(pairs: Iterator[tuple[Sequence[float], Sequence[float]]]) -> float:
    """Mean over these pairs of columns; not a number if there are none."""
    found = [np.corrcoef(a, b)[0, 1] for a, b in pairs if len(a) > 1]
    return float(np.mean(found)) if found else np.nan


def in_common(rows: Sequence[Row]) -> float:
    """How much of the noise of sampling two trials have in common: the correlation of what the groups change."""
    whole = [row for row in rows if row.without]
    return correlation((a.without, b.without) for a, b in itertools.pairwise(whole))


def between_seeds(rows: Sequence[Row]) -> float:
    """The spread of a score between trials that differ in the seed of training alone, in percent of the score."""
    by_cell: dict[tuple[float, ...], list[float]] = {}
    for row in rows:
        by_cell.setdefault(row.settings, []).append(row.fid)
    spreads = [
        np.var(values, ddof=1) / np.mean(values) ** 2
        for values in by_cell.values()
        if len(values) > 1 and np.isfinite(values).all()
    ]
    return 100 * float(np.sqrt(np.median(spreads))) if spreads else np.nan


def line(space: str, at: float, rows: Sequence[Row], last: Sequence[Row]) -> str:
    """Of the table: a rung of a size, against the last one."""
    final = {row.trial: row.fid for row in last}
    both = [(row.fid, final[row.trial]) for row in rows if np.isfinite(final.get(row.trial, np.inf))]
    ranks = [np.argsort(np.argsort(column)).tolist() for column in zip(*both, strict=True)]
    best = min(rows, key=lambda row: row.fid)
    error = 100 * float(np.median([row.error / row.fid for row in rows if np.isfinite(row.fid)] or [np.nan]))
    agree = correlation(iter([(ranks[0], ranks[1])] if ranks else []))
    λ, rate = best.settings[:2]
    return (
        f"| {space} | {at:g} | {len(rows)} | {sum(row.fid == np.inf for row in rows)} | {best.fid:.2f} | "
        f"{λ:.3g} | {rate:.1e} | {error:.1f} % | {between_seeds(rows):.1f} % | {in_common(rows):.2f} | {agree:.2f} |"
    )


def show(rows: Sequence[Row]) -> None:
    print(
        "| space | rung | trials | diverged | best FID | its λ | its rate | sampling error, median | between seeds | "
        "noise in common | ranks as at the end |\n|" + 11 * "---|"
    )
    for space in dict.fromkeys(row.space for row in rows):
        of_space = [row for row in rows if row.space == space]
        last = [row for row in of_space if row.at == 1]
        for at in sorted({row.at for row in of_space}):
            print(line(space, at, [row for row in of_space if row.at == at], last))


def check_base(field: Field, rows: Sequence[Row], path: Path) -> None:
    """ValueError if the file's trials of this size began from another base."""
    if others := {row.base for row in rows if row.space == field.config.name} - {field.base}:
        raise ValueError(
            f"{path}: {field.config.name} began from another base there ({min(others)[:8]}); give another --table"
        )


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("spaces", nargs="*", default=["digits_s", "digits_m", "digits_var"])
    parser.add_argument("--grid", type=int, nargs=2, default=[14, 12], metavar=("LAMBDAS", "RATES"))
    parser.add_argument("--decades", type=float, nargs=2, default=[2.5, 1.5], metavar=("LAMBDA", "RATE"))
    parser.add_argument("--beta", type=float, nargs="+", help="a third axis; else the space's own")
    parser.add_argument("--null-ratio", type=float, nargs="+", help="a fourth axis; else the space's own")
    parser.add_argument("--seeds", type=int, default=2, help="how many seeds of training")
    parser.add_argument("--rungs", type=float, nargs="+", default=[0.125, 0.25, 0.5, 1.0])
    parser.add_argument("--table", type=Path, default=TABLE)
    parser.add_argument("--storage", type=Path, default=Path("runs"), help="where the bases are, or are made")
    arguments = parser.parse_args(words)
    settings: tuple[str, ...] = ()
    with tempfile.TemporaryDirectory() as scratch:
        if arguments.smoke:
            arguments.spaces, arguments.grid, arguments.seeds, settings = ["digits_s"], [2, 1], 1, TINY
            arguments.rungs = [0.5, 1.0]
            arguments.table, arguments.storage = Path(scratch) / "table.parquet", Path(scratch)
        raw = Raw(arguments.raw, "space", *AXES, "seed", "rung", "FID", "error")
        rows = read_rows(arguments.table)
        for space in arguments.spaces:
            field = Field.of(space, settings, arguments.rungs, arguments.storage.resolve())
            check_base(field, rows, arguments.table)
            known = {row.trial for row in rows}
            for seed, point in itertools.product(range(arguments.seeds), grid(field.config, arguments)):
                if (space, point, seed) not in known:
                    with one_thread():
                        rows += field.run(point, seed)
                    write_rows(arguments.table, rows)
        for row in rows:
            raw.add(row.space, *row.settings, row.seed, row.at, f"{row.fid:.6g}", f"{row.error:.4g}")
        show(rows)


if __name__ == "__main__":
    main()
