"""What all verbs share: lines and progress on the terminal, help with examples, errors of one line, exit code 2.

It is light on imports, for `cca-ray --help` and shell completion.
"""

import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn, TextIO, cast

import typer
from rich.console import Console as RichConsole
from rich.console import RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

from cca_ray.config import MOST_GUIDANCE
from cca_ray.errors import COLOURS, ConfigError, RayEnded, user_message, without_secrets
from cca_ray.inputs import SPACES
from cca_ray.storage.uris import local_path, naming_uris, refuse_empty
from cca_ray.terminal.pace import Pace
from cca_ray.terminal.patience import Patience
from cca_ray.terminal.stream import lenient, lenient_output

STORAGE_VARIABLE = "CCA_RAY_STORAGE"  # of the environment: the storage where no --storage is given
INTERRUPTED = 130  # the exit code of a program that was stopped by Ctrl-C
PROGRAM = "cca-ray"
LOG = logging.getLogger(__name__)


def place(where: str | Path) -> Path:
    """An option that takes a path or a URI; the local path."""
    try:
        refuse_empty(where)
        return local_path(where)
    except ConfigError as error:
        raise typer.BadParameter(str(error)) from None


def complete_space(incomplete: str) -> list[str]:
    """Names of shipped search spaces, for the shell."""
    return sorted(path.stem for path in SPACES.glob("*.yaml") if path.stem.startswith(incomplete))


def complete_study(incomplete: str) -> list[str]:
    """Names of studies in the default storage, for the shell."""
    storage = Path(os.environ.get(STORAGE_VARIABLE, "runs")).expanduser()
    return sorted(path.parent.name for path in storage.glob(f"{incomplete}*/study.db"))


def guidance(text: str | float) -> float:
    """An option's guidance scale: a number from 0 to `MOST_GUIDANCE`."""
    try:
        scale = float(text)
    except ValueError:
        scale = math.nan
    if not 0 <= scale <= MOST_GUIDANCE:
        raise typer.BadParameter(f"{text}: expected a number from 0 to {MOST_GUIDANCE:g}")
    return scale


# What several verbs take.
StorageOption = Annotated[
    Path,
    typer.Option(
        envvar=STORAGE_VARIABLE,
        parser=place,
        metavar="PATH",
        help="Where studies and bases are kept: a folder or a URI.",
    ),
]
GuidanceOption = Annotated[
    float, typer.Option(parser=guidance, metavar="FLOAT", help="Guidance scale; 1 means no guidance.")
]
SpaceArgument = Annotated[
    str, typer.Argument(help="A search-space file, or the name of a shipped one.", autocompletion=complete_space)
]
CheckpointOption = Annotated[
    Path | None, typer.Option(parser=place, metavar="PATH", help="Weights to use.", show_default="those of the base")
]


class Console:
    """Lines with the time since the start; progress as a bar on a terminal, as a line now and then elsewhere.

    What is said also goes to Python's logging. `quiet`: nowhere else.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.stream, self.quiet = cast(TextIO, lenient(stream or sys.stdout)), quiet
        self.rich = RichConsole(file=self.stream, highlight=False)
        self.terminal = self.stream.isatty() and not self.rich.is_dumb_terminal and not quiet
        self.started = time.monotonic()
        self.bars: Progress | None = None
        self.live: Live | None = None
        self.tasks: dict[str, TaskID] = {}
        self.paces: dict[str, Pace] = {}
        self.noted = ""
        self.patience: Patience | None = None
        self.said = self.started  # the last line
        self.crowded = False  # what is kept below has taken the place of bars: progress is lines until `clear`
        self.lock = threading.RLock()  # MLflow's thread speaks too, and sizes that run side by side

    def say(self, text: str) -> None:
        text = without_secrets(text)
        LOG.info("%s", text)
        if self.quiet:
            return
        with self.lock:
            self.said = time.monotonic()
            self.close_bars()
            line = f"{time.monotonic() - self.started:5.0f} s  {text}"
            if self.live is not None:
                self.rich.print(Text(line), soft_wrap=True)
            else:
                print(line, file=self.stream, flush=True)

    def progress(self, what: str, done: int, total: int) -> None:
        """`done` of `total` steps of `what`."""
        if self.quiet:
            return
        with self.lock:
            if self.terminal and not self.crowded:
                self.draw_bar(what, done, total)
                return
            now = time.monotonic()
            pace = self.paces.setdefault(what, Pace(now, done))
            if pace.due(now, done, total):
                parts = (f"{what}  {100 * done // total} %", self.noted, pace.left(now, done, total))
                self.say(", ".join(filter(None, parts)))

    def draw_bar(self, what: str, done: int, total: int) -> None:
        if self.bars is None:
            self.clear()
            self.bars = Progress(
                TextColumn("        {task.description:16}", table_column=Column(min_width=24, no_wrap=True)),
                BarColumn(),
                TextColumn("{task.percentage:3.0f} %", table_column=Column(min_width=5, no_wrap=True)),
                TimeRemainingColumn(table_column=Column(min_width=7, no_wrap=True)),
                TextColumn("{task.fields[note]}", table_column=Column(no_wrap=True, overflow="ellipsis")),
                console=self.rich,
            )
            self.bars.start()
        if what not in self.tasks:
            self.tasks[what] = self.bars.add_task(what, total=total, note="")
        self.bars.update(self.tasks[what], completed=done, total=total, note=self.noted)

    def note(self, text: str) -> None:
        """What is said beside progress from now on; empty: nothing."""
        self.noted = text

    def close_bars(self) -> None:
        """Leave the bars as they are, so that lines can follow."""
        if self.bars is not None:
            self.bars.stop()
            self.bars, self.tasks = None, {}

    def keep_below(self, draw: Callable[[], RenderableType], doing: Callable[[], tuple[str, str]]) -> None:
        """On a terminal: keep this, drawn anew twice a second, below all lines, until `clear`.

        Elsewhere, what is being done, as a phase and a line, is said when nothing else has been for a while.
        """
        with self.lock:
            if not self.terminal and not self.quiet and self.patience is None:
                self.patience = Patience(doing, lambda: self.said, self.say)
            if self.terminal and self.live is None:
                self.crowded = self.bars is not None
                self.close_bars()
                self.live = Live(get_renderable=draw, console=self.rich, refresh_per_second=2, transient=True)
                self.live.start()
                self.rich.show_cursor(True)  # who ends at once, at a second Ctrl-C, would leave it hidden

    def waiting(self, what: str) -> None:
        """Show what is being done, and for how long, until `clear`."""
        since = time.monotonic()

        def told() -> str:
            return f"{what}, {time.monotonic() - since:.0f} s"

        self.keep_below(lambda: Text(f"        {told()}", "dim"), lambda: (what, f"still {told()}"))

    @contextmanager
    def during(self, what: str) -> Iterator[None]:
        """Show this, and for how long, as long as it lasts, also where it fails."""
        self.waiting(what)
        try:
            yield
        finally:
            self.clear()

    def clear(self) -> None:
        """Take away what is kept below the lines."""
        with self.lock:
            live, self.live, self.crowded = self.live, None, False
            if self.patience is not None:
                self.patience.end()
                self.patience = None
        if live is not None:  # outside of the lock, which the thread that draws may want
            live.stop()


def fail(message: str, notes: list[str] | None = None) -> NoReturn:
    """One line on stderr, exit code 2. `notes`: where to read more."""
    more = "".join(f" ({note})" for note in notes or [])
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(message.split()))
    print(without_secrets(f"error: {line}{more}"), file=sys.stderr)
    sys.exit(2)


def examples(main: Callable[..., Any]) -> list[tuple[str, str]]:
    """The commands that the docstring of a verb's module shows, each with what it is for, if that is said."""
    lines = (main.__globals__["__doc__"] or "").splitlines()
    found = [re.split(r"\s{2,}", line.strip(), maxsplit=1) for line in lines if line.strip().startswith(PROGRAM)]
    return [(line[0], line[1] if len(line) > 1 else "") for line in found]


def command(main: Callable[..., Any], name: str | None = None) -> Any:
    """The verb as typer's command, its help ending in examples."""
    app = typer.Typer(add_completion=False)
    shown = [f"  {escape(line)}" + f"\n      [dim]{escape(what)}[/dim]" * bool(what) for line, what in examples(main)]
    app.command(name, epilog="\n".join(["Examples:", *shown]) if shown else None)(main)
    return typer.main.get_command(app)


def run(main: Callable[..., Any]) -> None:
    """Run a verb. A mistake of the user's is one line on stderr and exit code 2; a fault of ours is a traceback."""
    run_command(command(main))


def run_command(command: Any, arguments: list[str] | None = None, program: str | None = None) -> None:
    """See `run`. `arguments`: by default those of this process.

    A terminal that is gone ends nothing; but if what was written is lost, as on a full disk, the exit code is 1.
    """
    with lenient_output() as (out, _):
        try:
            code = command.main(arguments, prog_name=program, standalone_mode=False)
        except typer.Abort:  # Ctrl-C or Ctrl-D at a question: who asks says what became of it
            sys.exit(INTERRUPTED)
        except Exception as error:
            message = error.format_message() if isinstance(error, typer.TyperException) else user_message(error)
            if message is None:  # a fault of ours
                print(without_secrets(COLOURS.sub("", traceback.format_exc())), end="", file=sys.stderr)
                sys.exit(1)
            try:
                fail(naming_uris(message), getattr(error, "__notes__", None))
            finally:
                if isinstance(error, RayEnded):  # Ray's own end would wait for it
                    out.flush()
                    os._exit(2)
        if code == INTERRUPTED:
            print("interrupted; run the same command again to continue", file=sys.stderr)
        out.flush()
        if out.failed:
            print(f"error: output to stdout was lost: {out.lost}", file=sys.stderr)
            code = code or 1
    sys.exit(code or 0)
