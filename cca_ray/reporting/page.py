"""The report: one HTML page that needs nothing beside it, and its figures and tables as files."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cca_ray.contracts import MetricInfo, SizeSummary
from cca_ray.inputs import SPACES
from cca_ray.reporting import charts, tables, text
from cca_ray.reporting.results import SizeResults, StudyResults
from cca_ray.reporting.style import THEME, save
from cca_ray.reporting.tables import Table, overviews, row_of, trial_of, write_csv
from cca_ray.storage.files import atomically
from cca_ray.storage.uris import command_line, to_uri
from cca_ray.verdict import WORDS, worst

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"


@dataclass(frozen=True)
class Part:
    """A figure in the page."""

    svg: Markup
    title: str
    caption: str


@dataclass(frozen=True)
class SizePart:
    """All that the page says of a size."""

    anchor: str
    title: str
    standing: str  # better, equal or worse; empty of an unfinished size
    big: str
    lines: list[str]
    story: str
    winner: str  # its file; empty of an unfinished size
    command: str
    picture: Markup | str
    finalists: Table
    figures: list[Part]
    failures: list[str]
    cost: list[str]
    protocol: list[str]
    trials: Table


@dataclass(frozen=True)
class StudyPart:
    lede: str
    figures: list[Part]
    sizes: list[SizePart]


@dataclass(frozen=True)
class Page:
    """What the template shows."""

    theme: dict[str, tuple[str, str]]
    title: str
    warnings: list[str]
    overviews: list[Table]
    studies: list[StudyPart]
    files: str


def write_report(studies: Sequence[StudyResults], folder: Path) -> Path:
    """The page of these studies, in `folder` with its parts: SVG, PNG and CSV. Overwrites an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    several, sizes = len(studies) > 1, [(study, size) for study in studies for size in study.sizes]
    write_csv(folder / "sizes.csv", [row_of(study, size) for study in studies for size in study.summaries])
    write_csv(folder / "trials.csv", [trial_of(study, size, t) for study, size in sizes for t in size.trials])
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = Page(
        theme=THEME,
        title=("Studies " if several else "Study ") + ", ".join(study.name for study in studies),
        warnings=text.warnings(studies),
        overviews=overviews(studies),
        studies=[study_part(study, folder / study.name if several else folder, several) for study in studies],
        files=f"Figures as SVG and PNG, tables as CSV: {shown(folder)}",
    )
    content = environment.get_template(PAGE).render(vars(page))
    atomically(folder / PAGE, lambda partial: partial.write_text(content, encoding="utf-8"))
    return folder / PAGE


def study_part(study: StudyResults, folder: Path, several: bool) -> StudyPart:
    done, figures = study.summaries, list[Part]()
    folder.mkdir(parents=True, exist_ok=True)
    for family in dict.fromkeys(size.family for size in done):
        of_family = [size for size in done if size.family == family]
        for metric in of_all(of_family):
            drawn = charts.by_size(of_family, [metric])
            title = f"{f'{study.name}, ' * several}{family}: {metric.label}"
            figures.append(part(drawn, folder / f"{family}-{metric.name}", title, caption_of(metric, of_family)))
    if metrics := of_all(done):
        names = " and ".join(metric.label for metric in metrics)
        save(charts.by_size(done, metrics), folder / "sizes", f"{names} by size")
    return StudyPart(
        text.lede(study), figures, [size_part(study, size, folder / size.name, several) for size in study.sizes]
    )


def of_all(sizes: Sequence[SizeSummary]) -> list[MetricInfo]:
    """The metrics that were measured of all these sizes."""
    first = sizes[0].metrics if sizes else ()
    return [metric for metric in first if all(metric in size.metrics for size in sizes)]


def caption_of(metric: MetricInfo, sizes: Sequence[SizeSummary]) -> str:
    better = "Lower is better." if metric.lower_is_better else "Higher is better."
    spread = any(size.std("tuned", metric) is not None for size in sizes)
    return better + " Bars: the spread of one block of noise. Sizes of one protocol are joined." * spread


def size_part(study: StudyResults, size: SizeResults, folder: Path, several: bool) -> SizePart:
    folder.mkdir(parents=True, exist_ok=True)
    big, lines = text.tile(size)
    winner = study.folder / size.name / "winner.pt"
    return SizePart(
        anchor=f"{study.name}-{size.name}",
        title=f"{study.name}: {size.name}" if several else size.name,
        standing=WORDS[worst(size.summary)].lower() if size.summary else "",
        big=big,
        lines=lines,
        story=text.story(size),
        winner=shown(winner) if size.summary else "",
        command=command_line(
            "python", "-m", "cca_ray.sample", space_of(size), "--checkpoint", shown(winner), "--out", "grid.png"
        ),
        picture=Markup(embedded(size.picture)) if size.picture else "",  # noqa: S704 (base64)
        finalists=tables.finalists(size),
        figures=search_figures(size, folder),
        failures=text.failures(size),
        cost=text.cost(size),
        protocol=text.protocol(size),
        trials=tables.trials(size),
    )


def shown(path: Path) -> str:
    """As a person here would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else to_uri(path)


def space_of(size: SizeResults) -> str:
    """What names its search space on the command line."""
    return size.name if (SPACES / f"{size.name}.yaml").exists() else f"{size.name}.yaml"


def embedded(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def part(figure: Figure, path: Path, title: str, caption: str, heading: str = "") -> Part:
    """A figure in the page and beside it. `heading`: its title in the page, if that is another."""
    return Part(Markup(save(figure, path, title)), heading or title, caption)  # noqa: S704 (our own SVG)


SEARCH: dict[str, tuple[str, Callable[[SizeResults], Figure | None], str]] = {
    "landscape": (
        "Landscape",
        charts.landscape,
        "All trials of the search by their settings, coloured by their score at the last rung. Trials that were "
        "stopped at a rung were scored on fewer images and have no colour.",
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
        "Later rungs use more images, which by itself lowers FID. Trials with an open mark were stopped there.",
    ),
    "trade_off": (
        "Trade-off",
        charts.trade_off,
        "{across} against {up} at the last rung; no trial beats those on the line in both.",
    ),
    "parallel": (
        "Parallel coordinates",
        charts.parallel,
        "Completed trials; the winner is thick. Better is higher at the right.",
    ),
}
OF_COMPLETED = ("parallel", "trade_off")  # what can only be drawn of completed trials


def search_figures(size: SizeResults, folder: Path) -> list[Part]:
    """Figures of the search; none before its first score."""
    if not any(t.rungs for t in size.of("search")):
        return []
    figures, done = {}, len(size.of("search", "COMPLETE"))
    across, *more = (metric.label for metric in charts.of_trade_off(size))
    for name, (title, draw, caption) in SEARCH.items():
        if (done or name not in OF_COMPLETED) and (figure := draw(size)) is not None:
            caption = caption.format(across=across, up="".join(more))
            figures[name] = part(figure, folder / name, f"{size.name}: {title.lower()}", caption, title)
    return list(figures.values())
