"""What `tune` ends with, for a person and as JSON: the tables, where to look, what to do next."""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cca_ray.config import StudyConfig
from cca_ray.contracts import Contract, SizeSummary
from cca_ray.reporting.asked import Named, in_storage, sampling
from cca_ray.reporting.summary import table
from cca_ray.storage.uris import command_line, database_uri, to_uri
from cca_ray.terminal.console import Console
from cca_ray.terminal.last_words import last_words
from cca_ray.terminal.log_file import LOG_FILE


@dataclass(frozen=True)
class Found:
    """What a study ended with: its sizes, its report, how to look into MLflow, whose tables of trials open by links.

    `no_report`, `left`: why there is no report, and what has not arrived in MLflow; `failed`: which replicates are
    not there. All are empty if all is there.
    """

    folder: Path
    sizes: list[SizeSummary]
    report: Path | None
    browse: str
    no_report: str
    left: str
    tables: dict[str, str] = field(default_factory=dict)
    failed: str = ""


class Told(Contract):
    """The outcome of a study as one JSON object. `told`: of each size, what won, by how much, at what cost.

    `mlflow`: what has not arrived there; `no_report`: why there is no report; `failed`: which replicates are not
    there. All are empty if all is there.
    """

    study: str
    folder: str
    sizes: tuple[SizeSummary, ...]
    told: tuple[str, ...]
    where: dict[str, str]
    mlflow: str = ""
    no_report: str = ""
    failed: str = ""


def failed_replicates(sizes: Sequence[SizeSummary], configs: Sequence[StudyConfig]) -> str:
    """Which finalists have fewer training seeds than were asked for; empty if none has."""
    asked, found = {config.name: config.search.replicates for config in configs}, []
    for size in sizes:
        there = [finalist.models - 1 for finalist in size.finalists]  # the first is the trial of the search
        if missing := sum(max(0, asked[size.size] - some) for some in there):
            found.append(
                f"{size.size}: {missing} of {len(there) * asked[size.size]} replicates failed, as the log and MLflow "
                f"say; the same command tries those again that did not diverge, --replicates {min(there)} asks for "
                "no more than there are"
            )
    return "; ".join(found)


def where_to_look(found: Found, named: Mapping[str, Named]) -> dict[str, str]:
    """What the study has left, and the commands that go on from there."""
    folder, winners = found.folder, {size.size: size.checkpoint for size in found.sizes}
    first, winner = next(iter(winners.items()))
    return {
        "summary": to_uri(folder / "summary.json"),
        **{size: f"{to_uri(folder / size)}: winner.pt, samples.png" for size in winners},
        **({"report": to_uri(found.report)} if found.report else {}),
        "log": to_uri(folder / LOG_FILE),
        "browse": found.browse,
        **found.tables,
        "trials": command_line("optuna-dashboard", database_uri(folder / "study.db")),
        "status": command_line("cca-ray", "status", folder.name, *in_storage(folder)),
        "sample": f"cca-ray sample {sampling(named[first], winner, folder)}",
    }


def samples_of(by_size: Mapping[str, int]) -> str:
    """`1,800 samples`, or `1,800 (digits_s) and 5,000 (digits_m) samples`."""
    if len(set(by_size.values())) == 1:
        return f"{next(iter(by_size.values())):,} samples"
    of = {count: [size for size in by_size if by_size[size] == count] for count in by_size.values()}
    return " and ".join(f"{count:,} ({', '.join(sizes)})" for count, sizes in of.items()) + " samples"


def show_end(console: Console, samples: Mapping[str, int], end: Told) -> None:
    """The tables, where to look, and last what a person should know; of a quiet study only the tables.

    `samples`: how many images a score is of, by size.
    """
    width = shutil.get_terminal_size().columns if console.terminal else None
    for metric in dict.fromkeys(metric for size in end.sizes for metric in size.shown):
        sizes = [size for size in end.sizes if metric in size.metrics]
        counts = samples_of({size.size: samples[size.size] for size in sizes})
        print(f"\n{metric.label} on fresh noise, {counts}\n{table(sizes, width, metric)}\n")
    if console.quiet:
        return
    column = max(map(len, end.where))
    print(*(f"{what:{column}}  {path}" for what, path in end.where.items()), "", sep="\n")
    if end.sizes:
        last_words(console, end.study, end.sizes, width)
