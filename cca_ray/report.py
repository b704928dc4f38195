"""A study, finished or not -> a report: an HTML page, its figures and tables. Also the summary that a study ends with.

python -m cca_ray.report digits                 runs/digits/report/report.html
python -m cca_ray.report digits digits-seed1    both side by side
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import optuna
import typer
from matplotlib.figure import Figure

from cca_ray.config import ConfigError
from cca_ray.console import run
from cca_ray.page import shown, write_report
from cca_ray.results import read_study
from cca_ray.sampler import image_grid
from cca_ray.tracking import Tracker

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


def table(sizes: list[dict[str, Any]]) -> str:
    """FID by size, as a Markdown table that also reads well on a terminal; ± is the spread of one block of noise."""
    columns = dict(COLUMNS)
    if not all("fid_cca_guided" in size for size in sizes):
        del columns["CCA and guidance"]
    rows = [[form.format(**size, minutes=size["seconds"] / 60) for form in columns.values()] for size in sizes]
    cells = [list(columns), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in rows)])


def verdict(size: dict[str, Any]) -> str:
    """The outcome in one sentence."""
    guided, control = size["fid_cca"] / size["fid_guided"], size["fid_cca"] / size["fid_control"]
    return (
        f"{size['size']}: FID {size['fid_cca']:.2f} after CCA, without guidance: "
        f"{guided:.2f} × the guided base, at half its cost, and {control:.2f} × the control"
    )


def write_summary(folder: Path, sizes: list[dict[str, Any]]) -> Path:
    """Write the rows of these sizes; rows of other sizes that the file has already stay."""
    path = folder / "summary.json"
    before = json.loads(path.read_text())["sizes"] if path.exists() else []
    made = {size["size"]: size for size in sizes}
    sizes = [made.pop(size["size"], size) for size in before] + list(made.values())
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps({"sizes": sizes}, indent=1))
    partial.replace(path)
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
        for size in sizes:
            for path in (page, *sorted((page.parent / size["size"]).glob("*.png"))):
                trackers[size["experiment"]].file(size["mlflow_key"], path, "report")
    except Exception as error:
        say(f"no report ({type(error).__name__}: {error}); python -m cca_ray.report {folder.name} tries again")
        return None
    return page


def main(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Studies, by name.")],
    storage: Annotated[Path, typer.Option(help="Folder that the studies lie in.")] = Path("runs"),
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report; by default `report` in that of the first study.")
    ] = None,
) -> None:
    """Make the report of a study, finished or not, or of several side by side."""
    if len(set(names)) < len(names):
        raise ConfigError(f"a study is named twice: {' '.join(names)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    studies = [read_study(storage, name) for name in names]
    folder = out or storage / names[0] / "-with-".join(["report", *names[1:]])
    print(shown(write_report(studies, folder)))


if __name__ == "__main__":
    run(main)
