"""Studies that version 0.1.0 left: one finished, one interrupted while its last entries waited for MLflow.

`fixtures/studies-0.1.0.tar.xz` was made by the commit before the packages: a tiny base, two search spaces on it, and
their storage. Pictures and reports were left out.
"""

import json
import sqlite3
import tarfile
from contextlib import closing
from pathlib import Path

import mlflow
import numpy as np
import optuna
import pytest

from cca_ray import report, sample, status, tune
from cca_ray.reporting.lessons import lessons_for
from cca_ray.search.arms import open_arms
from cca_ray.search.records import rung_scores
from cca_ray.search.size_study import open_storage
from cca_ray.space_file import load_config
from tests.commands import invoke
from tests.earlier_versions import ARCHIVE
from tests.search.ledgers import DIGESTS

MADE_AT = "/tmp/cca_ray-fixture"  # where the studies say that they lie


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_ray_here: None) -> Path:
    """As they come; what they name lies at MADE_AT."""
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path)
    return tmp_path / Path(MADE_AT).name


@pytest.fixture
def left(unpacked: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Unpacked, as if they had been made where they now lie."""
    folder = unpacked
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'runs' / 'mlflow.db'}")
    for path in (p for p in folder.rglob("*") if p.suffix in (".yaml", ".json", ".journal", "") and p.is_file()):
        path.write_text(path.read_text().replace(MADE_AT, str(folder)))
    for database in folder.rglob("*.db"):
        relocate(database, MADE_AT, str(folder))
    for path in folder.rglob("MLmodel"):
        path.write_text(path.read_text().replace(MADE_AT, str(folder)))
    return folder


@pytest.fixture
def moved(unpacked: Path) -> Path:
    """Unpacked at another place than where they were made; only the search spaces name it."""
    for path in unpacked.glob("*.yaml"):
        path.write_text(path.read_text().replace(MADE_AT, str(unpacked)))
    return unpacked


def relocate(database: Path, old: str, new: str) -> None:
    """Replace a path in every text column."""
    with closing(sqlite3.connect(database)) as connection:
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            for _, column, kind, *_ in connection.execute(f'pragma table_info("{table}")').fetchall():
                if "CHAR" in kind.upper() or "TEXT" in kind.upper():
                    change = f'update "{table}" set "{column}" = replace("{column}", ?, ?) where "{column}" like ?'
                    connection.execute(change, (old, new, f"%{old}%"))
        connection.commit()


def trials_of(folder: Path, study: str) -> dict[str, list[optuna.trial.FrozenTrial]]:
    database = f"sqlite:///{folder / 'runs' / study / 'study.db'}"
    return {
        name.rsplit("/", 1)[1]: optuna.load_study(study_name=name, storage=database).trials
        for name in optuna.get_all_study_names(database)
    }


def test_a_finished_study_is_reported_and_its_status_told(left: Path, capsys):
    at = ["--storage", str(left / "runs")]
    made = invoke(report.main, ["finished", *at], capsys)
    assert made.code == 0, made.err
    page = (left / "runs" / "finished" / "report" / "report.html").read_text()
    assert "3.02 ± 0.22" in page
    assert "λ=8.92 lr=4.0e-04" in page
    told = invoke(status.main, ["finished", "--json", *at], capsys)
    assert told.code == 0, told.err
    content = json.loads(told.out)
    assert content["state"] == "finished"
    assert "λ=8.92 lr=4.0e-04 won, trial " in content["sizes"][0]["verdict"]
    assert "FID 3.02 ± 0.22 without guidance" in content["sizes"][0]["verdict"]


def test_finished_and_interrupted_studies_teach(moved: Path):
    """How large the model of an unfinished one is was not kept; it is of our size."""
    config, folder = load_config(moved / "finished.yaml", ["search.learn_from=[finished, interrupted]"]), moved / "new"
    finished, interrupted = lessons_for(config, moved / "runs" / "new").lessons
    assert f"{finished.best['lambda']:.3g}" == "8.92"
    assert (finished.parameters > 0, interrupted.parameters) == (True, 0)
    folder.mkdir()
    storage = open_storage(folder / "study.db")
    search = open_arms(config, "new", storage, DIGESTS, lessons=lambda: [finished, interrupted])[1]
    known = search.question([], 0).earlier
    assert [len(one.trials) for one in known] == [len(finished.trials), len(interrupted.trials)]
    assert all(rung_scores(trial)[-1].values["fid"] > 0 for one in known for trial in one.trials)


def test_a_finished_study_is_finished_again_without_a_trial_or_a_score_anew(left: Path, capsys):
    before, scores = trials_of(left, "finished"), left / "runs" / "finished" / "scores"
    kept = {path.name: path.stat().st_mtime_ns for path in scores.iterdir()}
    space, storage = str(left / "finished.yaml"), str(left / "runs")
    again = invoke(tune.main, [space, "--name", "finished", "--storage", storage], capsys)
    assert again.code == 0, again.err
    assert "3.02 ± 0.22" in again.out
    assert {arm: [t.number for t in trials] for arm, trials in trials_of(left, "finished").items()} == {
        arm: [t.number for t in trials] for arm, trials in before.items()
    }
    assert {path.name: path.stat().st_mtime_ns for path in scores.iterdir()} == kept


def test_a_champion_still_loads_and_makes_the_same_images(left: Path, capsys):
    champion = mlflow.pyfunc.load_model("models:/cca_ray-llamagen-digits-finished@champion")
    made = champion.predict({"label": np.arange(6) % 10})
    npz, space = left / "made.npz", str(left / "finished.yaml")
    winner = left / "runs" / "finished" / "finished" / "winner.pt"
    arguments = [space, "--checkpoint", str(winner), "--count", "6", "--npz", str(npz)]
    assert invoke(sample.main, arguments, capsys).code == 0
    np.testing.assert_array_equal(np.load(npz)["arr_0"], made)


@pytest.mark.nightly
def test_an_interrupted_study_goes_on_where_it_was_and_sends_what_waited(left: Path, capsys):
    before = trials_of(left, "interrupted")["search"]
    assert [trial.state.name for trial in before] == ["COMPLETE", "COMPLETE", "RUNNING"]
    space, storage = str(left / "interrupted.yaml"), str(left / "runs")
    checkpoint = left / "runs" / "interrupted" / "trials" / "interrupted-search-0002" / "checkpoint.pt"
    assert checkpoint.is_file()
    on = invoke(tune.main, [space, "--name", "interrupted", "--storage", storage], capsys)
    assert on.code == 0, on.err
    assert "found 3 of 4 trials ended (3 complete), 1 interrupted and resumed" in on.out
    assert "MLflow: sending 20 entries that an earlier process left" in on.out
    after = trials_of(left, "interrupted")["search"]
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    assert after[2].params == before[2].params
    assert [trial.value for trial in after[:2]] == [trial.value for trial in before[:2]]
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cca_ray llamagen digits")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.study = 'interrupted' and tags.arm = 'search'")
    assert sorted(run.info.status for run in runs) == ["FINISHED"] * 3
    for run in runs:
        steps = [metric.step for metric in client.get_metric_history(run.info.run_id, "loss")]
        assert steps == list(range(1, 601))  # each step once, whoever logged it


@pytest.mark.nightly  # the default tests have a study that goes on, and one that moved and is reported
def test_an_interrupted_study_whose_storage_moved_goes_on_there(moved: Path, monkeypatch, capsys):
    space, runs = str(moved / "interrupted.yaml"), moved / "runs"
    before, old = trials_of(moved, "interrupted")["search"], set(Path(MADE_AT).rglob("*"))
    on = invoke(tune.main, [space, "--name", "interrupted", "--storage", str(runs)], capsys)
    assert on.code == 0, on.out + on.err
    line = f"MLflow: the storage has moved from {MADE_AT}/runs to {runs}: updated the records of 9 runs, 6 models and"
    assert line in on.out
    assert "could not log" not in on.out
    after = trials_of(moved, "interrupted")["search"]
    assert [trial.state.name for trial in after] == ["COMPLETE"] * 3
    assert [trial.value for trial in after[:2]] == [trial.value for trial in before[:2]]
    assert old == set(Path(MADE_AT).rglob("*"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{runs / 'mlflow.db'}")
    for name in ("finished", "interrupted"):
        champion = mlflow.pyfunc.load_model(f"models:/cca_ray-llamagen-digits-{name}@champion")
        assert champion.predict({"label": [7, 3]}).shape == (2, 8, 8, 3)
    told = invoke(status.main, ["finished", "--json", "--storage", str(runs)], capsys)
    assert json.loads(told.out)["sizes"][0]["outcome"]["checkpoint"] == str(
        runs / "finished" / "finished" / "winner.pt"
    )
    client = mlflow.MlflowClient()
    experiment = client.get_experiment_by_name("cca_ray llamagen digits")
    assert experiment is not None
    runs_there = client.search_runs([experiment.experiment_id], "tags.study = 'interrupted' and tags.arm = 'search'")
    # Also what had waited under its old path; the other trials' pictures were left out.
    assert any(client.list_artifacts(run.info.run_id, "images") for run in runs_there)
