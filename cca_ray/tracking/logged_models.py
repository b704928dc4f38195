"""Models in MLflow: a trial's weights as a logged model, packed so that `mlflow.pyfunc` loads it, registered.

Every function writes so that the same again, in whole or from the middle, is no change. A run has one model at most.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import LoggedModel, LoggedModelOutput, LoggedModelStatus, Metric
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.pyfunc import save_model
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema, TensorSpec
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_IS_EXTERNAL, MLFLOW_MODEL_VERSIONS

from cca_ray.tracking.pyfunc import SETTINGS, Champion, Settings

CROWNED = "cca_ray.crowned"  # tag of a version that was given the alias: once, then it may go to others
SIGNATURE = ModelSignature(
    inputs=Schema([ColSpec("long", "label")]),
    outputs=Schema([TensorSpec(np.dtype(np.uint8), (-1, -1, -1, 3))]),
    params=ParamSchema([ParamSpec("seed", "long", 0)]),
)
# MLflow would find more by running the model. The package must be where the model is loaded: it brings the rest.
REQUIREMENTS = ["cca_ray"]


def model_of(client: MlflowClient, experiment_id: str, run_id: str) -> LoggedModel | None:
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'", max_results=1)
    return found[0] if found else None


def make_model(
    client: MlflowClient,
    experiment_id: str,
    run_id: str,
    name: str,
    params: Mapping[str, str],
    tags: Mapping[str, str],
) -> LoggedModel:
    """The run's model. Until it is packed it is what MLflow calls external: its weights lie in the study's folder.

    `name`: characters that MLflow does not allow in one are replaced.
    """
    model = model_of(client, experiment_id, run_id)
    if model is None:
        legal = name.replace(".", "·").translate(str.maketrans("/:%\"'", "-----"))
        outside = {**tags, MLFLOW_MODEL_IS_EXTERNAL: "true"}
        model = client.create_logged_model(experiment_id, legal, run_id, outside, dict(params))
    if model.status != LoggedModelStatus.READY:
        model = client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    return model


def add_output(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Say that the run made this model."""
    outputs = client.get_run(run_id).outputs
    if outputs is None or model_id not in {output.model_id for output in outputs.model_outputs}:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def last_step(model: LoggedModel) -> int:
    return max((metric.step for metric in model.metrics or []), default=0)


def log_scores(
    client: MlflowClient, model: LoggedModel, at: int, step: int, scores: Mapping[str, float], dataset: Sequence[str]
) -> None:
    """On the model and on its run; `dataset`: name and digest."""
    assert model.source_run_id is not None
    before = sorted(model.metrics or [], key=lambda metric: metric.timestamp)
    known = {(metric.key, metric.step): metric.value for metric in before}
    name, digest = dataset
    new = [
        Metric(key, value, at, step, model.model_id, name, digest, model.source_run_id)
        for key, value in scores.items()
        if known.get((key, step)) != value
    ]
    if new:
        client.log_batch(model.source_run_id, metrics=new)


def pack_model(client: MlflowClient, model: LoggedModel, files: Mapping[str, str], settings: Settings) -> None:
    """Add what `Champion` loads. `files`: folder there -> the file, which goes up from where it lies, never copied.

    ValueError if one cannot be read. A model that was packed is packed again if its files are gone.
    """
    if MLFLOW_MODEL_IS_EXTERNAL not in model.tags and client.list_logged_model_artifacts(model.model_id):
        return
    for path in files.values():
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path} cannot be read")
    with TemporaryDirectory() as scratch:
        data, package = Path(scratch) / "champion", Path(scratch) / "package"
        data.mkdir()
        (data / SETTINGS).write_text(settings.model_dump_json(indent=1))
        described = Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_uuid=model.model_id,
            model_id=model.model_id,
        )
        save_model(
            package,
            loader_module=Champion.__module__,
            data_path=data,
            mlflow_model=described,
            signature=SIGNATURE,
            input_example=({"label": [0, 1]}, {"seed": 0}),
            pip_requirements=REQUIREMENTS,
        )
        described.model_size_bytes = sum(Path(path).stat().st_size for path in files.values())
        described.save(package / "MLmodel")
        there = described.flavors["python_function"]["data"]
        for folder, path in files.items():
            client.log_model_artifact(model.model_id, path, f"{there}/{folder}")
        client.log_model_artifacts(model.model_id, str(package))
    if MLFLOW_MODEL_IS_EXTERNAL in model.tags:
        client.delete_logged_model_tag(model.model_id, MLFLOW_MODEL_IS_EXTERNAL)


def register_model(
    client: MlflowClient, model: LoggedModel, name: str, alias: str, description: str, tags: Mapping[str, str], of: str
) -> None:
    """The model as a version of the registered model `name`, which gets the alias.

    A new version takes the alias from any other. An old one, as when a study is run again, only from a version with
    the same value of the tag `of`.
    """
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    query = f"name = '{name}' and run_id = '{model.source_run_id}'"
    versions = client.search_model_versions(query, max_results=1)
    if versions:
        version = versions[0]
        if version.description != description:
            client.update_model_version(name, version.version, description)
        for tag, value in tags.items():
            if version.tags.get(tag) != value:
                client.set_model_version_tag(name, str(version.version), tag, value)
    else:
        version = client.create_model_version(
            name,
            model.artifact_location,
            model.source_run_id,
            dict(tags),
            description=description,
            await_creation_for=0,
            model_id=model.model_id,
        )
    if MLFLOW_MODEL_VERSIONS not in model.tags:  # by which the UI links the two
        here = json.dumps([{"name": name, "version": int(version.version)}])
        client.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: here})
    holder = client.get_registered_model(name).aliases.get(alias)
    of_ours = holder is not None and client.get_model_version(name, str(holder)).tags.get(of) == tags[of]
    if str(holder) != str(version.version) and (of_ours or CROWNED not in version.tags):
        client.set_registered_model_alias(name, alias, str(version.version))
    if CROWNED not in version.tags:
        client.set_model_version_tag(name, str(version.version), CROWNED, "true")
