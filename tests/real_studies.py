"""Studies that really run, in this process and to their end; those of tests/studies.py are made by hand."""

from dataclasses import dataclass
from pathlib import Path

from mlflow.entities import Run

from cca_ray.config import StudyConfig
from cca_ray.contracts import SizeSummary
from cca_ray.reporting.summary import report_at_end, write_summary
from cca_ray.search.size_study import SizeStudy, StudyContext
from cca_ray.study import finish_size
from cca_ray.tracking.tracker import Tracker
from tests.conftest import MakeStudy


def run(folder: Path, make_study: MakeStudy, trials: int, lines: list[str] | None = None) -> SizeSummary:
    """The tiny study, to its end and with all that a study of several sizes does then."""
    tracker = Tracker(f"sqlite:///{folder.parent / 'mlflow.db'}", "test", folder.parent / "artifacts")
    folder.mkdir(exist_ok=True)
    say = (lines if lines is not None else []).append
    config = make_study(search={"trials": trials, "max_concurrent": 1})
    result = SizeStudy(config, StudyContext(folder.name, folder, tracker, say)).run()
    size = finish_size(result, folder / "tiny", tracker)
    write_summary(folder, [size])
    return size


@dataclass
class Shown:
    """A finished study, and where it is shown."""

    config: StudyConfig
    folder: Path
    tracker: Tracker
    summary: SizeSummary

    def runs(self, query: str, *order: str) -> list[Run]:
        return list(self.tracker.client.search_runs([self.tracker.experiment_id], query, order_by=list(order)))

    @property
    def parent(self) -> Run:
        return self.tracker.client.get_run(self.summary.mlflow.run_id)

    @property
    def page(self) -> str:
        """Of the experiment's runs, in MLflow's browser."""
        return f"/experiments/{self.tracker.experiment_id}/runs"

    def files(self, folder: str | None = None) -> set[str]:
        return {f.path for f in self.tracker.client.list_artifacts(self.summary.mlflow.run_id, folder)}


def finish(config: StudyConfig, folder: Path, tracker: Tracker) -> SizeSummary:
    """As the command does it."""
    folder.mkdir(exist_ok=True)
    result = SizeStudy(config, StudyContext(folder.name, folder, tracker, lambda line: None)).run()
    summary = finish_size(result, folder / config.name, tracker)
    _, trouble = report_at_end(folder, [summary], {summary.mlflow.experiment: tracker})
    assert trouble == ""
    assert tracker.flush(120)
    return summary
