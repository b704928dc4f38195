"""The state of studies that run elsewhere, were stopped, or have ended. Their folders are only read.

cca-ray status                       all studies of a storage, in a line each
cca-ray status digits
cca-ray status digits --watch 5      until it ends
cca-ray status digits --json         for a script
"""

import socket
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated, NamedTuple

import optuna
import typer
from pydantic import Field
from rich.console import Console as RichConsole
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from cca_ray.contracts import Contract, SizeSummary
from cca_ray.errors import ConfigError, first_line
from cca_ray.reporting.asked import Asked
from cca_ray.reporting.results import SizeResults, StudyResults, TrialRow, read_study, studies_in
from cca_ray.reporting.text import closing, interim, progress
from cca_ray.search.records import ENDED_NAMES, readable
from cca_ray.storage.lease import LEASE, cache_id, holder_of
from cca_ray.storage.lock import holder
from cca_ray.storage.mirror import exists, folders, pull
from cca_ray.storage.uris import command_line, database_uri, is_copy, to_uri
from cca_ray.terminal.console import StorageOption, complete_study, run
from cca_ray.terminal.live_view import last_lines, size_view
from cca_ray.terminal.log_file import LOG_FILE
from cca_ray.terminal.snapshot import STATUS, AtWork, DriverStatus, read_driver_status
from cca_ray.tracking.moving import left_behind
from cca_ray.verdict import MARKS, WORDS, worst

FRESH_S = 30.0  # how old a sign of life may be of a driver whose lock is not seen here
RUNNING, STOPPED, FINISHED, BEGINS = "running", "stopped", "finished", "not begun"


class StoredTrial(Contract):
    """A trial that has not ended, as the storage has it. `values`: by metric, at the last rung that it passed."""

    arm: str
    number: int
    params: dict[str, int | float]
    step: int
    values: dict[str, float]


class BestTrial(Contract):
    """Of a size; its scores at its last rung."""

    trial: int
    params: dict[str, int | float]
    values: dict[str, float]


class SizeStatus(Contract):
    """How a size stands. What is not known of it is left out of the JSON."""

    size: str
    state: str
    trials: dict[str, dict[str, int]] = Field(default_factory=dict)  # how many, by arm and state
    phase: str = ""  # this and the next two: as the driver tells
    planned: int = 0
    seconds_left: float | None = None
    running: tuple[AtWork | StoredTrial, ...] = ()
    best: BestTrial | None = None
    failed: str = ""  # what ended it, while the study goes on with others
    verdict: str = ""  # of a finished one, as the next
    outcome: SizeSummary | None = None


class StudyStatus(Contract):
    """How a study stands at a moment."""

    study: str
    folder: str
    state: str
    process: str
    mlflow: str
    sizes: tuple[SizeStatus, ...]
    where: dict[str, str]


class Seen(NamedTuple):
    """A study at a moment: all that is known as plain values, and what they were made of."""

    content: StudyStatus
    study: StudyResults
    told: DriverStatus | None


def driver_of(folder: Path) -> tuple[str, DriverStatus | None]:
    """Which process runs the study, as `PID on HOST`, and what it tells of itself; nothing if none does.

    The lock says so, where it can be seen. Elsewhere a fresh sign of life does. A file that a killed driver has left is
    none.
    """
    pull(folder / STATUS)
    held, told = holder(folder), read_driver_status(folder)
    if held:
        return held, told if told and held.startswith(f"{told.process} on") else None
    alive = told is not None and time.time() - told.at < FRESH_S and lock_is_elsewhere(folder, told)
    return (f"{told.process} on {told.host}", told) if told and alive else ("", None)


def lock_is_elsewhere(folder: Path, told: DriverStatus) -> bool:
    """Whether the driver that tells this would have a lock that is not seen here.

    Of a folder at a URI it lies in the driver's cache, which others of its own machine may not share.
    """
    if not is_copy(folder):
        return told.host != socket.gethostname()
    driver = holder_of(folder / LEASE)
    return driver is not None and driver.cache != cache_id()


def stored(trial: TrialRow) -> StoredTrial:
    last = trial.rungs[-1] if trial.rungs else None
    return StoredTrial(
        arm=trial.arm,
        number=trial.number,
        params=trial.params,
        step=last.step if last else 0,
        values=last.values if last else {},
    )


def status_of_size(size: SizeResults, state: str, told: DriverStatus | None) -> SizeStatus:
    counts = {arm: dict(Counter(t.state for t in size.of(arm))) for arm in dict.fromkeys(t.arm for t in size.trials)}
    status = SizeStatus(size=size.name, state=state, trials=counts)
    if told and size.name in told.failed:
        status = status.model_copy(update={"failed": told.failed[size.name]})
    if told and (snapshot := told.of(size.name)):
        now = time.time()
        at_work = tuple(t.model_copy(update={"seconds_left": t.left(now)}) for t in snapshot.at_work)
        left = snapshot.left(now)
        changes = {"phase": snapshot.phase, "planned": snapshot.planned, "seconds_left": left, "running": at_work}
        status = status.model_copy(update=changes)
    elif state != FINISHED:
        running = tuple(stored(trial) for trial in size.trials if trial.state == "RUNNING")
        status = status.model_copy(update={"running": running})
    if best := size.best:
        of_best = BestTrial(trial=best.number, params=best.params, values=best.rungs[-1].values)
        status = status.model_copy(update={"best": of_best})
    if state == FINISHED and size.summary:
        status = status.model_copy(update={"verdict": closing(size.summary), "outcome": size.summary})
    return status


def where_to_look(folder: Path, told: DriverStatus | None) -> dict[str, str]:
    folder = folder.resolve()
    found = {"summary": "summary.json", "report": "report/report.html", "log": LOG_FILE}
    where = {what: to_uri(folder / path) for what, path in found.items() if exists(folder / path)}
    if told and told.browse:
        where["browse"] = told.browse
    elif (database := folder.parent / "mlflow.db").exists():
        where["browse"] = command_line("mlflow", "server", "--backend-store-uri", database_uri(database))
    return {**where, "trials": command_line("optuna-dashboard", database_uri(folder / "study.db"))}


def state_of(size: SizeResults, process: str, told: DriverStatus | None) -> str:
    """Of a size that has begun. `process`: that runs the study, if any; it may do without this size."""
    if size.finished and not (told and told.of(size.name)):
        return FINISHED
    runs = bool(process) and (told is None or (size.name in told.sizes and size.name not in told.failed))
    return RUNNING if runs else STOPPED


def look(storage: Path, name: str) -> Seen:
    """ValueError if there is no such study."""
    folder = storage / name
    process, told = driver_of(folder)
    try:
        study = read_study(storage, name)
    except ValueError:
        if not process:
            raise
        study = StudyResults(name, folder, ())  # it is only beginning
    sizes = [status_of_size(size, state_of(size, process, told), told) for size in study.sizes]
    begin = replace(study, asked=Asked(sizes=told.sizes)).not_begun if told else study.not_begun
    sizes += [SizeStatus(size=size, state=BEGINS) for size in begin]
    finished = bool(sizes) and all(size.state == FINISHED for size in sizes)
    content = StudyStatus(
        study=name,
        folder=to_uri(folder),
        state=RUNNING if process else FINISHED if finished else STOPPED,
        process=process,
        mlflow=told.mlflow if told else left_behind(storage),
        sizes=tuple(sizes),
        where=where_to_look(folder, told),
    )
    return Seen(content, study, told)


def drawn(seen: Seen) -> RenderableType:
    """For people."""
    content, study, told = seen
    by = f", by process {content.process}" if content.process else ""
    parts: list[RenderableType] = [Text.assemble((content.study, "bold"), f": {content.state}{by}")]
    results = {size.name: size for size in study.sizes}
    for size in content.sizes:
        parts.append(Text())
        if told and (snapshot := told.of(size.size)):
            parts += size_view(told, snapshot, time.time())
        elif size.state == FINISHED:
            parts.append(Text(size.verdict))
        elif size.state == BEGINS:
            parts.append(Text(f"{size.size}: {BEGINS}", "dim"))
        else:
            parts += waiting(results[size.size], size.state)
            parts += [Text(f"  failed: {size.failed}", "red")] * bool(size.failed)
    if told and (shared := last_lines(told)):
        parts += [Text(), *shared]
    if content.state == STOPPED:
        parts += [Text(), Text("The same `tune` command continues it.")]
    if content.mlflow and not told:
        parts += [Text(), Text(content.mlflow, "yellow")]
    column = max(map(len, content.where))
    lines = [f"{what:{column}}  {path}" for what, path in content.where.items()]
    return Group(*parts, Text("\n" + "\n".join(lines)))


class Listed(Contract):
    """All studies of a storage. `unreadable`: by name, why."""

    storage: str
    studies: tuple[StudyStatus, ...]
    unreadable: dict[str, str] = Field(default_factory=dict)


def list_studies(storage: Path) -> Listed:
    """ValueError if there is no such storage."""
    found, unreadable = list[StudyStatus](), dict[str, str]()
    begun = studies_in(storage)
    others = [path for path in folders(storage) if path.name not in begun]
    beginning = [path.name for path in others if exists(path / STATUS) and driver_of(path)[0]]
    for name in sorted([*begun, *beginning]):
        try:
            found.append(look(storage, name).content)
        except ValueError as error:
            unreadable[name] = first_line(error)
    return Listed(storage=to_uri(storage), studies=tuple(found), unreadable=unreadable)


def in_a_line(size: SizeStatus) -> str:
    """`digits_s ✓ better`, `digits_m running, 5 search trials ended`."""
    if size.outcome:
        return f"{size.size} {MARKS[worst(size.outcome)]} {WORDS[worst(size.outcome)]}"
    search = size.trials.get("search", {})
    ended = sum(search.get(state, 0) for state in ENDED_NAMES)
    return f"{size.size} {size.state}" + f", {ended} search trials ended" * bool(search)


def table_of(listed: Listed) -> RenderableType:
    """A row a study. Each size is marked by the less good of its two comparisons: with guidance, and with control."""
    if not listed.studies and not listed.unreadable:
        return Text(f"{listed.storage}: no studies yet; `cca-ray tune` begins one")
    rows = [(study.study, study.state, "; ".join(map(in_a_line, study.sizes))) for study in listed.studies]
    rows += [(name, "unreadable", why) for name, why in listed.unreadable.items()]
    column = max(len(name) for name, *_ in rows)
    return Text("\n".join(f"{name:{column}}  {state:10}  {told}" for name, state, told in rows))


def waiting(size: SizeResults, state: str) -> list[RenderableType]:
    """A size that has not finished, and of which no driver tells."""
    lines: list[RenderableType] = [Text(f"{size.name}: {state}; {progress(size)}. {interim(size)}")]
    for trial in (trial for trial in size.trials if trial.state == "RUNNING"):
        score = ""
        if trial.rungs:
            score = f", {size.metric.label} {trial.last(size.metric):.2f} at step {trial.rungs[-1].step}"
        lines.append(Text(f"  {trial.arm} #{trial.number}  {readable(trial.params)}{score}"))
    return lines


def main(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]", help="Name of the study.", show_default="list all studies", autocompletion=complete_study
        ),
    ] = "",
    storage: StorageOption = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    watch: Annotated[
        float | None, typer.Option(min=0.5, help="Update every so many seconds until the study ends.")
    ] = None,
) -> None:
    """Show how a study is doing, or how it ended; without a name, list all studies of the storage."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    console = RichConsole(highlight=False)
    if not name:
        if watch:
            raise ConfigError("--watch needs the NAME of a study")
        listed = list_studies(storage)
        if as_json:
            print(listed.model_dump_json(indent=1, exclude_unset=True))
        else:
            console.print(table_of(listed), soft_wrap=not console.is_terminal)
        return
    seen = look(storage, name)
    lively = watch and console.is_terminal and not as_json
    with Live(console=console, auto_refresh=False) if lively else nullcontext() as live:
        while True:
            if live:
                live.update(drawn(seen), refresh=True)
            elif as_json:
                print(seen.content.model_dump_json(indent=None if watch else 1, exclude_unset=True), flush=True)
            else:
                console.print(drawn(seen), soft_wrap=not console.is_terminal)
            if not watch or seen.content.state != RUNNING:
                return
            time.sleep(watch)
            seen = look(storage, name)


if __name__ == "__main__":
    run(main)
