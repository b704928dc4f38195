"""What a study ends with: its table, `summary.json`, the picture of each size, the report."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from cca_ray.evaluation.sampler import image_grid
from cca_ray.reporting.page import write_report
from cca_ray.reporting.results import read_study
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull, push
from cca_ray.tracking.tracker import Tracker

COLUMNS = {
    "size": "{size}",
    "parameters": "{params:,}",
    "without guidance": "{fid_base:.2f} ± {std_base:.2f}",
    "with guidance": "{fid_guided:.2f} ± {std_guided:.2f} (s = {guidance_scale:g})",
    "control": "{fid_control:.2f} ± {std_control:.2f}",
    "after CCA": "{fid_cca:.2f} ± {std_cca:.2f}",
    "CCA and guidance": "{fid_cca_guided:.2f} ± {std_cca_guided:.2f}",
    "λ": "{lambda:.3g}",
    "lr": "{learning_rate:.2g}",
    "trials": "{trials}",
    "minutes": "{minutes:.1f}",
}
TITLES = {
    "base": "base, no guidance",
    "guided": "base, guided (2× cost)",
    "control": "plain fine-tuning, no guidance",
    "cca": "after CCA, no guidance",
}


def table(sizes: list[dict[str, Any]], width: int | None = None) -> str:
    """FID by size, as a Markdown table that also reads well on a terminal; ± is the spread of one block of noise.

    Where that is wider than `width`, a column a size, as many beside each other as fit.
    """
    columns = dict(COLUMNS)
    if not all("fid_cca_guided" in size for size in sizes):
        del columns["CCA and guidance"]
    rows = [[form.format(**size, minutes=size["seconds"] / 60) for form in columns.values()] for size in sizes]
    lines = markdown([list(columns), *rows])
    if width is None or len(lines[0]) <= width:
        return "\n".join(lines)
    for beside in range(len(rows), 0, -1):
        blocks = [[list(columns), *rows[first : first + beside]] for first in range(0, len(rows), beside)]
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


def verdict(size: dict[str, Any]) -> str:
    """The outcome in one sentence."""
    guided, control = size["fid_cca"] / size["fid_guided"], size["fid_cca"] / size["fid_control"]
    return (
        f"{size['size']}: FID {size['fid_cca']:.2f} after CCA, without guidance: "
        f"{guided:.2f} × the guided base, at half its cost, and {control:.2f} × the control"
    )


def write_summary(folder: Path, sizes: list[dict[str, Any]]) -> Path:
    """Write the rows of these sizes, in this order; other rows that the file has already stay in their places."""
    path = folder / "summary.json"
    pull(path)
    before = json.loads(path.read_text())["sizes"] if path.exists() else []
    made, rows = {size["size"] for size in sizes}, iter(sizes)
    sizes = [*(next(rows) if size["size"] in made else size for size in before), *rows]
    atomically(path, lambda partial: partial.write_text(json.dumps({"sizes": sizes}, indent=1)))
    return path


def picture(path: Path, size: dict[str, Any], images: dict[str, np.ndarray], columns: int = 10) -> Path:
    """The four models' first samples side by side; every column is a class, every place the same noise."""
    matplotlib.use("agg")
    figure = Figure(figsize=(14, 2.5), layout="constrained")
    for axes, (name, title) in zip(figure.subplots(1, len(TITLES)), TITLES.items(), strict=True):
        axes.imshow(image_grid(images[name][: 5 * columns], columns))
        axes.set_title(f"{title}\nFID {size[f'fid_{name}']:.1f}", fontsize=11)
        axes.set_axis_off()
    figure.suptitle(f"{size['size']}, {size['params']:,} parameters", fontsize=11)
    figure.savefig(path, dpi=90)
    return path


def report_at_end(
    folder: Path, sizes: Sequence[dict[str, Any]], trackers: Mapping[str, Tracker], say: Callable[[str], None]
) -> Path | None:
    """The report of a study that has just finished, also on the MLflow runs of its sizes, in `report/`.

    `trackers`: by experiment. Whatever goes wrong here is a line: the study is finished, and the verb makes its report
    at any time.
    """
    try:
        page = write_report([read_study(folder.parent, folder.name)], folder / "report")
        push(page.parent)
        for size in sizes:
            for path in (page, *sorted((page.parent / size["size"]).glob("*.png"))):
                trackers[size["experiment"]].file(size["mlflow_key"], path, "report")
    except Exception as error:
        say(f"no report ({type(error).__name__}: {error}); python -m cca_ray.report {folder.name} tries again")
        return None
    return page
