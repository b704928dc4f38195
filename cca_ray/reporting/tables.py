"""The report's tables: on the page, and as CSV."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cca_ray.contracts import ROLES, MetricInfo, Role, RungScore, SizeSummary
from cca_ray.reporting.numbers import number, setting_name
from cca_ray.reporting.results import SizeResults, StudyResults, TrialRow, error_of
from cca_ray.reporting.text import finalist_scored, tuning
from cca_ray.storage.files import atomically
from cca_ray.verdict import difference, in_multiples, in_short, noise, ratio, scored, with_spread

CsvRow = Mapping[str, str | float | None]


@dataclass(frozen=True)
class Cell:
    """`value`: what the table is sorted by."""

    text: str
    value: str | float


@dataclass(frozen=True)
class Row:
    """`trial`: its name, if the row is one's."""

    cells: list[Cell]
    winner: bool = False
    trial: str = ""


@dataclass(frozen=True)
class Table:
    columns: list[str]
    rows: list[Row]
    note: str = ""


EMPTY = Cell("", "")
SPEAKING = ("arm", "state", "reason")  # columns whose cells say by themselves what they are


def cell(text: str, value: str | float | None = None) -> Cell:
    return Cell(text, text if value is None else value)


def real(value: float | None, form: str = ".2f") -> Cell:
    return EMPTY if value is None or math.isnan(value) else cell(f"{value:{form}}", value)


def scored_at(rung: RungScore | None, metric: MetricInfo) -> Cell:
    """`12.97 ± 0.31`, one standard error, if that is known; empty of a rung that was not reached."""
    if rung is None or math.isnan(value := rung.values[metric.name]):
        return EMPTY
    error = error_of(rung, metric)
    return cell(with_spread(value, None if math.isnan(error) else error), value)


def in_a_line(table: Table, row: Row) -> str:
    """A row in a line: `trial 3, search, complete, λ 1.2, …`."""
    cells = [(column, cell.text) for column, cell in zip(table.columns, row.cells, strict=True) if cell.text]
    return ", ".join(text if column in SPEAKING else f"{column} {text}" for column, text in cells)


def overviews(studies: Sequence[StudyResults]) -> list[Table]:
    """Of all finished sizes, a table for every metric that they are judged by."""
    several = len(studies) > 1
    done = [(f"{study.name}: " * several + size.size, size) for study in studies for size in study.summaries]
    metrics = dict.fromkeys(metric for _, size in done for metric in size.shown)
    return [overview([(name, size) for name, size in done if metric in size.metrics], metric) for metric in metrics]


def overview(sizes: Sequence[tuple[str, SizeSummary]], metric: MetricInfo) -> Table:
    """Sizes with the names that they go by."""
    protocols, called = {size.protocol for _, size in sizes}, tuning([size for _, size in sizes])
    rows = []
    for name, size in sizes:
        guided, scale = of_model(size, "guided", metric), size.models["guided"].guidance_scale
        cells = {
            "size": cell(name),
            "parameters": cell(f"{size.parameters:,}", size.parameters),
            "without guidance": of_model(size, "base", metric),
            "with guidance": cell(f"{guided.text} (s = {scale:g})", guided.value),
            "control": of_model(size, "control", metric),
            f"after {called}": of_model(size, "tuned", metric),
            f"{called} and guidance": of_model(size, "tuned_guided", metric),
            "vs guided": judged(size, "guided", metric),
            "vs control": judged(size, "control", metric),
            f"{called} - guided": apart(size, "guided", metric),
            f"{called} - control": apart(size, "control", metric),
            "λ": real(size.winner.params.get("lambda"), ".3g"),
            "lr": real(size.winner.params.get("learning_rate"), ".2g"),
            "trials": cell(str(size.trials)),
            "hours": real(size.device_hours, ".2g"),
            "protocol": cell(size.protocol if len(protocols) > 1 else ""),
        }
        rows.append(cells)
    columns = [name for name in rows[0] if any(row[name].text for row in rows)]
    alike = f"all under protocol {min(protocols)}" if len(protocols) < 2 else (
        "protocols differ: compare along a row, not down a column"
    )  # fmt: skip
    note = (
        f"{metric.label}, mean over fresh blocks of noise; {alike}. {noise([size for _, size in sizes])}. A difference "
        "is between scores on the same blocks, with its 95 % interval; ≈ equal: the interval contains 0. × is the ratio"
        " of two models' means. Hours are those of GPUs, or of CPUs where a trial has no GPU."
    )
    return Table(columns, [Row([row[name] for name in columns]) for row in rows], note)


def judged(size: SizeSummary, other: Role, metric: MetricInfo) -> Cell:
    """`✓ better, 0.90 ×`; of other metrics than the headline, of which no difference is known, the ratio alone."""
    times = ratio(size, other, metric)
    text = in_short(size, other) if metric == size.headline else in_multiples(size, other, metric)
    return cell(text, "" if times is None else times)


def apart(size: SizeSummary, other: Role, metric: MetricInfo) -> Cell:
    """The tuned model minus another; known of the headline."""
    found = size.differences.get(other) if metric == size.headline else None
    return cell(difference(size, other), found.value) if found else EMPTY


def of_model(size: SizeSummary, role: Role, metric: MetricInfo) -> Cell:
    return cell(scored(size, role, metric), size.value(role, metric)) if role in size.models else EMPTY


def finalists(size: SizeResults) -> Table:
    done, names = size.summary, list(size.space)
    if not done:
        return Table([], [])
    metrics = [m for m in done.metrics if all(m.name in f.score.values for f in done.finalists)]
    first, at_last = done.headline, {t.number: t for t in size.of("search", "COMPLETE")}
    rows = []
    for f in sorted(done.finalists, key=lambda f: first.cost(f.score.values[first.name])):
        wins = f.trial == done.winner.trial
        standing = "winner" if wins else "tied with the winner" if f.tied else ""
        settings = [number(f.params[name]) if name in f.params else "" for name in names]
        rung = scored_at(at_last[f.trial].rungs[-1], first).text if f.trial in at_last else ""
        chose = with_spread(f.selection.values[first.name], f.selection.std.get(first.name)) if f.selection else ""
        scores = [finalist_scored(f, metric) for metric in metrics]
        cells = [str(f.trial), *settings, rung, chose, *scores, str(f.models), standing]
        rows.append(Row([*map(cell, cells)], wins, f"search-{f.trial}"))
    columns = {
        "trial": True, **{setting_name(name): True for name in names}, f"{first.label} at the last rung": True,
        f"{first.label} at selection": any(f.selection for f in done.finalists),
        **{f"{metric.label} reported": True for metric in metrics}, "models": True, "": True,
    }  # fmt: skip
    kept = [i for i, shown in enumerate(columns.values()) if shown]
    note = (
        f"The last rung made these trials finalists. {first.label} at selection is a mean over fresh blocks of noise. "
        "Finalists within two standard errors of the best tie with it; among ties the cheapest wins, then the one "
        "with the better mean. The reported score is a mean over other blocks, which were not used to select, so the "
        "winner need not be the best there. A finalist that was clearly behind after the first block was scored on "
        "no further one for selection, and one that lost without a tie on one block only for the report."
    )
    return Table(
        [list(columns)[i] for i in kept], [replace(row, cells=[row.cells[i] for i in kept]) for row in rows], note
    )


def trials(size: SizeResults) -> Table:
    """All trials, of all arms; the first metric at every rung, others at the last."""
    names = list(dict.fromkeys([*size.space, *(name for t in size.trials for name in t.params)]))
    rungs = max((len(t.rungs) for t in size.trials), default=0)
    first, *others = size.metrics
    rows = []
    for t in size.trials:
        scores = [*t.rungs, *[None] * (rungs - len(t.rungs))]
        cells = [
            cell(str(t.number)),
            cell(t.arm),
            cell(t.state.lower()),
            *(cell(number(t.params[name]), t.params[name]) if name in t.params else EMPTY for name in names),
            *(scored_at(rung, first) for rung in scores),
            *(scored_at(t.rungs[-1] if t.rungs else None, metric) for metric in others),
            real(t.seconds, ".0f"),
            cell(t.reason),
        ]
        rows.append(Row(cells, bool(size.summary) and t.arm == "search" and t is size.best, t.name))
    of_rungs = [f"{first.label} at rung {i + 1}" for i in range(rungs)]
    labels = [metric.label for metric in others]
    columns = ["trial", "arm", "state", *map(setting_name, names), *of_rungs, *labels, "seconds", "reason"]
    note = "± is one standard error of the sampling noise. Of other metrics than the first, the score at the last rung."
    return Table(columns, rows, note)


def row_of(study: StudyResults, size: SizeSummary) -> CsvRow:
    """For `sizes.csv`."""
    row: dict[str, str | float | None] = {
        "study": study.name, "size": size.size, "family": size.family, "objective": size.objective,
        "parameters": size.parameters, "guidance_scale": size.models["guided"].guidance_scale,
    }  # fmt: skip
    for role in (role for role in ROLES if role in size.models):
        row |= {f"{metric.name}_{role}": size.value(role, metric) for metric in size.metrics}
        row |= {f"{metric.name}_std_{role}": size.std(role, metric) for metric in size.metrics}
    for role, found in size.differences.items():
        row |= {f"difference_{role}": found.value, f"difference_{role}_low": found.low}
        row |= {f"difference_{role}_high": found.high, f"at_least_as_good_as_{role}": found.at_least_as_good}
    row |= {f"winner_{name}": value for name, value in size.winner.params.items()}
    return row | {
        "trial": size.winner.trial, "checkpoint": size.checkpoint, "trials": size.trials, "seconds": size.seconds,
        "device_hours": size.device_hours, "device": size.device, "protocol": size.protocol,
        "control_learning_rate": size.control_learning_rate,
    }  # fmt: skip


def trial_of(study: StudyResults, size: SizeResults, t: TrialRow) -> CsvRow:
    """For `trials.csv`."""
    row: dict[str, str | float | None] = {
        "study": study.name, "size": size.name, "arm": t.arm, "trial": t.number, "state": t.state, **t.params,
    }  # fmt: skip
    for i, rung in enumerate(t.rungs):
        row |= {f"rung_{i + 1}_step": rung.step, f"rung_{i + 1}_samples": rung.samples}
        row |= {f"rung_{i + 1}_{name}": value for name, value in rung.values.items()}
    return row | {"seconds": t.seconds, "accelerators": t.accelerators, "reason": t.reason}


def write_csv(path: Path, rows: Sequence[CsvRow]) -> None:
    """The columns of all rows, in the order in which they come up."""
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    atomically(path, write)
