"""What a real study shows in MLflow, in a database and on a server."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from cca_ray.contracts import Edge, MlflowNames, TradeOff
from cca_ray.evaluation.scoring import load_base, protocol_of, sample_shards, scoring_of
from cca_ray.models.parallel import Group
from cca_ray.reporting.results import read_study
from cca_ray.reporting.summary import table
from cca_ray.search.mlflow_pages import experiment_of, figures_of, register_champion, registered_name, trials_filter
from cca_ray.space_file import parse
from cca_ray.storage.uris import local_path
from cca_ray.tracking.store import KEY
from cca_ray.tracking.tracker import Tracker
from cca_ray.verdict import ended_early, told, verdict, why_another
from tests.conftest import MakeStudy, tiny_space
from tests.real_studies import Shown, finish
from tests.studies import make_study, summary_of
from tests.tracking.experiments import contents
from tests.tracking.servers import server, the_server

__all__ = ["server", "the_server"]  # fixtures


# The browser's tests look at a server, too.
@pytest.fixture(params=["sqlite", pytest.param("server", marks=pytest.mark.nightly)])
def shown(request: pytest.FixtureRequest, tmp_path: Path, make_study: MakeStudy, ray_here: None) -> Iterator[Shown]:
    """Two trials, of which one may be stopped at its first rung, and the control."""
    there = request.param == "server"
    uri = request.getfixturevalue("server").url if there else f"sqlite:///{tmp_path / 'mlflow.db'}"
    config = make_study(search={"trials": 2, "max_concurrent": 1})
    tracker = Tracker(uri, f"{experiment_of(config)} {tmp_path.name}", tmp_path / "artifacts", tmp_path / "journal")
    yield Shown(config, tmp_path / "study", tracker, finish(config, tmp_path / "study", tracker))
    tracker.close(5)


@pytest.mark.timeout(900)  # a study twice on a busy machine
def test_a_finished_study_is_shown_whole_and_once(shown: Shown, monkeypatch: pytest.MonkeyPatch):
    has_experiment(shown)
    has_parent(shown)
    has_trials(shown)
    has_models(shown)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shown.tracker.uri)
    predicts(shown)
    before = contents(shown.tracker, of_run=False)
    assert finish(shown.config, shown.folder, shown.tracker) == shown.summary
    assert contents(shown.tracker, of_run=False) == before


@pytest.mark.parametrize(
    "tokens",
    ["tokens/digits", "tokens/digits/", "~/digits", "file:///tokens/digits", "s3://bucket/digits",
     "s3://bucket/digits?scheme=http&endpoint_override=127.0.0.1%3A9000", "gs://bucket/di%67its/"],
)  # fmt: skip
def test_a_study_at_a_uri_belongs_to_one_experiment_before_and_after_its_files_are_here(
    tokens: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path))
    content = tiny_space()
    content["base"] = {"family": "llamagen", "size": "S", "checkpoint": "base.pt", "tokenizer": "vq.pt"}
    content |= {"data": {"tokens": tokens}, "score": {**content["score"], "features": "a.pt", "reference": "b.npz"}}
    given = parse(content, "mine", "mine.yaml")
    here = given.with_paths({key: str(local_path(path)) for key, path in given.paths().items()})
    assert experiment_of(given) == experiment_of(here) == "cca_ray llamagen digits"
    assert registered_name(given) == registered_name(here)


def has_experiment(shown: Shown) -> None:
    assert shown.summary.mlflow.experiment == experiment_of(shown.config) == "cca_ray llamagen digits"
    tags = shown.tracker.client.get_experiment(shown.tracker.experiment_id).tags
    assert "Primary metric: `fid`" in tags["mlflow.note.content"]
    assert tags["mlflow.experiment.primaryMetric.name"] == "fid"
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def has_parent(shown: Shown) -> None:
    """Verdict, filters that find what they say, data set, figures, report."""
    data = shown.parent.data
    note = data.tags["mlflow.note.content"]
    assert verdict(shown.summary) in note
    assert table([shown.summary]) in note
    ended, everything = re.findall(r"^    (tags.*)$", note, re.MULTILINE)
    children = {r.info.run_id for r in shown.runs(f"tags.mlflow.parentRunId = '{shown.parent.info.run_id}'")}
    assert len(children) == 3
    assert {r.info.run_id for r in shown.runs(everything)} == children
    best = shown.runs(ended, "metrics.fid ASC")
    assert {r.info.run_id for r in best} <= children
    assert {r.data.tags["arm"] for r in best} == {"search"}
    assert best[0].data.metrics["fid"] == min(r.data.metrics["fid"] for r in best)
    assert {r.info.run_id for r in shown.runs("tags.study = 'study' and tags.size = 'tiny'")} == children
    assert {f"final/fid_{name}" for name in ("base", "guided", "control", "cca")} <= set(data.metrics)
    assert {"final/inception_score_cca", "final/std_cca", "final/difference_control"} <= set(data.metrics)
    assert shown.parent.info.run_name == "study/tiny"
    assert (data.params["space.lambda.low"], data.params["space.lambda.high"]) == ("0.5", "10.0")
    assert {"version.torch", "version", "mlflow.user", "vs_guided", "vs_control", "edges"} <= set(data.tags)
    winners = shown.runs("tags.winner = 'true'")
    assert [r.data.tags["cca_ray.key"] for r in winners] == [shown.summary.mlflow.winner_key]
    assert len(shown.runs("tags.finalist = 'true'")) == len(shown.summary.finalists)
    assert shown.files() == {"samples.png", "report"}
    plots = {"history", "landscape", "parallel", "trade_off"}
    assert {"report/report.html", *(f"report/{plot}.png" for plot in plots)} <= shown.files("report")


def has_trials(shown: Shown) -> None:
    """Names, tags, metrics by optimizer step, the machine's load, the data set."""
    history = shown.tracker.client.get_metric_history
    runs = shown.runs(trials_filter(shown.summary.mlflow.key))
    assert len(runs) >= shown.summary.trials
    for run in runs:
        tags, control = run.data.tags, run.data.tags["arm"] == "control"
        assert re.fullmatch(r"(control )?\d{3} (λ=\S+ )?lr=\d\.\de-\d\d", run.info.run_name)
        assert (tags["study"], tags["size"], tags["family"], tags["dataset"]) == ("study", "tiny", "llamagen", "digits")
        assert (tags["objective"], tags["seed"]) == ("finetune" if control else "cca", "0")
        assert {"protocol", "accelerator", "workers", "micro_batch", "state"} <= set(tags)
        losses = (
            {"train/loss"} if control else {f"train/{name}" for name in ("loss", "reward_accuracy", "reward_margin")}
        )
        load = {"system/cpu_utilization_percentage", "system/system_memory_usage_megabytes"}
        assert {*losses, *load, "fid", "eval/inception_score", "train/images_per_second"} <= set(run.data.metrics)
        steps = {name: [m.step for m in history(run.info.run_id, name)] for name in run.data.metrics}
        assert steps["train/loss"] == list(range(1, max(steps["train/loss"]) + 1))
        assert steps["fid"] == steps["eval/inception_score"] == [5, 10][: len(steps["fid"])]
        assert all(set(found) <= set(steps["train/loss"]) for found in steps.values())
    data_sets = [r.inputs.dataset_inputs for r in shown.runs("")]
    assert all(len(some) == 1 for some in data_sets)
    assert {(some[0].dataset.name, some[0].tags[0].value) for some in data_sets} == {("digits", "training")}
    assert {some[0].dataset.digest for some in data_sets} == {shown.parent.data.params["tokens"]}


def has_models(shown: Shown) -> None:
    """One for every trial that was trained to its end; finalists can be loaded; the winner is the champion."""
    client, summary = shown.tracker.client, shown.summary
    models = {m.source_run_id: m for m in client.search_logged_models([shown.tracker.experiment_id])}
    ended = shown.runs("attributes.status = 'FINISHED' and tags.arm LIKE '%'")
    assert set(models) == {r.info.run_id for r in ended} != set()
    for run in ended:
        model = models[run.info.run_id]
        scores = {m.key: (m.value, m.dataset_name, m.dataset_digest) for m in model.metrics}
        assert scores["fid"] == (run.data.metrics["fid"], "digits", shown.parent.data.params["tokens"])
        assert model.params["learning_rate"] == run.data.params["learning_rate"]
        packed = "mlflow.model.isExternal" not in model.tags
        assert packed == ("final/fid" in scores) == ("final/fid" in run.data.metrics)
    packed = {m.model_id for m in models.values() if "mlflow.model.isExternal" not in m.tags}
    assert {output.model_id for output in shown.parent.outputs.model_outputs} == packed
    assert len(packed) == len(summary.finalists)
    name = registered_name(shown.config)
    version = client.get_model_version_by_alias(name, "champion")
    assert models[version.run_id].params["lambda"] == str(summary.settings["lambda"])
    assert (version.tags["study"], version.tags[KEY]) == ("study", summary.mlflow.key)
    assert float(version.tags["fid"]) == summary.value("tuned")
    assert verdict(summary) in version.description


def predicts(shown: Shown) -> None:
    """The images that the study itself scores."""
    mlflow.set_tracking_uri(shown.tracker.uri)
    try:
        model = mlflow.pyfunc.load_model(f"models:/{registered_name(shown.config)}@champion")
    finally:
        mlflow.set_tracking_uri(None)
    scoring = scoring_of(shown.config, Group().device)
    protocol = protocol_of(shown.config, scoring, 20, seed=3)
    winner = load_base(shown.config, shown.summary.checkpoint)
    ((_, images, labels),) = sample_shards(winner, scoring, protocol, Group())
    asked = {"label": labels.tolist()}
    for given in (asked, pd.DataFrame(asked), [{"label": label} for label in asked["label"]]):
        found = model.predict(given, params={"seed": 3})
        assert (found.shape, found.dtype) == ((20, 8, 8, 3), np.uint8)
        np.testing.assert_array_equal(found, images.cpu().numpy())
    assert model.predict({"label": [7, 3]}).shape == (2, 8, 8, 3)


class Noted(Tracker):
    """Keeps the note, and writes nothing."""

    def __init__(self) -> None:
        self.said, self.registered = "", dict[str, str]()

    def register(self, key: str, name: str, alias: str, description: str, tags: Mapping[str, str]) -> None:
        self.registered = dict(tags)

    def note(self, key: str, text: str) -> None:
        self.said = text


@pytest.mark.parametrize(
    ("family", "said", "unsaid"),
    [("llamagen", "mlflow.pyfunc.load_model(", "texts"), ("llamagen_t2i", "The model takes texts", "label")],
)
def test_the_note_of_a_model_says_how_to_sample_from_it(family: str, said: str, unsaid: str, tmp_path: Path):
    (size,) = read_study(make_study(tmp_path / "hand").parent, "hand").sizes
    assert size.summary is not None
    tracker = Noted()
    names = size.summary.mlflow.model_copy(update={"key": "study/digits_s/x"})
    register_champion(tracker, size.summary.model_copy(update={"family": family, "mlflow": names}), "table")
    assert said in tracker.said
    assert unsaid not in tracker.said


def test_the_note_tells_of_ends_and_of_another_best_and_the_version_has_plain_values():
    rows = tuple(
        TradeOff(trial=trial, params={}, values={"fid": fid, "inception_score": 8.0}, front=False)
        for trial, fid in ((3, 16.5), (4, 16.2))
    )
    edge = Edge(of="lambda", value=0.52, low=0.5, high=20, end="low", setting="search.space.lambda.low=0.08")
    size = summary_of(winner=3, trade_off=rows, edges=(edge,), stopped_below=0.01)
    size = size.model_copy(update={"mlflow": MlflowNames(key="study/digits_s/x", registered_model="m")})
    tracker = Noted()
    register_champion(tracker, size, "table")
    assert f"**{told(edge)}**" in tracker.said
    assert why_another(size) in tracker.said != ""
    assert ended_early(size) in tracker.said != ""
    tags = tracker.registered
    assert (tags["study"], tags["size"], tags["trial"]) == ("study", "digits_s", "3")
    assert float(tags["std"]) == size.std("tuned")
    assert all(float(tags[name]) == value for name, value in size.winner.params.items())


def test_a_spread_that_is_not_known_is_no_number_in_mlflow():
    size = summary_of()
    blank = size.models["control"].model_copy(update={"std": {}})
    few = size.model_copy(
        update={"models": {**size.models, "control": blank, "tuned": blank}, "mlflow": MlflowNames(key="s/a/x")}
    )
    assert {"final/std_base", "final/std_guided"} == {name for name in figures_of(few) if "std" in name}
    assert "final/std_control" in figures_of(size)
    tracker = Noted()
    register_champion(tracker, few, "table")
    assert "std" not in tracker.registered
