"""Storages, temporary folders and names that a URI or a shell would read otherwise, and names that are taken."""

import json
import os
import shlex
from pathlib import Path

import mlflow
import optuna
import pytest

from cca_ray import report, sample, status, tune
from cca_ray.cluster.session import start_ray
from cca_ray.errors import ConfigError
from cca_ray.inputs import SPACES, find_space
from cca_ray.reporting.page import write_report
from cca_ray.reporting.results import read_study
from cca_ray.storage.uris import database_uri
from cca_ray.tracking.store import without_strays
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.small_base import BaseFiles
from tests.commands import invoke, write_space
from tests.studies import make_study

ODD = "a ?b#c%41d {λ} it's $HOME"


@pytest.mark.slow
def test_a_study_works_in_a_folder_of_any_characters(
    base_files: BaseFiles, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch, no_ray_here: None
):
    here = tmp_path / ODD
    here.mkdir()
    monkeypatch.chdir(here)
    weights = here / "weights ?.pt"
    weights.symlink_to(base_files.checkpoint)
    space = write_space(here, base_files)
    space.write_text(space.read_text().replace(str(base_files.checkpoint), weights.name))
    told = invoke(tune.main, [str(space), "--storage", "runs #%41", "--json"], capsys)
    assert told.code == 0, told.err
    found = json.loads(told.out)
    assert Path(found["folder"]) == here / "runs #%41" / "tiny"
    assert sorted(path.name for path in tmp_path.iterdir()) == [ODD]  # nothing beside it
    commands = ("browse", "trials", "status", "sample")  # the others are paths
    where = {what: shlex.split(found["where"][what]) for what in commands}
    names = optuna.get_all_study_names(where["trials"][1])
    assert sorted(names) == ["tiny/tiny/control", "tiny/tiny/search"]
    client = mlflow.MlflowClient(tracking_uri=where["browse"][-1])
    version = client.get_model_version_by_alias("cca_ray-llamagen-digits-tiny", "champion")
    run = client.get_run(version.run_id)
    assert run.info.status == "FINISHED"
    assert (here / "runs #%41" / "mlartifacts").is_dir()
    assert invoke(status.main, where["status"][2:], capsys).code == 0
    assert invoke(report.main, ["tiny", "--storage", "runs #%41"], capsys).code == 0
    grid = invoke(sample.main, [*where["sample"][2:], "--count", "10"], capsys)
    assert grid.code == 0, grid.err
    assert (here / "samples.png").is_file()


def test_what_is_kept_in_a_folder_of_any_characters_is_read_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = make_study(tmp_path / ODD / "λ.x", completed=4)
    assert (folder / "study.db").is_file()
    monkeypatch.chdir(tmp_path)
    page = write_report([read_study(folder.parent, "λ.x")], folder / "report").read_text()
    winner = str(folder.relative_to(tmp_path) / "digits_s" / "winner.pt")
    shown = shlex.join(["--checkpoint", winner]).replace("&", "&amp;").replace("'", "&#39;").replace('"', "&#34;")
    assert shown in page
    assert [path.name for path in tmp_path.iterdir()] == [ODD]


def test_mlflow_keeps_what_it_is_told_in_a_folder_of_any_characters(tmp_path: Path):
    folder, file = tmp_path / ODD, tmp_path / "file.txt"
    folder.mkdir()
    file.write_text("kept")
    uri = database_uri(folder / "mlflow.db")
    with without_strays(uri):
        tracker = Tracker(uri, "e", folder / "mlartifacts", folder / "e.journal")
        tracker.run("key", "name")
        tracker.file("key", file, "sub")
        assert tracker.flush(60)
        assert shlex.split(tracker.browse) == ["mlflow", "server", "--backend-store-uri", uri]
        tracker.close(10)
    kept = [path for path in folder.rglob("file.txt") if path.read_text() == "kept"]
    assert len(kept) == 1
    assert kept[0].is_relative_to(folder / "mlartifacts")
    assert sorted(path.name for path in tmp_path.iterdir()) == [ODD, "file.txt"]


@pytest.mark.parametrize("variable", ["TMPDIR", "RAY_TMPDIR"])
@pytest.mark.parametrize("name", ["λ", "it's", "a\\b"])
def test_a_temporary_folder_in_which_ray_would_not_start_is_refused_at_once(
    variable: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / name).mkdir()
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv(variable, str(tmp_path / name))
    monkeypatch.setattr("tempfile.tempdir", None)
    with pytest.raises(ConfigError, match=r"Ray cannot start in a temporary folder .* set RAY_TMPDIR=/tmp"):
        start_ray()


@pytest.mark.parametrize("place", ["a\nb", "a\x1b[2Jb", "caf\udce9", "a\u2028b"])
def test_a_storage_that_no_line_could_show_is_one_line(place: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = invoke(tune.main, ["--storage", place], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert ascii(place)[1:-1] in outcome.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["..", ".", "-x", "mlflow.db", "bases", "reference", "x" * 200])
def test_a_study_whose_name_would_be_in_the_way_is_one_line(name: str, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    outcome = invoke(tune.main, [f"--name={name}"], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert f"--name {name}: " in outcome.err
    assert list(tmp_path.iterdir()) == []


def test_a_shipped_search_space_is_hidden_by_nothing_and_both_are_told(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    shipped = SPACES / "digits_s.yaml"
    (tmp_path / "digits_s").mkdir()
    assert find_space("digits_s") == shipped
    (tmp_path / "digits_m").write_text("")
    assert find_space("digits_m") == SPACES / "digits_m.yaml"
    assert capsys.readouterr().err == "digits_m: the one that comes with the project is taken, not ./digits_m\n"
    (tmp_path / "digits_s.yaml").write_text("")
    assert find_space("digits_s") == shipped
    assert capsys.readouterr().err == "digits_s: the one that comes with the project is taken, not ./digits_s.yaml\n"
    assert find_space("digits_s.yaml") == Path("digits_s.yaml")
    assert capsys.readouterr().err == f"digits_s.yaml: ./digits_s.yaml in this folder is taken, not {shipped}\n"
    assert find_space("./digits_s.yaml") == Path("digits_s.yaml")
    assert find_space("digits_var.yaml") == SPACES / "digits_var.yaml"
    assert find_space(os.fspath(tmp_path / "digits_s.yaml")) == tmp_path / "digits_s.yaml"
    monkeypatch.chdir(SPACES)
    find_space("digits_s")
    with pytest.raises(ConfigError, match=r"mine_s\.yaml: no such search-space file"):
        find_space("mine_s.yaml")
    assert capsys.readouterr().err == ""
