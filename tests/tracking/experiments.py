"""An experiment with one of each thing that a study leaves in MLflow, and all that MLflow has of an experiment."""

from pathlib import Path

from mlflow.entities import LoggedModel

from cca_ray.tracking.pyfunc import Cut, Settings
from cca_ray.tracking.store import KEY, DataSet
from cca_ray.tracking.tracker import Tracker

SETTINGS = Settings(
    family="llamagen",
    size="S",
    length=16,
    image_size=8,
    precision="auto",
    decoding=Cut(temperature=1.0, top_k=0, top_p=1.0),
)
DIGITS = DataSet("digits", "0123456789abcdef", "bases/digits", "{}", '{"images": 240}')


def fill(tracker: Tracker, picture: Path) -> None:
    """One of each."""
    tracker.describe({"mlflow.note.content": "what it is"})
    tracker.run("parent", "parent")
    tracker.run("parent/child", "child", "parent")
    tracker.params("parent/child", {"lambda": 0.1})
    tracker.metrics("parent/child", {step: {"loss": step / 7, "margin": 0.1 * step} for step in range(800)})
    tracker.metrics("parent", {10: {"fid": 1 / 3}})
    tracker.image("parent/child", "samples", picture, 2)
    tracker.file("parent", picture)
    tracker.file("parent", picture, "report")
    tracker.data_set("parent/child", DIGITS)
    tracker.tags("parent", {"winner": "λ"})
    win(tracker, "parent/child", picture)
    tracker.end("parent/child", "FAIL", "diverged")
    tracker.end("parent", "COMPLETE")


def win(tracker: Tracker, key: str, weights: Path, name: str = "digits") -> None:
    """The run's model, which becomes the champion."""
    tracker.model(key, "λ=0.1", {"lambda": 0.1}, {"size": "s"}, 800, {"fid": 1 / 7, "is": 2.5}, DIGITS)
    tracker.scores(key, {"fid_final": 1 / 9}, DIGITS)
    tracker.pack(key, key.split("/")[0], {"model": weights, "tokenizer": weights}, SETTINGS)
    tracker.register(key, name, "champion", f"{key} won", {KEY: key.split("/")[0], "fid": 1 / 9})


def contents(tracker: Tracker, of_run: bool = True) -> dict[str, object]:
    """All that MLflow has of an experiment: runs by their keys, models, versions. `of_run`: also status and times."""
    client, here = tracker.client, [tracker.experiment_id]
    models = {model.model_id: model for model in client.search_logged_models(here)}
    versions = [
        {name: value for name, value in vars(version).items() if name != "_last_updated_timestamp"}
        for version in client.search_model_versions("")
        if version.run_id in {model.source_run_id for model in models.values()}
    ]

    def model_of(model: LoggedModel) -> dict[str, object]:
        parts = {name: value for name, value in model.to_dictionary().items() if name != "last_updated_timestamp"}
        paths = [file.path for file in client.list_logged_model_artifacts(model.model_id)]
        return {**parts, "metrics": sorted(str(metric) for metric in parts["metrics"]), "paths": paths}

    return {
        **runs_of(tracker, of_run),
        "experiment": dict(client.get_experiment(tracker.experiment_id).tags),
        "models": {model_id: model_of(model) for model_id, model in models.items()},
        "versions": versions,
        "aliases": {name: client.get_registered_model(name).aliases for name in {v["_name"] for v in versions}},
    }


def runs_of(tracker: Tracker, of_run: bool) -> dict[str, object]:
    """See `contents`."""

    def files(run_id: str, folder: str | None = None) -> list[str]:
        return [
            path
            for file in tracker.client.list_artifacts(run_id, folder)
            for path in (files(run_id, file.path) if file.is_dir else [file.path])
        ]

    return {
        run.data.tags["cca_ray.key"]: (
            dict(run.info) if of_run else run.info.run_name,
            run.data.params,
            run.data.tags,
            {m: [tuple(dict(v).items()) for v in tracker.client.get_metric_history(run.info.run_id, m)]
             for m in run.data.metrics},
            files(run.info.run_id),
            run.inputs.to_dictionary(),
            [(output.model_id, output.step) for output in run.outputs.model_outputs] if run.outputs else [],
        )
        for run in tracker.client.search_runs([tracker.experiment_id])
    }  # fmt: skip
