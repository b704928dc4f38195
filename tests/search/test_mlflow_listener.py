"""What MLflow gets of a trial; real Optuna storage and MLflow store, no Ray."""

import subprocess
from pathlib import Path

import optuna

from cca_ray import __version__
from cca_ray.search.listener import Place
from cca_ray.search.mlflow_listener import placement_tags
from cca_ray.tracking.store import DataSet
from cca_ray.tracking.tracker import Tracker
from tests.conftest import MakeStudy
from tests.search.ledgers import at_rung, heartbeat, new_ledger


def test_mlflow_gets_the_load_the_memory_and_at_the_last_rung_a_model(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    data_set = DataSet("digits", "0123", "bases/digits", "{}", "{}")
    told = new_ledger(make_config(), storage, tracker, data_set=data_set)
    ledger = told.ledger
    trial = ledger.propose("a")
    assert trial is not None
    of_gpu = {"load": {"gpu_0_utilization_percentage": 97.0}, "gpu_memory_gib": 1.5}
    for step, fid in ((5, 4.0), (10, 3.0), (10, 3.0)):  # the last as after a resume
        history = ((step, 0.5, 0.0, 0.0),)
        ledger.record("a", at_rung(step, 10, fid).model_copy(update={**of_gpu, "history": history}))
    ledger.finish("a")
    assert tracker.flush(60)
    client, run_id = tracker.client, tracker.run_id(told.mlflow.run_of(trial))
    assert run_id is not None
    found = {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)]
             for name in ("fid", "eval/inception_score", "system/gpu_0_utilization_percentage",
                          "train/gpu_memory_gib", "train/loss")}  # fmt: skip
    assert found == {
        "fid": [(5, 4.0), (10, 3.0)],
        "eval/inception_score": [(5, 2.0), (10, 2.0)],
        "system/gpu_0_utilization_percentage": [(5, 97.0), (10, 97.0)],
        "train/gpu_memory_gib": [(5, 1.5), (10, 1.5)],
        "train/loss": [(5, 0.5), (10, 0.5)],
    }
    tags = client.get_run(run_id).data.tags
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("cca-ray tune", "LOCAL")
    assert tags["mlflow.user"]
    assert tags["version"] == __version__
    here = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True)
    assert tags.get("mlflow.source.git.commit", "") == here.stdout.strip()  # none outside of a checkout
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert model.name == "tiny control 000 lr=1·0e-03"
    assert {(m.key, m.value, m.step, m.dataset_digest) for m in model.metrics} == {
        ("fid", 3.0, 10, "0123"), ("eval/inception_score", 2.0, 10, "0123"),
    }  # fmt: skip


def test_mlflow_is_told_where_a_trial_runs_and_when_it_moves(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    told = new_ledger(make_config(), storage, tracker)
    trial = told.ledger.propose("a")
    assert trial is not None
    told.ledger.record("a", heartbeat(2, 10))
    told.ledger.record("a", heartbeat(3, 10).model_copy(update={"micro_batch": 12}))
    assert tracker.flush(60)
    run_id = tracker.run_id(told.mlflow.run_of(trial))
    assert run_id is not None
    tags = tracker.client.get_run(run_id).data.tags
    wanted = placement_tags(24, Place("CPU", 1, 12))
    assert wanted["accumulation"] == "2"
    assert {name: tags[name] for name in wanted} == wanted
