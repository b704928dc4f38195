"""An experiment in MLflow: its runs, what they take in, log and make.

With the files beside it the only importer of mlflow.
"""

import json
import os
import ssl
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, Experiment, InputTag, LoggedModel, Metric, Param, RunTag
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT, MLFLOW_LOGGED_IMAGES, MLFLOW_PARENT_RUN_ID
from PIL import Image

from cca_ray.storage.proxies import proxy_to
from cca_ray.tracking.journal import JsonObject
from cca_ray.tracking.logged_models import (
    add_output,
    last_step,
    log_scores,
    make_model,
    model_of,
    pack_model,
    register_model,
)
from cca_ray.tracking.moving import beside, folder_of, follow
from cca_ray.tracking.names import as_before, trained
from cca_ray.tracking.pyfunc import Settings

KEY = "cca_ray.key"  # tag that names a run for good, so that the same run is found again
# Optuna's states as MLflow's own Optuna storage maps them; an interrupted run is reopened when the study goes on.
STATUS = {"COMPLETE": "FINISHED", "PRUNED": "KILLED", "FAIL": "FAILED", "INTERRUPTED": "KILLED"}
LOSS, OLD_LOSS = trained("loss"), as_before(trained("loss"))  # which every step has
BATCH, MOST_RUNS = 1000, 50_000  # metrics logged at once, runs found at once: MLflow's limits


@dataclass(frozen=True)
class DataSet:
    """What a run was trained on, as MLflow's inputs name it; `schema` and `profile` are JSON, the digest is short."""

    name: str
    digest: str
    source: str
    schema: str
    profile: str

    @property
    def id(self) -> tuple[str, str]:
        return self.name, self.digest


PROXY_ANSWERS = {403, 407, 502, 503, 504}  # HTTP's answers that a proxy gives where it does not reach the server


def reach(url: str, timeout_s: float = 10.0) -> None:
    """Ask a server once. Raises OSError if none is there, or a proxy is in the way; around one to this very machine.

    What TLS refuses has answered: MLflow's client, which has its own settings for certificates, is the one to judge.
    """
    place = urlsplit(url)
    user, _, host = place.netloc.rpartition("@")
    name = place.hostname or ""
    proxy = proxy_to(place.scheme, name)
    request = urllib.request.Request(f"{place.scheme}://{host}{place.path.rstrip('/')}/health")  # noqa: S310 (http)
    if user:  # as MLflow's own client takes it
        request.add_header("Authorization", f"Basic {b64encode(unquote(user).encode()).decode()}")
    try:
        with urllib.request.urlopen(request, timeout=timeout_s):  # noqa: S310 (http or https)
            pass
    except urllib.error.HTTPError as error:  # it answered
        if proxy and error.code in PROXY_ANSWERS:
            raise ConnectionError(f"{error}; {by_way_of(proxy, place.scheme, name)}") from None
    except OSError as error:
        if any(isinstance(part, ssl.SSLError) for part in (error, getattr(error, "reason", None))):
            return
        if proxy:
            raise ConnectionError(
                f"{getattr(error, 'reason', error)}; {by_way_of(proxy, place.scheme, name)}"
            ) from None
        raise


def by_way_of(proxy: str, scheme: str, host: str) -> str:
    return f"it was reached through {scheme}_proxy={proxy}: set no_proxy={host} if no proxy leads there"


@contextmanager
def without_strays(uri: str) -> Iterator[None]:
    """MLflow takes an SQLite file's URI for its path and makes that path's folder: what is escaped in it is not undone.

    Such folders go again at the end, as far as they are empty.
    """
    folder = Path(uri.removeprefix("sqlite:///")).parent
    made = [path for path in (folder, *folder.parents) if uri.startswith("sqlite:///") and not path.exists()]
    try:
        yield
    finally:
        with suppress(OSError):
            for path in made:
                path.rmdir()


@dataclass
class Run:
    """What is known of a run in MLflow; None: not asked yet."""

    id: str
    child: bool
    last_step: int | None = None  # the last optimizer step that was logged
    missing: set[int] = field(default_factory=set)  # steps before it that were not, as those that were once refused
    old: bool = False  # whether version 0.1.0 began it: it keeps the names of metrics that it has
    images: set[str] | None = None  # how the files of complete images begin


def as_named(run: Run, row: Mapping[str, float]) -> dict[str, float]:
    """The values under the names that this run's metrics have."""
    return {as_before(name) if run.old else name: value for name, value in row.items()}


class Store:
    """An experiment in MLflow. Every method writes so that the same again, in whole or from the middle, is no change.

    `at`: when the entry was made, in ms since 1970.
    """

    def __init__(self, uri: str, experiment: str, artifacts: Path | None, say: Callable[[str], None]):
        self.uri, self.experiment, self.say = uri, experiment, say
        self.server = uri.startswith(("http://", "https://"))
        self.artifacts = artifacts.resolve() if artifacts and not self.server else None
        self.location = self.artifacts.as_uri() if self.artifacts else None
        self.client = MlflowClient(tracking_uri=uri)
        self.experiment_id = ""
        self.runs: dict[str, Run] = {}

    def open(self) -> None:
        """Find or make the experiment. Raises ValueError if it or its files are gone, and whatever MLflow raises."""
        if self.server:
            reach(self.uri)
        found = self.client.get_experiment_by_name(self.experiment)
        if found and found.lifecycle_stage != "active":
            raise ValueError(f"the experiment {self.experiment} was deleted there; restore it, or delete it for good")
        if found and self.artifacts and (database := beside(self.uri, self.artifacts)):
            for line in follow(database, self.artifacts):
                self.say(line)
            found = self.client.get_experiment_by_name(self.experiment)
        if found:
            self.check_place(found)
        self.experiment_id = (
            found.experiment_id
            if found
            else self.client.create_experiment(self.experiment, artifact_location=self.location)
        )

    def check_place(self, found: Experiment) -> None:
        """MLflow would make a folder of the experiment's anew, wherever it was, and say nothing."""
        place, had_files = folder_of(found.artifact_location), f"tags.`{MLFLOW_LOGGED_IMAGES}` != ''"
        if place is None or place.exists():
            return
        if not self.client.search_runs([found.experiment_id], had_files, max_results=1):
            return
        if found.artifact_location != self.location:
            raise ValueError(
                f"its experiment {self.experiment} keeps files in {place}, which is not there; bring it back, or use "
                "another --tracking-uri"
            )
        self.say(f"MLflow: {place} is not there: files that runs have logged are gone, and models cannot be loaded")

    def describe(self, at: int, tags: Mapping[str, str]) -> None:
        """What someone has written there by hand stays."""
        there = self.client.get_experiment(self.experiment_id).tags
        for name, value in tags.items():
            if name not in there:
                self.client.set_experiment_tag(self.experiment_id, name, value)

    def find(self, key: str) -> Run | None:
        if key not in self.runs:
            quote = '"' if "'" in key else "'"
            query = f"tags.`{KEY}` = {quote}{key}{quote}"
            for run in self.client.search_runs([self.experiment_id], query, max_results=1):
                self.runs[key] = Run(run.info.run_id, MLFLOW_PARENT_RUN_ID in run.data.tags)
        return self.runs.get(key)

    def known(self, key: str) -> Run:
        run = self.find(key)
        if run is None:
            raise ValueError("no run has this key; if it was deleted there, restore it")
        return run

    def run(self, key: str, at: int, name: str, parent: str | None, tags: Mapping[str, str]) -> None:
        run = self.find(key)
        if run:
            self.client.update_run(run.id, status="RUNNING")
            return
        tags = {KEY: key, **tags, **({MLFLOW_PARENT_RUN_ID: self.known(parent).id} if parent else {})}
        created = self.client.create_run(self.experiment_id, start_time=at, run_name=name, tags=tags)
        self.runs[key] = Run(created.info.run_id, parent is not None, -1, images=set())

    def params(self, key: str, at: int, params: Mapping[str, str]) -> None:
        self.client.log_batch(self.known(key).id, params=[Param(*pair) for pair in params.items()])

    def tags(self, key: str, at: int, tags: Mapping[str, str]) -> None:
        self.client.log_batch(self.known(key).id, tags=[RunTag(*pair) for pair in tags.items()])

    def metrics(self, key: str, at: int, rows: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """A child's steps are logged once, whoever repeats them; a row, and so a step, is never cut in two.

        The same row of the same entry once more, as after an answer that was lost, MLflow itself leaves out. On a
        parent, whose few figures a study that is run again finds again, what it shows already is left out.
        """
        run, batch = self.known(key), list[Metric]()
        shown = {} if run.child else self.client.get_run(run.id).data.metrics
        last = self.last_step_of(run)
        for step, row in rows:
            run.old = run.old or OLD_LOSS in row  # of a journal that version 0.1.0 left
            row = as_named(run, row)
            if run.child and step <= last and step not in run.missing:
                continue
            if len(batch) + len(row) > BATCH:
                self.send(run, batch)
                batch = []
            batch += [Metric(name, value, at, step) for name, value in row.items() if shown.get(name) != value]
        self.send(run, batch)

    def last_step_of(self, run: Run) -> int:
        """Asked once, with which steps before it are missing."""
        if run.last_step is None:
            new, old = (
                {metric.step for metric in self.client.get_metric_history(run.id, name)} for name in (LOSS, OLD_LOSS)
            )
            run.old, steps = bool(old) and not new, new | old
            run.last_step = max(steps, default=-1)
            run.missing = set(range(run.last_step)) - steps
        return run.last_step

    def send(self, run: Run, batch: list[Metric]) -> None:
        if not batch:
            return
        self.client.log_batch(run.id, metrics=batch)
        for step in {metric.step: None for metric in batch} if run.child else ():
            last = -1 if run.last_step is None else run.last_step
            run.missing.update(range(last + 1, step))
            run.missing.discard(step)
            run.last_step = max(last, step)

    def image(self, key: str, at: int, name: str, path: str, step: int) -> None:
        """MLflow writes a PNG, then a small WebP, then a tag, under names that are new each time."""
        run = self.known(key)
        if run.images is None:
            paths = [file.path for file in self.client.list_artifacts(run.id, "images")]
            run.images = {path.split("timestamp+")[0] for path in paths if path.endswith("compressed.webp")}
        present, begin = run.images, f"images/{name.replace('/', '~')}+step+{step}+"
        if begin in present:
            self.client.set_tag(run.id, MLFLOW_LOGGED_IMAGES, True)
            return
        try:
            with Image.open(path) as image:
                pixels = np.asarray(image)
        except Exception as error:  # a file that is torn or gone; PIL raises many kinds, OSErrors among them
            raise ValueError(f"{path} cannot be read ({type(error).__name__})") from None
        run.images = None  # if the next line stops half-way, look again
        self.client.log_image(run.id, pixels, key=name, step=step, timestamp=at, synchronous=True)
        run.images = present | {begin}

    def file(self, key: str, at: int, path: str, folder: str | None = None) -> None:
        if not os.access(path, os.R_OK):
            raise ValueError(f"{path} cannot be read")
        self.client.log_artifact(self.known(key).id, path, folder)

    def data_set(self, key: str, at: int, name: str, digest: str, source: str, schema: str, profile: str) -> None:
        """Of one name and digest MLflow keeps one, and a run takes it in once."""
        where = json.dumps({"uri": source})
        tags = [InputTag(MLFLOW_DATASET_CONTEXT, "training")]
        given = DatasetInput(Dataset(name, digest, "local", where, schema, profile), tags)
        self.client.log_inputs(self.known(key).id, [given])

    def model(
        self,
        key: str,
        at: int,
        name: str,
        params: Mapping[str, str],
        tags: Mapping[str, str],
        step: int,
        scores: Mapping[str, float],
        data_set: Sequence[str],
    ) -> None:
        run = self.known(key)
        model = make_model(self.client, self.experiment_id, run.id, name, params, {KEY: key, **tags})
        add_output(self.client, run.id, model.model_id, step)
        self.last_step_of(run)
        log_scores(self.client, model, at, step, as_named(run, scores), data_set)

    def known_model(self, key: str) -> LoggedModel:
        model = model_of(self.client, self.experiment_id, self.known(key).id)
        if model is None:
            raise ValueError("this run has no model")
        return model

    def scores(self, key: str, at: int, scores: Mapping[str, float], data_set: Sequence[str]) -> None:
        model, run = self.known_model(key), self.known(key)
        self.last_step_of(run)
        log_scores(self.client, model, at, last_step(model), as_named(run, scores), data_set)

    def pack(self, key: str, at: int, parent: str, files: Mapping[str, str], settings: JsonObject) -> None:
        model = self.known_model(key)
        pack_model(self.client, model, files, Settings.model_validate(settings))
        add_output(self.client, self.known(parent).id, model.model_id, last_step(model))

    def register(self, key: str, at: int, name: str, alias: str, description: str, tags: Mapping[str, str]) -> None:
        register_model(self.client, self.known_model(key), name, alias, description, tags, KEY)

    def end(self, key: str, at: int, state: str, reason: str) -> None:
        self.close(self.known(key).id, at, state, reason)

    def close(self, run_id: str, at: int, state: str, reason: str) -> None:
        tags = {"state": state, **({"reason": reason[:5000]} if reason else {})}
        self.client.log_batch(run_id, tags=[RunTag(*pair) for pair in tags.items()])
        self.client.set_terminated(run_id, status=STATUS[state], end_time=at)

    def settle(self, at: int, prefix: str, states: Mapping[str, tuple[str, str]]) -> None:
        closed, quote = 0, '"' if "'" in prefix else "'"
        query = f"tags.`{KEY}` LIKE {quote}{prefix}/%{quote}"
        for run in self.client.search_runs([self.experiment_id], query, max_results=MOST_RUNS):
            key, status = run.data.tags[KEY], run.info.status
            if not key.startswith(f"{prefix}/"):  # `_` and `%` match more than themselves
                continue
            state, reason = states.get(key, ("INTERRUPTED", ""))
            true = status == STATUS[state] and run.data.tags.get("state") == state
            if not true if key in states else status == "RUNNING":
                self.close(run.info.run_id, at, state, reason)
                closed += 1
        if closed:
            self.say(f"MLflow: closed {closed} run{'s' * (closed > 1)} that a killed study had left open")
