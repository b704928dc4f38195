"""What a study ends with: its table, `summary.json`, the picture of each size, the report."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from cca_ray.contracts import MetricInfo, Role, SizeSummary, StudySummary
from cca_ray.errors import first_line
from cca_ray.evaluation.sampler import image_grid
from cca_ray.reporting.page import write_report
from cca_ray.reporting.results import picture_of, read_study, read_summary
from cca_ray.reporting.text import tuning
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull, push
from cca_ray.storage.uris import command_line, to_uri
from cca_ray.tracking.tracker import Tracker
from cca_ray.verdict import JUDGED, in_short, scored, versus

TITLES: dict[Role, str] = {
    "base": "base, no guidance",
    "guided": "base, guided (2× cost)",
    "control": "plain fine-tuning, no guidance",
    "tuned": "after {}, no guidance",
}


def columns_of(size: SizeSummary, metric: MetricInfo, called: str) -> dict[str, str]:
    """A row of the table, by the heads of its columns. `called`: how the models were tuned."""
    settings, first = size.settings, metric == size.headline  # of others no difference is known
    return {
        "size": size.size,
        "parameters": f"{size.parameters:,}",
        "without guidance": scored(size, "base", metric),
        "with guidance": f"{scored(size, 'guided', metric)} (s = {size.models['guided'].guidance_scale:g})",
        "control": scored(size, "control", metric),
        f"after {called}": scored(size, "tuned", metric),
        **({"vs guided": in_short(size, "guided"), "vs control": in_short(size, "control")} if first else {}),
        f"{called} and guidance": scored(size, "tuned_guided", metric) if "tuned_guided" in size.models else "",
        "λ": f"{settings['lambda']:.3g}" if "lambda" in settings else "",
        "lr": f"{settings['learning_rate']:.2g}" if "learning_rate" in settings else "",
        "trials": f"{size.trials}",
        "minutes": f"{size.seconds / 60:.1f}",
    }


def table(sizes: Sequence[SizeSummary], width: int | None = None, metric: MetricInfo | None = None) -> str:
    """Scores by size, as a Markdown table that also reads well on a terminal; ± is the spread of one block of noise.

    Of the headline metric, unless another is given. Where that is wider than `width`, a column a size, as many beside
    each other as fit.
    """
    called = tuning(sizes)
    found = [columns_of(size, metric or size.headline, called) for size in sizes]
    columns = [name for name in found[0] if any(row[name] for row in found)]
    rows = [[row[name] for name in columns] for row in found]
    lines = markdown([columns, *rows])
    if width is None or len(lines[0]) <= width:
        return "\n".join(lines)
    for beside in range(len(rows), 0, -1):
        blocks = [[columns, *rows[first : first + beside]] for first in range(0, len(rows), beside)]
        turned = [markdown([list(row) for row in zip(*block, strict=True)]) for block in blocks]
        if beside == 1 or max(len(lines[0]) for lines in turned) <= width:
            break
    return "\n\n".join("\n".join(lines) for lines in turned)


def markdown(cells: list[list[str]]) -> list[str]:
    """The lines of a table, the first row its head."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return [line(cells[0]), rule, *map(line, cells[1:])]


def write_summary(folder: Path, sizes: Sequence[SizeSummary]) -> Path:
    """Write the rows of these sizes, in this order; other rows that the file has already stay in their places."""
    path = folder / "summary.json"
    pull(path)
    made, rows = {size.size for size in sizes}, iter(sizes)
    kept = [next(rows) if size.size in made else size for size in read_summary(path).sizes]
    summary = StudySummary(sizes=(*kept, *rows))
    atomically(path, lambda partial: partial.write_text(summary.model_dump_json(indent=1), encoding="utf-8"))
    return path


def picture(path: Path, size: SizeSummary, images: Mapping[Role, np.ndarray], columns: int = 10) -> Path:
    """The four models' first samples side by side, and each in a file of its own, which the report can stack.

    Every column is a class, every place the same noise.
    """
    figure, headline = Figure(figsize=(14, 2.5), layout="constrained"), size.headline
    for axes, (role, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        grid = image_grid(images[role][: 5 * columns], columns)
        Image.fromarray(grid).save(path.with_name(picture_of(role)))
        axes.imshow(grid, interpolation="nearest")
        axes.set_title(f"{title.format(size.objective_label)}\n{headline.label} {size.value(role):.1f}", fontsize=11)
        axes.set_axis_off()
    judged = ", ".join(versus(size, other) for other in JUDGED)
    figure.suptitle(f"{size.size}, {size.parameters:,} parameters: {judged}", fontsize=11)
    figure.savefig(path, dpi=90)
    return path


def report_at_end(
    folder: Path, sizes: Sequence[SizeSummary], trackers: Mapping[str, Tracker]
) -> tuple[Path | None, str]:
    """The report of a study that has just finished, also on the MLflow runs of its sizes, in `report/`.

    If there is none, why, and how to make it, in a line: whatever goes wrong here, the study is finished. `trackers`:
    by experiment.
    """
    try:
        page = write_report([read_study(folder.parent, folder.name)], folder / "report")
        push(page.parent)
        for size in sizes:
            for path in (page, *sorted((page.parent / size.size).glob("*.png"))):
                trackers[size.mlflow.experiment].file(size.mlflow.key, path, "report")
    except Exception as error:
        again = command_line("cca-ray", "report", folder.name, "--storage", to_uri(folder.parent))
        return None, f"the study has no report ({first_line(error)}); fix that, then make it with {again}"
    return page, ""
