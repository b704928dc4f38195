"""A study, finished or not -> a report: an HTML page, its figures and tables. Also the summary that a study ends with.

cca-ray report digits                    runs/digits/report/report.html
cca-ray report digits digits-seed1       both side by side
cca-ray report digits --out ~/report     into another folder
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import optuna
import typer
from sqlalchemy.exc import SQLAlchemyError

from cca_ray.errors import ConfigError, first_line
from cca_ray.reporting.page import shown, write_report
from cca_ray.reporting.results import read_study
from cca_ray.storage.mirror import push
from cca_ray.terminal.console import StorageOption, complete_study, place, run
from cca_ray.tracking.moving import follow, left_behind


def make_report(storage: Path, names: Sequence[str], out: Path | None = None) -> Path:
    """The page."""
    studies = [read_study(storage, name) for name in names]
    folder = out or storage / names[0] / "-with-".join(["report", *names[1:]])
    page = write_report(studies, folder)
    push(folder)
    return page


def update_mlflow(storage: Path) -> bool:
    """Let the records of an MLflow that has moved with its storage follow it; says so on stderr. False if they can not.

    They are then as they were, as where the database is read-only, or another program writes to it.
    """
    if not left_behind(storage):
        return True
    database, artifacts = storage.resolve() / "mlflow.db", storage.resolve() / "mlartifacts"
    try:
        lines = follow(database, artifacts)
    except SQLAlchemyError as error:
        why = first_line(getattr(error, "orig", None) or error)
        told = f"the storage has moved, but MLflow's records in {database} could not be updated: {why}"
        print(f"error: {told}; once that is mended, `cca-ray report` updates them", file=sys.stderr)
        return False
    for line in lines:
        print(line, file=sys.stderr)
    return True


def main(
    names: Annotated[
        list[str], typer.Argument(metavar="NAME...", help="Names of the studies.", autocompletion=complete_study)
    ],
    storage: StorageOption = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place,
            metavar="PATH",
            help="Folder for the report.",
            show_default="report in the folder of the first study",
        ),
    ] = None,
) -> None:
    """Make the report of a study, finished or not, or of several side by side."""
    if len(set(names)) < len(names):
        raise ConfigError(f"a study is named twice: {' '.join(names)}")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print(shown(make_report(storage, names, out)))
    if not update_mlflow(storage):
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
