"""Search λ and learning rate for CCA, size after size.

cca-ray tune                                                  two sizes of LlamaGen and a VAR on digits
cca-ray tune --name short --trials 6 --minutes 10             a short one
cca-ray tune my_s.yaml my_m.yaml                              your own search spaces
cca-ray tune llamagen_b --gpu-hours 100 --replicates 2        on a cluster, within a budget
cca-ray tune llamagen_b llamagen_xl var_d16 --side-by-side    on a large cluster
cca-ray tune --set train.beta=0.05 --dry-run                  every setting of a study, before it runs
cca-ray tune --quiet --json > outcome.json                    for a script

The same command continues a study that was stopped, however it was stopped.
"""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer
import yaml

from cca_ray.cluster.address import named_cluster
from cca_ray.cluster.placement import check_cuts
from cca_ray.cluster.queue import begin_in_queue, nodes_now
from cca_ray.cluster.ray_compat import IN_A_JOB
from cca_ray.cluster.session import remove_leaked_groups
from cca_ray.cluster.stopping import Stop, end_process, heeding_signals, interrupt
from cca_ray.config import MOST_SEED, StudyConfig
from cca_ray.contracts import SizeSummary
from cca_ray.errors import ConfigError, Incomplete, first_line, without_secrets
from cca_ray.inputs import DEFAULT_SPACES, file_of, find_space, name_anywhere
from cca_ray.opened import Study as OpenStudy
from cca_ray.registry import FAMILIES
from cca_ray.reporting.asked import Named, write_asked
from cca_ray.reporting.lessons import check_lessons
from cca_ray.reporting.outcome import Found, Told, failed_replicates, show_end, where_to_look
from cca_ray.reporting.plan import plan_of
from cca_ray.reporting.summary import report_at_end
from cca_ray.reporting.text import closing
from cca_ray.search.mlflow_pages import experiment_of, link_to_trials
from cca_ray.space_file import as_settings, fault_of_name, load_config
from cca_ray.storage.lease import leased
from cca_ray.storage.lock import alone
from cca_ray.storage.mirror import exists, reach
from cca_ray.storage.uris import database_uri, to_uri
from cca_ray.study import Budget, Sizes, Study
from cca_ray.terminal.calling import callable_module, in_python
from cca_ray.terminal.console import INTERRUPTED, Console, StorageOption, complete_space, run
from cca_ray.terminal.log_file import LOG_FILE, logging_to
from cca_ray.terminal.notify import news_of
from cca_ray.terminal.notify import notify as tell
from cca_ray.terminal.ray_session import nodes_to_plan_for, ray_session
from cca_ray.terminal.snapshot import DriverStatus
from cca_ray.terminal.stream import native_stderr_to
from cca_ray.terminal.window import Window
from cca_ray.tracking.store import without_strays
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.small_base import check_files

CLOSE_S = 10.0  # how long the end waits for an MLflow that does not answer
LOST_S = 8.0  # how long trials have to end when Ray has: who waits for Ray by then would wait in vain
SpacesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        help="Search-space files, or names of shipped ones.",
        show_default="digits_s digits_m digits_var",
        autocompletion=complete_space,
    ),
]
TrackingOption = Annotated[
    str,
    typer.Option(
        envvar="MLFLOW_TRACKING_URI", help="MLflow server or database.", show_default="an SQLite file in the storage"
    ),
]


def load_spaces(spaces: list[str], settings: list[str]) -> list[StudyConfig]:
    """The studies, small sizes of a family before large ones: what the small ones find is tried first by the next."""
    configs = read_spaces(spaces, settings)
    for config in configs:
        check_files(config)
    return configs


def read_spaces(spaces: list[str], settings: list[str]) -> list[StudyConfig]:
    """The same, whether or not their files are there."""
    configs = [load_config(find_space(space), settings) for space in spaces or DEFAULT_SPACES]
    names = [config.name for config in configs]
    if len(set(names)) < len(names):
        raise ConfigError(f"two search spaces have the same name: {', '.join(names)}")
    for config in configs:
        check_cuts(config.placement, config.train.global_batch)
    families = list(dict.fromkeys(config.base.family for config in configs))
    sizes = {family: list(FAMILIES.get(family).sizes) for family in families}
    return sorted(configs, key=lambda c: (families.index(c.base.family), sizes[c.base.family].index(c.base.size)))


def names_of(configs: list[StudyConfig], spaces: list[str], settings: Sequence[str]) -> dict[str, Named]:
    """How a command named these, for the commands that go on from it. What it sets for the search alone is left out."""
    kept = tuple(setting for setting in settings if not setting.startswith("search."))
    words = {file_of(word).stem: name_anywhere(word) for word in spaces or DEFAULT_SPACES}
    return {config.name: Named(space=words[config.name], settings=kept) for config in configs}


def show(configs: list[StudyConfig], plan: Sequence[str]) -> None:
    """The studies as they would run, every default filled in, as YAML; then what they take, as its comments."""
    print(yaml.safe_dump_all([c.model_dump(mode="json", by_alias=True) for c in configs], sort_keys=False))
    print(*(f"# {line}" for line in plan), sep="\n")


def fresh_name(name: str, storage: Path) -> str:
    """The first of NAME, NAME-2, NAME-3, ... that no study has."""
    number = 1
    while exists(storage / (candidate := name if number == 1 else f"{name}-{number}")):
        number += 1
    return candidate


def free_what_died(folder: Path, configs: Sequence[StudyConfig], say: Callable[[str], None]) -> None:
    """What dead studies had reserved, and this one's earlier driver, on a cluster that is here after us."""
    if named_cluster() is not None:
        remove_leaked_groups(say)
    if any(config.placement.accelerators for config in configs):
        begin_in_queue(folder / "trials")


def search(
    folder: Path, uri: str, configs: list[StudyConfig], budget: Budget, side_by_side: bool, console: Console,
    again: Callable[[int], None] = end_process,
) -> Found:  # fmt: skip
    """Run the study in this folder. `uri`: of MLflow. `again`: see `heeding_signals`."""
    name, storage, log, sizes = folder.name, folder.parent, folder / LOG_FILE, list[SizeSummary]()
    trackers: dict[str, Tracker] = {}
    driver = DriverStatus.of_this_process(name, tuple(config.name for config in configs), log)
    window = Window(console, folder, driver, lambda: "; ".join(filter(None, (t.trouble for t in trackers.values()))))
    with (
        logging_to(log),
        native_stderr_to(log),  # also when Ray has ended, and this process not yet
        window,
        without_strays(uri),
    ):
        console.say(f"opening MLflow at {uri}")
        console.waiting("opening MLflow")
        try:
            for experiment in dict.fromkeys(map(experiment_of, configs)):
                journal = folder / f"{experiment.replace(' ', '-').replace('cca_ray', 'mlflow')}.journal"
                trackers[experiment] = Tracker(uri, experiment, storage / "mlartifacts", journal, console.say)
            browse = next(iter(trackers.values())).browse
            window.tell(browse=browse)
            console.clear()
            console.say("starting Ray")
            console.waiting("starting Ray")
            stop = Stop()
            with ray_session(lambda: stop.ask(LOST_S), log, logging.INFO), heeding_signals(stop, again):
                console.clear()
                console.waiting("planning")
                free_what_died(folder, configs, console.say)
                for line in plan_of(configs, storage, name, nodes_now(), budget.minutes, budget.device_hours):
                    console.say(line)
                console.clear()
                study = Study(name, folder, trackers, console, window)
                sizes = Sizes(study, configs, budget, side_by_side, stop).run()
            console.waiting("making the report")
            report, no_report = report_at_end(folder, sizes, trackers)
            console.clear()
            console.waiting("sending the rest to MLflow")
        finally:
            for tracker in trackers.values():  # who was asked to stop does not wait for MLflow
                ended = len(sizes) == len(configs)
                tracker.close(CLOSE_S if ended else 1.0, patient=ended)
    left = "; ".join(filter(None, (t.left for t in trackers.values())))
    known = [tracker for tracker in trackers.values() if tracker.experiment_id]
    tables = {
        f"{what} {i + 1}" if len(known) > 1 else what: link_to_trials(tracker, name, charts=what == "charts")
        for i, tracker in enumerate(known)
        for what in ("table", "charts")
    }
    return Found(folder, sizes, report, browse, no_report, left, tables, failed_replicates(sizes, configs))


def how_to_continue(folder: Path, fresh: bool) -> str:
    """What to say beside "the same command": with --fresh, that would begin yet another study."""
    return f"with --name {folder.name} instead of --fresh" if fresh else ""


@contextmanager
def noting(how: str) -> Iterator[None]:
    """What ends the study meanwhile takes along a note of how it is continued, if not by the same command."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        if how:
            error.add_note(f"continue it {how}")
        raise


@contextmanager
def telling_trouble(command: str, folder: Path, how: str) -> Iterator[None]:
    """Meanwhile tell the user's command of what ends the study before its end. `how`: see `how_to_continue`."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        event = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        said = (
            without_secrets(first_line(error)) if event == "failed" else f"the same command continues it {how}".strip()
        )
        with suppress(Exception):  # whatever becomes of the news, this is what the caller is to hear
            if trouble := tell(command, news_of(folder.name, to_uri(folder), [], [said], event)):
                print(f"error: {trouble}", file=sys.stderr)
        raise


def settings_of(given: Mapping[str, int | None], seed: int | None) -> list[str]:
    """What options say of the search, and the seeds, as `--set` would say it."""
    settings = [f"search.{key}={value}" for key, value in given.items() if value is not None]
    if seed is None:
        return settings
    # Far apart, so that the noise of one study (seed, seed + 1, ...) is never that of another.
    return [*settings, f"search.seed={seed}", f"train.seed={seed}", f"score.seed={1000 * seed}"]


def default_name(configs: Sequence[StudyConfig], chosen: bool, seed: int | None) -> str:
    """Of a study; `chosen`: whether its search spaces were given."""
    name = "-".join(config.name for config in configs) if chosen else "digits"
    return name + (f"-seed{seed}" if seed else "")


def folder_of(storage: Path, name: str, fresh: bool, configs: Sequence[StudyConfig] = ()) -> Path:
    """The study's folder, made if it is not there.

    ConfigError if the name or the storage does not do, or if these sizes cannot learn what they should.
    """
    if fault := fault_of_name(name):
        raise ConfigError(f"--name {name}: {fault}")
    if IN_A_JOB in os.environ and not storage.is_absolute():
        raise ConfigError(
            f"--storage {storage}: Ray deletes a job's own folder; give the full path of one that all nodes can see"
        )
    storage = storage.resolve()  # trials run in directories of their own
    reach(storage, write=True)
    folder = storage / (fresh_name(name, storage) if fresh else name)
    check_lessons(configs, folder)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def run_study(
    name: str, fresh: bool, storage: Path, tracking_uri: str, configs: list[StudyConfig],
    named: Mapping[str, Named], budget: Budget, side_by_side: bool, notify: str, console: Console,
    again: Callable[[int], None] = end_process,
) -> Found:  # fmt: skip
    """Open the study's folder, and search there, as its only driver."""
    if "@" in tracking_uri and re.search(r"\s", tracking_uri) and not tracking_uri.startswith("sqlite:"):
        raise ConfigError("--tracking-uri: its password holds a space; write %20 for it")  # it could not be hidden
    folder = folder_of(storage, name, fresh, configs)
    console.say(f"study {folder.name}: {', '.join(c.name for c in configs)}; output in {to_uri(folder)}")
    uri = tracking_uri or database_uri(folder.parent / "mlflow.db")
    how = how_to_continue(folder, fresh)
    with alone(folder), leased(folder), noting(how), telling_trouble(notify, folder, how):
        write_asked(folder, named)
        return search(folder, uri, configs, budget, side_by_side, console, again)


def missing_of(found: Found, notify: str) -> list[str]:
    """What has not become what was asked for, in lines. The user's command is told of the end."""
    folder, missing = found.folder, [what for what in (found.failed, found.no_report, found.left) if what]
    trouble = tell(notify, news_of(folder.name, to_uri(folder), found.sizes, missing))
    return [*missing, trouble] if trouble else missing


@in_python
def tune(
    *spaces: str | Path,
    name: str = "",
    fresh: bool = False,
    storage: str | Path = "runs",
    tracking_uri: str = "",
    trials: int | None = None,
    minutes: float | None = None,
    gpu_hours: float | None = None,
    replicates: int | None = None,
    max_concurrent: int | None = None,
    side_by_side: bool = False,
    seed: int | None = None,
    settings: Mapping[str, object] | Sequence[str] = (),
    notify: str = "",
    quiet: bool = False,
) -> OpenStudy:
    """Search λ and learning rate for CCA, size after size; the same call continues what was stopped.

    `spaces`: search spaces, files or names of shipped ones; by default the digits'. `settings` override them, as in
    `{"train.beta": 0.05}`. `minutes`, `gpu_hours`: what the study may use. Everything else is as on the command line.
    Raises Incomplete if all sizes have ended, but a replicate failed, or MLflow or the report lacks something.
    """
    given = {"trials": trials, "replicates": replicates, "max_concurrent": max_concurrent}
    words, said = list(map(str, spaces)), [*as_settings(settings), *settings_of(given, seed)]
    configs = load_spaces(words, said)
    budget, study = Budget(minutes, gpu_hours), name or default_name(configs, bool(spaces), seed)
    found = run_study(
        study,
        fresh,
        Path(storage),
        tracking_uri,
        configs,
        names_of(configs, words, said),
        budget,
        side_by_side,
        notify,
        Console(quiet=quiet),
        interrupt,
    )
    if missing := missing_of(found, notify):
        raise Incomplete(f"{to_uri(found.folder)}: {'; '.join(missing)}")
    return OpenStudy(found.folder)


def main(
    spaces: SpacesArgument = None,
    name: Annotated[
        str,
        typer.Option(help="Name of the study; an existing one is continued.", show_default="from the search spaces"),
    ] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Start a new study, under a new name if this one exists.")
    ] = False,
    storage: StorageOption = Path("runs"),
    tracking_uri: TrackingOption = "",
    trials: Annotated[
        int | None, typer.Option(min=1, help="Number of trials per size.", show_default="search.trials")
    ] = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            min=0.01,
            help="Time budget: start no trial that would exceed it, final comparison included.",
            show_default="unlimited",
        ),
    ] = None,
    gpu_hours: Annotated[
        float | None,
        typer.Option(
            min=0.001, help="Budget of the study in GPU-hours (without GPUs: CPU-hours).", show_default="unlimited"
        ),
    ] = None,
    replicates: Annotated[
        int | None,
        typer.Option(
            min=0, help="Retrain every finalist with this many other seeds.", show_default="search.replicates"
        ),
    ] = None,
    max_concurrent: Annotated[
        int | None, typer.Option(min=1, help="Number of concurrent trials.", show_default="search.max_concurrent")
    ] = None,
    side_by_side: Annotated[
        bool, typer.Option("--side-by-side", help="Run all sizes at the same time, if the cluster has room.")
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=MOST_SEED // 1000,
            help="Seed of the search, the data order and the noise.",
            show_default="those of the search space",
        ),
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override a setting, such as train.beta=0.05; repeatable.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print every setting and the plan (trials, time, disk), then stop.")
    ] = False,
    notify: Annotated[
        str,
        typer.Option(
            envvar="CCA_RAY_NOTIFY",
            metavar="COMMAND",
            help="Shell command to run when the study ends or fails; it reads the outcome as JSON from stdin.",
        ),
    ] = "",
    quiet: Annotated[bool, typer.Option("--quiet", help="Print only errors and the final table.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the outcome as one JSON object on stdout, everything else on stderr.")
    ] = False,
) -> None:
    """Search λ and learning rate for CCA, size after size."""
    given = {"trials": trials, "replicates": replicates, "max_concurrent": max_concurrent}
    said = [*(set_ or []), *settings_of(given, seed)]
    configs = load_spaces(spaces or [], said)
    budget, study = Budget(minutes, gpu_hours), name or default_name(configs, bool(spaces), seed)
    if dry_run:
        shown = fresh_name(study, storage.resolve()) if fresh else study
        show(configs, plan_of(configs, storage.resolve(), shown, nodes_to_plan_for(), minutes, gpu_hours))
        return
    console = Console(sys.stderr if as_json else sys.stdout, quiet)
    named = names_of(configs, spaces or [], said)
    try:
        found = run_study(study, fresh, storage, tracking_uri, configs, named, budget, side_by_side, notify, console)
    except KeyboardInterrupt as error:
        if not fresh:
            raise
        print("interrupted", *getattr(error, "__notes__", ()), sep="; ", file=sys.stderr)
        sys.exit(INTERRUPTED)
    folder = found.folder
    sentences, where = tuple(closing(size) for size in found.sizes), where_to_look(found, named)
    end = Told(
        study=folder.name,
        folder=to_uri(folder),
        sizes=tuple(found.sizes),
        told=sentences,
        where=where,
        mlflow=found.left,
        no_report=found.no_report,
        failed=found.failed,
    )
    if as_json:
        print(end.model_dump_json(indent=1))
    else:
        show_end(console, {config.name: config.score.samples for config in configs}, end)
    if missing := missing_of(found, notify):
        how = how_to_continue(folder, fresh)
        print(*(f"error: {what}" + f" ({how})" * bool(how) for what in missing), sep="\n", file=sys.stderr)
        raise typer.Exit(1)


if __name__ == "__main__":
    run(main)
else:
    callable_module(__name__)
