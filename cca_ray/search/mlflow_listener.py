"""MLflow as a listener: a run for every trial, below that of its size."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from cca_ray.config import StudyConfig
from cca_ray.contracts import RungScore, TrialReport
from cca_ray.search.arms import Arm
from cca_ray.search.listener import Listener, Place, TrialEnd, TrialInfo
from cca_ray.search.records import end_of
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path
from cca_ray.tracking.names import evaluated, trained
from cca_ray.tracking.origin import origin
from cca_ray.tracking.store import DataSet
from cca_ray.tracking.tracker import Tracker


class MlflowListener(Listener):
    """Writes the runs of a size's trials.

    `key`: of the size's own run, which begins with the study's name. `data_set`: what the trials train on. `base_grid`:
    the base's samples, which are step 0 of every trial.
    """

    def __init__(
        self,
        tracker: Tracker,
        config: StudyConfig,
        key: str,
        data_set: DataSet | None = None,
        base_grid: Path | None = None,
    ):
        self.tracker, self.config, self.key, self.data_set, self.base_grid = tracker, config, key, data_set, base_grid

    def run_of(self, trial: TrialInfo) -> str:
        """The key of its run."""
        return f"{self.key}/{trial.key}"

    def tags_of(self, trial: TrialInfo) -> dict[str, str]:
        """What people filter trials by. The size's own run has no `size`: a filter by it finds only these."""
        data = {"dataset": self.data_set.name} if self.data_set else {}
        return {
            "study": self.key.split("/")[0],
            "size": self.config.name,
            "family": self.config.base.family,
            "arm": trial.arm,
            "objective": trial.train.objective,
            "seed": str(trial.train.seed),
            **data,
            **origin(),
        }

    def on_trial_start(self, trial: TrialInfo) -> None:
        run = self.run_of(trial)
        self.tracker.run(run, trial.name, self.key, self.tags_of(trial))
        self.tracker.params(run, trial.train.model_dump(by_alias=True))
        if self.data_set:
            self.tracker.data_set(run, self.data_set)
        if self.base_grid:
            self.tracker.image(run, "samples", self.base_grid, 0)

    def on_trial_move(self, trial: TrialInfo, before: Place | None, now: Place) -> None:
        self.tracker.tags(self.run_of(trial), placement_tags(trial.train.global_batch, now))

    def on_trial_result(self, trial: TrialInfo, report: TrialReport) -> None:
        """The scores at the last rung are those of a model: its weights are kept."""
        rows = {step: {trained(name): value for name, value in row.items()} for step, row in report.rows().items()}
        now = rows.setdefault(report.step, {})
        if report.images_per_second:
            now[trained("images_per_second")] = report.images_per_second
        now |= {f"system/{name}": value for name, value in report.load.items()}
        if report.gpu_memory_gib is not None:
            now[trained("gpu_memory_gib")] = report.gpu_memory_gib
        if report.score is not None:
            now |= self.scored(trial, report.score, report.total_steps)
        self.tracker.metrics(self.run_of(trial), rows)

    def scored(self, trial: TrialInfo, score: RungScore, total_steps: int) -> dict[str, float]:
        """Show a score; what of it belongs to the run, and not to a model of it."""
        run, scores = self.run_of(trial), {evaluated(name): value for name, value in score.values.items()}
        pull(grid := local_path(score.grid))
        self.tracker.image(run, "samples", grid, score.step)
        self.tracker.tags(run, {"protocol": score.protocol})
        if not self.data_set or score.step < total_steps:
            return scores
        name, params = f"{self.config.name} {trial.name}", trial.train.model_dump(by_alias=True)
        tags = {**self.tags_of(trial), "protocol": score.protocol}
        self.tracker.model(run, name, params, tags, score.step, scores, self.data_set)
        return {}

    def attributes(self, trial: TrialInfo) -> Mapping[str, str]:
        run_id = self.tracker.run_id(self.run_of(trial))
        return {"mlflow_run_id": run_id} if run_id else {}

    def on_trial_complete(self, trial: TrialInfo, end: TrialEnd) -> None:
        self.tracker.end(self.run_of(trial), end.state, end.reason)


def placement_tags(global_batch: int, place: Place) -> dict[str, str]:
    """Where a trial runs, and how the global batch is cut there."""
    return {
        "accelerator": place.accelerator,
        "workers": str(place.workers),
        "micro_batch": str(place.micro_batch),
        "accumulation": str(global_batch // (place.workers * place.micro_batch)),
    }


def true_ends(key: str, arms: Iterable[Arm]) -> dict[str, tuple[str, str]]:
    """The end of every trial that has ended, by the key of its run; `key`: of the size's own run."""
    trials = (t for arm in arms for t in arm.ended() if "key" in t.user_attrs)
    return {f"{key}/{t.user_attrs['key']}": end_of(t) for t in trials}
