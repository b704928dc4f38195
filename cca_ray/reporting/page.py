"""The report: one HTML page that needs nothing beside it, and its figures and tables as files."""

import base64
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from cca_ray.contracts import MetricInfo, SizeSummary
from cca_ray.inputs import SPACES
from cca_ray.reporting import charts, places, tables, text
from cca_ray.reporting.asked import Named, sampling
from cca_ray.reporting.pictures import ALL_WIDTH, OF_TRIALS, Picture, of_model, of_trials
from cca_ray.reporting.results import SizeResults, StudyResults, TrialRow
from cca_ray.reporting.spots import Spot
from cca_ray.reporting.style import THEME, save
from cca_ray.reporting.tables import Table, in_a_line, overviews, row_of, trial_of, write_csv
from cca_ray.storage.files import atomically
from cca_ray.storage.uris import to_uri
from cca_ray.verdict import WORDS, scored, worst

TEMPLATES = Path(__file__).parent / "templates"
PAGE = "report.html"
SCRIPTS = ("script.js", "linked.js")


@dataclass(frozen=True)
class Part:
    """A figure in the page."""

    svg: Markup
    title: str
    caption: str


@dataclass(frozen=True)
class Sample:
    """A picture of samples, and what it is of. `trial`: its name, if it is one's."""

    picture: Picture
    caption: str
    trial: str = ""


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
    models: list[Sample]  # one a model, or one of all
    finalists: Table
    figures: list[Part]
    failures: list[str]
    cost: list[str]
    protocol: list[str]
    samples: list[Sample]  # of trials
    unshown: int  # trials that have been scored and have none here
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
    script: Markup
    allowed: str  # the digest of the one script that a browser may run: a stranger's, should one ever get in, is none
    title: str
    warnings: list[str]
    overviews: list[Table]
    studies: list[StudyPart]
    files: str


def write_report(studies: Sequence[StudyResults], folder: Path) -> Path:
    """The page of these studies, in `folder` with its parts: SVG, PNG and CSV. Overwrites an earlier one."""
    folder.mkdir(parents=True, exist_ok=True)
    several, sizes = len(studies) > 1, [(study, size) for study in studies for size in study.sizes]
    room = OF_TRIALS // max(1, len(sizes))
    write_csv(folder / "sizes.csv", [row_of(study, size) for study in studies for size in study.summaries])
    write_csv(folder / "trials.csv", [trial_of(study, size, t) for study, size in sizes for t in size.trials])
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    script = "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in SCRIPTS)
    page = Page(
        theme=THEME,
        script=Markup(script),  # noqa: S704 (our own)
        allowed=f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}",
        title=("Studies " if several else "Study ") + ", ".join(study.name for study in studies),
        warnings=text.warnings(studies),
        overviews=overviews(studies),
        studies=[study_part(study, folder / study.name if several else folder, several, room) for study in studies],
        files=f"Figures as SVG and PNG, tables as CSV: {shown(folder)}",
    )
    content = environment.get_template(PAGE).render(vars(page))
    atomically(folder / PAGE, lambda partial: partial.write_text(content, encoding="utf-8"))
    return folder / PAGE


def study_part(study: StudyResults, folder: Path, several: bool, room: int) -> StudyPart:
    """`room`: for a size."""
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
        text.lede(study), figures, [size_part(study, size, folder / size.name, several, room) for size in study.sizes]
    )


def of_all(sizes: Sequence[SizeSummary]) -> list[MetricInfo]:
    """The metrics that were measured of all these sizes."""
    first = sizes[0].metrics if sizes else ()
    return [metric for metric in first if all(metric in size.metrics for size in sizes)]


def caption_of(metric: MetricInfo, sizes: Sequence[SizeSummary]) -> str:
    better = "Lower is better." if metric.lower_is_better else "Higher is better."
    spread = any(size.std("tuned", metric) is not None for size in sizes)
    return better + " Bars: the spread of one block of noise. Sizes of one protocol are joined." * spread


def size_part(study: StudyResults, size: SizeResults, folder: Path, several: bool, room: int) -> SizePart:
    """`room`: characters for the samples of its trials."""
    folder.mkdir(parents=True, exist_ok=True)
    big, lines = text.tile(size)
    winner, trials = study.folder / size.name / "winner.pt", tables.trials(size)
    samples = trial_samples(study, size, room)
    return SizePart(
        anchor=f"{study.name}-{size.name}",
        title=f"{study.name}: {size.name}" if several else size.name,
        standing=WORDS[worst(size.summary)].lower() if size.summary else "",
        big=big,
        lines=lines,
        story=text.story(size),
        winner=shown(winner) if size.summary else "",
        command=f"python -m cca_ray.sample {sampling(named(study, size), shown(winner), study.folder)} --out grid.png",
        models=model_samples(size),
        finalists=tables.finalists(size),
        figures=search_figures(size, trials, folder),
        failures=text.failures(size),
        cost=text.cost(size),
        protocol=text.protocol(size),
        samples=samples,
        unshown=len([t for t in size.of("search") if t.rungs]) - len(samples),
        trials=trials,
    )


def shown(path: Path) -> str:
    """As a person here would type it."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else to_uri(path)


def named(study: StudyResults, size: SizeResults) -> Named:
    """What names its search space on the command line; of an earlier version's study, most likely."""
    known = study.asked.named.get(size.name)
    return known or Named(space=size.name if (SPACES / f"{size.name}.yaml").exists() else f"{size.name}.yaml")


def model_samples(size: SizeResults) -> list[Sample]:
    """Before and after; of a study of an earlier version, one picture of all."""
    if not size.summary or not size.pictures:
        whole = of_model(size.picture, ALL_WIDTH) if size.picture else None
        return [Sample(whole, "")] if whole else []
    names = {role: label.format(size.summary.objective_label) for role, (label, *_) in charts.MODELS.items()}
    return [
        Sample(picture, f"{names[role]}: {size.summary.headline.label} {scored(size.summary, role)}")
        for role, path in size.pictures.items()
        if (picture := of_model(path))
    ]


def trial_samples(study: StudyResults, size: SizeResults, room: int) -> list[Sample]:
    """Of the search: the winner, what was completed, what was stopped, each from the best on; as far as they fit."""
    trials = sorted(
        (t for t in size.of("search") if t.rungs),
        key=lambda t: (t is not size.best, t.state != "COMPLETE", size.metric.cost(t.last(size.metric))),
    )
    by_name = {t.name: t for t in trials}
    return [
        Sample(picture, f"trial {t.number}: {size.metric.label} {t.last(size.metric):.2f}", name)
        for name, picture in of_trials(study.folder, trials, room).items()
        if (t := by_name[name])
    ]


def part(figure: Figure, path: Path, title: str, caption: str, heading: str = "", spots: Sequence[Spot] = ()) -> Part:
    """A figure in the page and beside it. `heading`: its title in the page, if that is another."""
    return Part(Markup(save(figure, path, title, spots)), heading or title, caption)  # noqa: S704 (our own SVG)


Places = Callable[[SizeResults, TrialRow], Sequence[tuple[float, float]]]
SEARCH: dict[str, tuple[str, Callable[[SizeResults], Figure | None], Places, str]] = {
    "landscape": (
        "Landscape",
        charts.landscape,
        places.in_landscape,
        "All trials of the search by their settings, coloured by their score at the last rung. Trials that were "
        "stopped at a rung were scored on fewer images and have no colour.",
    ),
    "history": (
        "History",
        charts.history,
        places.in_history,
        "Every trial from its first rung (upper ends, mostly) to its last; bars are two standard errors. The winner "
        "was chosen later, among the best, on fresh noise.",
    ),
    "rungs": (
        "Rungs",
        charts.rungs,
        places.in_rungs,
        "Later rungs use more images, which by itself lowers FID. Trials with an open mark were stopped there.",
    ),
    "trade_off": (
        "Trade-off",
        charts.trade_off,
        places.in_trade_off,
        "{across} against {up} at the last rung; no trial beats those on the line in both.",
    ),
    "parallel": (
        "Parallel coordinates",
        charts.parallel,
        places.in_parallel,
        "Completed trials; the winner is thick. Better is higher at the right.",
    ),
}
OF_COMPLETED = ("parallel", "trade_off")  # what can only be drawn of completed trials


def search_figures(size: SizeResults, trials: Table, folder: Path) -> list[Part]:
    """Figures of the search; none before its first score. `trials`: the table that tells of each."""
    if not any(t.rungs for t in size.of("search")):
        return []
    figures, done = [], len(size.of("search", "COMPLETE"))
    told = {row.trial: in_a_line(trials, row) for row in trials.rows}
    across, *more = (metric.label for metric in places.of_trade_off(size))
    for name, (title, draw, where, caption) in SEARCH.items():
        if (done or name not in OF_COMPLETED) and (figure := draw(size)) is not None:
            found = {t.name: where(size, t) for t in size.of("search")}
            spots = [Spot(trial, told[trial], path) for trial, path in found.items() if path]
            caption = caption.format(across=across, up="".join(more))
            figures.append(part(figure, folder / name, f"{size.name}: {title.lower()}", caption, title, spots))
    return figures
