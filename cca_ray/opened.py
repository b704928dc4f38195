"""A study's folder as Python sees it: its best settings, trials, summary, report and champions."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import optuna

from cca_ray.contracts import Contract, StudySummary
from cca_ray.errors import ConfigError
from cca_ray.report import make_report, update_mlflow
from cca_ray.reporting.results import SizeResults, StudyResults, read_study, read_summary
from cca_ray.reporting.tables import trial_of
from cca_ray.status import StudyStatus, in_a_line, look
from cca_ray.storage.uris import is_copy, local_path, to_uri
from cca_ray.terminal.hints import without_hints

if TYPE_CHECKING:
    import pandas

    from cca_ray.tracking.pyfunc import Champion


class Best(Contract):
    """The best trial of a size.

    `final`: it is the winner, and `values` are its scores in the final comparison, on noise that no choice used; else
    the search has not finished, or was continued since, and they are its scores at its last rung.
    """

    trial: int  # its number in Optuna
    params: dict[str, int | float]
    values: dict[str, float]  # by metric
    final: bool


@dataclass(frozen=True)
class Report:
    """The report of a study, a page that needs no network. A notebook shows it."""

    path: Path

    def _repr_html_(self) -> str:
        page = escape(self.path.read_text(encoding="utf-8"))
        return f'<iframe srcdoc="{page}" title="report" style="width: 100%; height: 45em; border: 0"></iframe>'

    def __str__(self) -> str:
        return to_uri(self.path)


class Study:
    """A study, finished, stopped or running. Everything is read from its folder at the moment when it is asked for."""

    def __init__(self, folder: Path):
        self.path = folder if is_copy(folder) else folder.absolute()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def folder(self) -> str:
        """Its path or URI."""
        return to_uri(self.path)

    @property
    def status(self) -> StudyStatus:
        """What is known of it, as `cca-ray status --json` prints it."""
        with quiet_optuna():
            return look(self.path.parent, self.name).content

    @property
    def state(self) -> str:
        """`running`, `stopped` or `finished`."""
        return self.status.state

    @property
    def sizes(self) -> tuple[str, ...]:
        """The names of those that have begun."""
        return tuple(size.name for size in self._results().sizes)

    @property
    def best(self) -> dict[str, Best]:
        """By size; of a size without a completed trial there is none."""
        found = ((size.name, best_of(size)) for size in self._results().sizes)
        return {name: best for name, best in found if best is not None}

    @property
    def trials(self) -> "pandas.DataFrame":
        """A row a trial, of all sizes and arms: settings, scores at each rung, state; as in `report/trials.csv`."""
        import pandas

        study = self._results()
        return pandas.DataFrame([trial_of(study, size, trial) for size in study.sizes for trial in size.trials])

    @property
    def summary(self) -> StudySummary:
        """`summary.json`: the sizes that have finished, with all models that were compared."""
        self._results()  # whether there is such a study
        return read_summary(self.path / "summary.json")

    def report(self, out: str | Path | None = None) -> Report:
        """Make the report of what there is now, in the folder `out`, by default `report` in the study's own.

        If the storage has moved, MLflow's records follow; if they cannot, a line on stderr says why.
        """
        with quiet_optuna():
            page = make_report(self.path.parent, [self.name], None if out is None else local_path(out))
        update_mlflow(self.path.parent)
        return Report(page)

    def champion(self, size: str | None = None) -> "Champion":
        """The winner of a size, which may be left out if there is one size: `champion.sample([0, 1, 2], seed=0)`."""
        with without_hints():
            from cca_ray.tracking.pyfunc import champion_in

        finished = [summary.size for summary in self.summary.sizes]
        wanted = finished[0] if size is None and len(finished) == 1 else size
        if wanted not in finished:
            asked = "no size was named" if size is None else f"{size} is not among them"
            raise ConfigError(f"{self.folder}: finished sizes: {', '.join(finished) or 'none'}; {asked}")
        return champion_in(self.path / str(wanted), self.path.parent)

    def _results(self) -> StudyResults:
        with quiet_optuna():
            return read_study(self.path.parent, self.name)

    def __repr__(self) -> str:
        status = self.status
        return f"study {self.name} in {self.folder}: {'; '.join([status.state, *map(in_a_line, status.sizes)])}"


def best_of(size: SizeResults) -> Best | None:
    """None if no trial of the search is completed."""
    if size.summary and size.finished:
        winner = size.summary.winner
        values = size.summary.models["tuned"].values
        return Best(trial=winner.trial, params=winner.params, values=values, final=True)
    if size.best is None:
        return None
    return Best(trial=size.best.number, params=size.best.params, values=size.best.rungs[-1].values, final=False)


def open(study: str | Path) -> Study:
    """The study in this folder, a path or a URI, such as `runs/digits`. ValueError if there is none."""
    found = Study(local_path(study))
    found.status  # noqa: B018 (whether there is one)
    return found


@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Meanwhile Optuna says nothing of what it opens."""
    before = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        yield
    finally:
        optuna.logging.set_verbosity(before)
