"""The report: one HTML page that needs nothing beside it, and its figures and tables as files."""

import base64
import csv
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cca_ray.inputs import SPACES
from cca_ray.reporting import charts, text
from cca_ray.reporting.results import SizeResults, StudyResults, TrialRow
from cca_ray.reporting.style import THEME, number, save
from cca_ray.storage.files import atomically
from cca_ray.storage.uris import named

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"


def write_report(studies: Sequence[StudyResults], folder: Path) -> Path:
    """The page of these studies, in `folder` with its parts: SVG, PNG and CSV. Overwrites an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    several, sizes = len(studies) > 1, [(study, size) for study in studies for size in study.sizes]
    write_csv(folder / "sizes.csv", [row_of(study, size) for study, size in sizes if size.summary])
    write_csv(folder / "trials.csv", [trial_of(study, size, t) for study, size in sizes for t in size.trials])
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    context = {
        "theme": THEME,
        "title": ("Studies " if several else "Study ") + ", ".join(study.name for study in studies),
        "warnings": text.warnings(studies),
        "table": overview(sizes, several),
        "studies": [study_part(study, folder / study.name if several else folder, several) for study in studies],
        "files": f"Figures as SVG and PNG, tables as CSV: {shown(folder)}",
    }
    page = environment.get_template(PAGE).render(context)
    atomically(folder / PAGE, lambda partial: partial.write_text(page, encoding="utf-8"))
    return folder / PAGE


def study_part(study: StudyResults, folder: Path, several: bool) -> dict[str, Any]:
    done, figures = [size for size in study.sizes if size.summary], []
    folder.mkdir(parents=True, exist_ok=True)
    for family in dict.fromkeys(size.family for size in done):
        of_family = [size for size in done if size.family == family]
        for metric, caption in BY_SIZE.items():
            drawn = charts.by_size(of_family, [metric])
            title = f"{f'{study.name}, ' * several}{family}: {charts.named(metric)}"
            figures.append(part(drawn, folder / f"{family}-{metric}", title, caption))
    if done:
        save(charts.by_size(done, list(BY_SIZE)), folder / "sizes", "FID and inception score by size")
    return {
        "lede": text.lede(study),
        "figures": figures,
        "sizes": [size_part(study, size, folder / size.name, several) for size in study.sizes],
    }


def size_part(study: StudyResults, size: SizeResults, folder: Path, several: bool) -> dict[str, Any]:
    folder.mkdir(parents=True, exist_ok=True)
    big, lines = text.tile(size)
    figures, missing = search_figures(size, folder)
    winner = study.folder / size.name / "winner.pt"
    return {
        "anchor": f"{study.name}-{size.name}",
        "title": f"{study.name}: {size.name}" if several else size.name,
        "big": big,
        "lines": lines,
        "story": text.story(size),
        "winner": shown(winner) if size.summary else "",
        "command": f"python -m cca_ray.sample {space_of(size)} --checkpoint {quote(shown(winner))} --out grid.png",
        "picture": Markup(embedded(size.picture)) if size.picture else "",  # noqa: S704 (base64)
        "finalists": finalists(size),
        "figures": figures,
        "missing": missing,
        "failures": text.failures(size),
        "cost": text.cost(size),
        "protocol": text.protocol(size),
        "trials": trials(size),
    }


def shown(path: Path) -> str:
    """As a person here would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else named(path)


def space_of(size: SizeResults) -> str:
    """What names its search space on the command line."""
    return size.name if (SPACES / f"{size.name}.yaml").exists() else f"{size.name}.yaml"


def embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def part(figure: Figure, path: Path, title: str, caption: str) -> dict[str, Any]:
    """A figure in the page and beside it."""
    return {"svg": Markup(save(figure, path, title)), "title": title, "caption": caption}  # noqa: S704 (our own SVG)


BY_SIZE = {
    "fid": "Lower is better. Bars: the spread of one block of noise. Sizes of one protocol are joined.",
    "inception_score": "Higher is better.",
}
SEARCH: dict[str, tuple[str, Callable[[SizeResults], Figure | None], str]] = {
    "landscape": (
        "Landscape",
        charts.landscape,
        "All trials of the search over what was searched, coloured by their score at the last rung. Trials that a rung "
        "stopped were scored on fewer images and carry no colour.",
    ),
    "history": (
        "History",
        charts.history,
        "Every trial from its first rung (upper ends, mostly) to its last; bars are two standard errors. The winner "
        "was chosen later, among the best, on fresh noise.",
    ),
    "rungs": (
        "Rungs",
        charts.rungs,
        "Later rungs have more images, which alone lowers FID; open marks were stopped there.",
    ),
    "trade_off": (
        "Trade-off",
        charts.trade_off,
        "FID against inception score at the last rung; no trial beats those on the line in both.",
    ),
    "parallel": (
        "Parallel coordinates",
        charts.parallel,
        "Completed trials; the winner is thick. Better is higher at the right.",
    ),
    "importances": (
        "Importances",
        charts.importances,
        "Share of the score's variance over the completed trials that each setting explains (fANOVA).",
    ),
}
OF_COMPLETED = ("parallel", "trade_off")  # what can only be drawn of completed trials


def search_figures(size: SizeResults, folder: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """Figures of the search, and why some are missing."""
    if not any(t.rungs for t in size.of("search")):
        return [], ["No trial has been scored yet: there is nothing to draw."]
    figures, done = {}, len(size.of("search", "COMPLETE"))
    for name, (title, draw, caption) in SEARCH.items():
        if (done or name not in OF_COMPLETED) and (figure := draw(size)) is not None:
            whole = f"{size.name}: {title.lower()}"
            figures[name] = part(figure, folder / name, whole, caption) | {"title": title}
    missing = []
    if "importances" not in figures:
        missing.append(
            f"No importances: they take {charts.FEWEST} completed trials and two settings; here are {done} and "
            f"{len(size.space)}."
        )
    return list(figures.values()), missing


Cell = dict[str, Any]


def cell(text: str, value: Any = None) -> Cell:
    """`value`: what the table is sorted by."""
    return {"text": text, "value": text if value is None else value}


def real(value: float | None, form: str = ".2f") -> Cell:
    return cell("", "") if value is None or math.isnan(value) else cell(f"{value:{form}}", value)


def overview(sizes: Sequence[tuple[StudyResults, SizeResults]], several: bool) -> dict[str, Any]:
    """The table of all finished sizes."""
    done = [(study, size) for study, size in sizes if size.summary]
    protocols = {size.protocol for _, size in done}
    rows = []
    for study, size in done:
        row = size.row
        guided = fid(row, "guided")
        cells = {
            "size": cell(f"{study.name}: {size.name}" if several else size.name),
            "parameters": cell(f"{row['params']:,}", row["params"]),
            "without guidance": fid(row, "base"),
            "with guidance": guided | {"text": f"{guided['text']} (s = {row['guidance_scale']:g})"},
            "control": fid(row, "control"),
            "after CCA": fid(row, "cca"),
            "CCA and guidance": fid(row, "cca_guided"),
            "CCA / guided": real(row["fid_cca"] / row["fid_guided"]),
            "CCA / control": real(row["fid_cca"] / row["fid_control"]),
            "λ": real(row["winner"].get("lambda"), ".3g"),
            "lr": real(row["winner"].get("learning_rate"), ".2g"),
            "trials": cell(str(row["trials"])),
            "hours": real(row.get("device_hours"), ".2g"),
            "protocol": cell(size.protocol if len(protocols) > 1 else ""),
        }
        rows.append(cells)
    columns = [name for name in (rows[0] if rows else ()) if any(row[name]["text"] for row in rows)]
    alike = f"all under protocol {min(protocols, default='')}" if len(protocols) < 2 else (
        "protocols differ: compare along a row, not down a column"
    )  # fmt: skip
    note = (
        f"FID, mean over fresh blocks of noise ± the spread of one; {alike}. Models count as equal here if they are no "
        "further apart than that spread. Hours are those of GPUs, or of CPUs where a trial has no GPU."
    )
    return {"columns": columns, "rows": [[row[name] for name in columns] for row in rows], "note": note}


def fid(row: dict[str, Any], model: str) -> Cell:
    if f"fid_{model}" not in row:
        return cell("", "")
    return cell(f"{row[f'fid_{model}']:.2f} ± {row[f'std_{model}']:.2f}", row[f"fid_{model}"])


def finalists(size: SizeResults) -> dict[str, Any]:
    found, names = text.finalists(size), list(size.space)
    rows = []
    for f in sorted(found, key=lambda f: f["fid"]):
        wins = f["trial"] == size.row["trial"]
        standing = "winner" if wins else "tied with the winner" if f["tied"] else ""
        settings = [number(f[name]) if name in f else "" for name in names]
        cells = [str(f["trial"]), *settings, f"{f['fid']:.2f} ± {f['std']:.2f}", str(f["models"]), standing]
        rows.append({"winner": wins, "cells": cells})
    columns = ["trial", *map(charts.named, names), "FID on fresh noise", "models", ""]
    note = (
        "Ties cannot be told from the best by two standard errors on the blocks that chose; of ties the cheaper wins, "
        "then the better mean there. What is shown here are other blocks."
    )
    return {"columns": columns, "rows": rows, "note": note}


def trials(size: SizeResults) -> dict[str, Any]:
    """The table of all trials, of all arms."""
    names = list(dict.fromkeys([*size.space, *(name for t in size.trials for name in t.params)]))
    rungs = max((len(t.rungs) for t in size.trials), default=0)
    rows = []
    for t in size.trials:
        scores = [*t.rungs, *[None] * (rungs - len(t.rungs))]
        cells = [
            cell(t.arm),
            cell(str(t.number)),
            cell(t.state.lower()),
            *(cell(number(t.params[name]), t.params[name]) if name in t.params else cell("", "") for name in names),
            *(real(rung["fid"] if rung else None) for rung in scores),
            real(t.last("inception_score")),
            real(t.seconds, ".0f"),
            cell(t.reason),
        ]
        wins = bool(size.summary) and t.arm == "search" and t is size.best
        rows.append({"winner": wins, "cells": cells})
    of_rungs = [f"FID at rung {i + 1}" for i in range(rungs)]
    columns = ["arm", "trial", "state", *map(charts.named, names), *of_rungs, "inception score", "seconds", "reason"]
    return {"columns": columns, "rows": rows}


def row_of(study: StudyResults, size: SizeResults) -> dict[str, Any]:
    """For `sizes.csv`: all of a size's summary that is one value."""
    plain = {key: value for key, value in size.row.items() if not isinstance(value, list | dict)}
    return {"study": study.name, **plain, **{f"winner_{key}": value for key, value in size.row["winner"].items()}}


def trial_of(study: StudyResults, size: SizeResults, t: TrialRow) -> dict[str, Any]:
    """For `trials.csv`."""
    scores = {f"rung_{i + 1}_{key}": rung[key] for i, rung in enumerate(t.rungs)
              for key in ("step", "samples", "fid", "inception_score")}  # fmt: skip
    row = {"study": study.name, "size": size.name, "arm": t.arm, "trial": t.number, "state": t.state}
    return {**row, **t.params, **scores, "seconds": t.seconds, "accelerators": t.accelerators, "reason": t.reason}


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The columns of all rows, in the order in which they come up."""
    columns = list(dict.fromkeys(column for row in rows for column in row))

    def write(partial: Path) -> None:
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns)
            writer.writeheader()
            writer.writerows(rows)

    atomically(path, write)
