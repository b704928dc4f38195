"""The command `cca-ray`: all verbs under one name. Each is imported only when it is run, for that takes seconds."""

import sys
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from cca_ray import __version__
from cca_ray.terminal.console import PROGRAM, command, run_command

VERBS = {
    "tune": "Search λ and learning rate for CCA, size after size.",
    "plan": "Say what a study would take: trials, hours by card, wall time, disk space, money.",
    "status": "Show how a study is doing, or how it ended; without a name, list all studies of the storage.",
    "report": "Make the report of a study, finished or not, or of several side by side.",
    "clean": "Delete what no later run of a study needs; first show it.",
    "train": "Fine-tune once and score at the rungs.",
    "sample": "Sample images from a checkpoint.",
    "evaluate": "Score a checkpoint or an .npz of images.",
    "pretrain": "Make a small base from images, and a search space that uses it.",
    "prepare": "Make a token set, reference statistics, or both, from images.",
}


class Verbs(TyperGroup):
    """Lists the verbs by name alone; imports the one that is asked for."""

    def resolve_command(self, context: Any, arguments: list[str]) -> tuple[str | None, Any, list[str]]:
        name, found, rest = super().resolve_command(context, arguments)
        return name, command(import_module(f"cca_ray.{name}").main, name) if found else None, rest


def tell_version(wanted: bool) -> None:
    """Print the version, and end."""
    if wanted:
        print(f"cca_ray {__version__}")
        raise typer.Exit


def group() -> Any:
    """All verbs as typer's command."""
    app = typer.Typer(cls=Verbs)

    @app.callback()
    def cca_ray(
        version: Annotated[
            bool, typer.Option("--version", callback=tell_version, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """Find the hyperparameters of Condition Contrastive Alignment for autoregressive image generators.

        Without anything of yours, `cca-ray tune` shows it on small images: it takes minutes on a CPU.
        """

    for name, help_ in VERBS.items():
        app.command(name, help=help_)(lambda: None)
    return typer.main.get_command(app)


def main() -> None:
    """See `console.run`."""
    run_command(group(), sys.argv[1:] or ["--help"], PROGRAM)
