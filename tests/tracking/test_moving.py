"""MLflow's records of a storage that was moved or copied."""

import json
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from pprint import pformat

import mlflow
import pytest
from mlflow.artifacts import download_artifacts
from mlflow.tracking._tracking_service.utils import _artifact_repos_cache

from cca_ray import report, status
from cca_ray.opened import Study
from cca_ray.tracking.moving import PLACES, beside, left_behind
from cca_ray.tracking.tracker import Tracker
from tests.commands import invoke
from tests.studies import make_study
from tests.tracking.experiments import DIGITS, contents, fill

REVISION = "dc11669786a5"  # of MLflow 3.17's schema


def tracker_of(storage: Path, say: list[str], uri: str = "") -> Tracker:
    uri = uri or f"sqlite:///{storage / 'mlflow.db'}"
    return Tracker(uri, "study", storage / "mlartifacts", storage / "study" / "mlflow.journal", say.append)


@pytest.fixture
def storage(tmp_path: Path, empty: Path, picture: Path) -> Path:
    """With one of each."""
    place = tmp_path / "runs 100% λ"
    place.mkdir()
    shutil.copy(empty, place / "mlflow.db")
    tracker = tracker_of(place, [])
    fill(tracker, picture)
    source = vars(DIGITS) | {"digest": "abc", "source": f"{place}/bases/digits"}
    tracker.data_set("parent", type(DIGITS)(**source))
    tracker.close(60)
    assert tracker.left == ""
    return place


def text(contents: dict[str, object]) -> str:
    return pformat(contents, width=10**9).replace(r"\\u03bb", "λ")


def names_of(database: Path) -> Iterator[tuple[str, str, str]]:
    """Every text in a database, with its table and column."""
    with closing(sqlite3.connect(database)) as connection:
        for (table,) in connection.execute("select name from sqlite_master where type = 'table'").fetchall():
            for _, column, *_ in connection.execute(f'pragma table_info("{table}")').fetchall():
                for (value,) in connection.execute(f'select "{column}" from "{table}"'):
                    yield table, column, f"{value}"


@pytest.mark.parametrize("way", ["moved", "copied", "moved, and a link left behind"])
def test_records_follow_their_storage(storage: Path, tmp_path: Path, lines: list[str], picture: Path, way: str):
    before = text(contents(tracker_of(storage, []), of_run=False))
    _artifact_repos_cache.clear()  # a process of MLflow's remembers places; a move is between two
    there = tmp_path / "deeper" / "archive"
    there.parent.mkdir()
    if way == "copied":
        shutil.copytree(storage, there)
    else:
        storage.rename(there)
    if "link" in way:
        storage.symlink_to(there)
    tracker = tracker_of(there, lines)
    after = before.replace(storage.as_uri(), there.as_uri()).replace(str(storage), str(there))
    assert text(contents(tracker, of_run=False)) == after
    assert after.count(str(there)) == 3
    assert lines == [
        f"MLflow: the storage has moved from {storage} to {there}: updated the records of 2 runs, 1 models and 1 "
        "versions"
    ]
    stale = [name for *name, value in names_of(there / "mlflow.db") if str(storage) in value or storage.name in value]
    assert not stale
    mlflow.set_tracking_uri(tracker.uri)
    assert Path(download_artifacts("models:/digits@champion")).is_relative_to(there)
    fill(tracker, picture)
    tracker.close(60)
    assert tracker.left == ""
    if way == "moved":
        assert not storage.exists()
    again: list[str] = []
    tracker_of(there, again).close(10)
    assert again == []  # once


def test_a_finished_study_that_was_moved_says_what_to_run_and_then_its_champion_loads(
    storage: Path, tmp_path: Path, capsys
):
    _artifact_repos_cache.clear()
    there = tmp_path / "archive"
    make_study(storage / "hand")

    def told() -> str:
        outcome = invoke(status.main, ["hand", "--storage", str(there), "--json"], capsys)
        assert outcome.code == 0
        return str(json.loads(outcome.out).get("mlflow", ""))

    shutil.copytree(storage, there)
    assert told() == ""  # what they name is there
    shutil.rmtree(there)
    storage.rename(there)
    before = (there / "mlflow.db").read_bytes()
    line = told()
    assert line.startswith(f"MLflow: its records name {storage}, from where the storage has moved")
    assert "`cca-ray report`" in line
    shown = invoke(status.main, ["hand", "--storage", str(there)], capsys).out
    assert line in shown.replace("\n", " ").replace("  ", " ") or line in shown
    assert (there / "mlflow.db").read_bytes() == before
    made = invoke(report.main, ["hand", "--storage", str(there)], capsys)
    assert made.code == 0
    moved = f"MLflow: the storage has moved from {storage} to {there}: updated the records of 2 runs"
    assert made.err.startswith(moved)
    assert told() == ""
    mlflow.set_tracking_uri(f"sqlite:///{there / 'mlflow.db'}")
    assert Path(download_artifacts("models:/digits@champion")).is_relative_to(there)
    assert invoke(report.main, ["hand", "--storage", str(there)], capsys).err == ""


LIKE_MLFLOW = """
create table experiments(artifact_location); insert into experiments values('file:///gone/runs/mlartifacts');
create table runs(artifact_uri); create table logged_models(artifact_location);
create table model_versions(source, storage_location); create table datasets(dataset_source);
"""
READ_ONLY = "create trigger t before update on experiments begin select raise(abort, 'a readonly database'); end"
LOCKED = "begin immediate"


@pytest.mark.parametrize(("way", "why"), [(LOCKED, "database is locked"), (READ_ONLY, "a readonly database")])
def test_records_that_cannot_be_written_are_told_of_after_the_page(way: str, why: str, tmp_path: Path, capsys):
    make_study(tmp_path / "hand")
    with closing(sqlite3.connect(tmp_path / "mlflow.db", isolation_level=None)) as other:
        other.executescript(LIKE_MLFLOW)
        other.execute(way)
        made = invoke(report.main, ["hand", "--storage", str(tmp_path)], capsys)
        page = Study(tmp_path / "hand").report()
        assert why in capsys.readouterr().err
    assert made.code == 1
    assert made.out.strip() == str(page.path)
    assert made.err.startswith(f"error: the storage has moved, but MLflow's records in {tmp_path / 'mlflow.db'}")
    assert f"could not be updated: {why}; once" in made.err
    assert made.err.count("\n") == 1


@pytest.mark.parametrize("content", [b"", b"no database at all, but long enough for its header" * 9])
def test_a_database_that_is_none_is_not_ours_to_tell_of(content: bytes, tmp_path: Path):
    (tmp_path / "mlflow.db").write_bytes(content)
    assert left_behind(tmp_path) == ""


def test_what_was_continued_elsewhere_stays_where_its_files_are(storage: Path, tmp_path: Path, lines: list[str]):
    there = tmp_path / "archive"
    storage.rename(there)
    run = next(path for path in (there / "mlartifacts").iterdir() if path.name != "models")
    (storage / "mlartifacts").mkdir(parents=True)
    run.rename(storage / "mlartifacts" / run.name)  # as an earlier version wrote it
    tracker = tracker_of(there, lines)
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert {r.info.run_id: storage.as_uri() in r.info.artifact_uri for r in runs} == {
        r.info.run_id: r.info.run_id == run.name for r in runs
    }
    assert all(tracker.client.list_artifacts(r.info.run_id) for r in runs)
    tracker.close(10)


def test_a_database_elsewhere_is_not_ours_to_change(storage: Path, tmp_path: Path, lines: list[str]):
    """Two storages may share one, and its files lie in the first."""
    database = storage.rename(tmp_path / "shared") / "mlflow.db"
    shared = tmp_path / "shared.db"
    database.rename(shared)
    with pytest.raises(ValueError, match=r"keeps files in .*λ/mlartifacts, which is not there; bring it back"):
        tracker_of(tmp_path / "shared", lines, f"sqlite:///{shared}")
    (tmp_path / "shared").rename(storage)
    before = shared.read_bytes()
    tracker = tracker_of(tmp_path / "other", lines, f"sqlite:///{shared}")
    assert beside(f"sqlite:///{shared}", tmp_path / "other" / "mlartifacts") is None
    tracker.close(10)
    assert (lines, shared.read_bytes()) == ([], before)


def test_files_that_are_gone_are_told_of_and_the_champion_is_made_again(
    storage: Path, tmp_path: Path, lines: list[str], picture: Path
):
    shutil.rmtree(storage / "mlartifacts")
    tracker = tracker_of(storage, lines)
    assert lines == [
        f"MLflow: {storage / 'mlartifacts'} is not there: files that runs have logged are gone, and models cannot be "
        "loaded"
    ]
    fill(tracker, picture)
    tracker.close(60)
    mlflow.set_tracking_uri(tracker.uri)
    assert (Path(download_artifacts("models:/digits@champion")) / "MLmodel").is_file()


def test_the_tables_of_mlflow_are_those_that_are_known(storage: Path):
    """A new schema may keep places in other columns: look, and then change the revision here."""
    texts = list(names_of(storage / "mlflow.db"))
    assert ("alembic_version", "version_num", REVISION) in texts
    escaped = json.dumps(str(storage))[1:-1]
    found = {(table, column) for table, column, value in texts if storage.as_uri() in value or escaped in value}
    assert found == {*PLACES, ("experiments", "artifact_location"), ("datasets", "dataset_source")}
