"""A study's folder from Python: finished, stopped, running."""

from html import unescape
from pathlib import Path

import optuna
import pandas
import pytest

import cca_ray
from cca_ray.storage.lock import alone
from tests.studies import make_study


@pytest.fixture
def finished(tmp_path: Path) -> cca_ray.Study:
    return cca_ray.open(make_study(tmp_path / "runs" / "hand"))


def test_a_finished_study_has_its_winner_summary_and_trials(finished: cca_ray.Study):
    assert (finished.name, finished.state, finished.sizes) == ("hand", "finished", ("digits_s",))
    best, (size,) = finished.best["digits_s"], finished.summary.sizes
    assert best.final
    assert (best.trial, best.params, best.values) == (
        size.winner.trial,
        size.winner.params,
        size.models["tuned"].values,
    )
    trials = finished.trials
    assert isinstance(trials, pandas.DataFrame)
    assert trials.groupby("arm").size().to_dict() == {"search": 13, "control": 1}
    row = trials[(trials["arm"] == "search") & (trials["trial"] == best.trial)].iloc[0]
    assert row["lambda"] == best.params["lambda"]
    assert row["rung_2_fid"] == pytest.approx(size.winner.score.values["fid"])
    assert f"study hand in {finished.folder}: finished; digits_s ✓ better" in repr(finished)


def test_a_study_that_was_stopped_has_the_best_so_far(tmp_path: Path):
    study = cca_ray.open(make_study(tmp_path / "hand", finished=False))
    best, trials = study.best["digits_s"], study.trials
    completed = trials[(trials["arm"] == "search") & (trials["state"] == "COMPLETE")]
    assert not best.final
    assert best.values["fid"] == completed["rung_2_fid"].min()
    assert study.summary.sizes == ()
    assert study.state == "stopped"
    with pytest.raises(cca_ray.ConfigError, match="finished sizes: none; no size was named"):
        study.champion()


def test_a_running_study_is_read_anew_each_time(tmp_path: Path):
    folder = make_study(tmp_path / "hand", completed=3, finished=False)
    study = cca_ray.open(folder)
    before = len(study.trials)
    with alone(folder):
        assert study.state == "running"
        database = optuna.storages.RDBStorage(f"sqlite:///{folder / 'study.db'}")
        optuna.load_study(study_name="hand/digits_s/search", storage=database).ask()
        assert len(study.trials) == before + 1
    assert study.state == "stopped"


def test_a_study_without_a_completed_trial_has_no_best(tmp_path: Path):
    assert cca_ray.open(make_study(tmp_path / "hand", completed=0, finished=False)).best == {}


def test_the_report_is_shown_in_a_notebook(finished: cca_ray.Study, tmp_path: Path):
    report = finished.report()
    assert str(report) == str(tmp_path / "runs" / "hand" / "report" / "report.html")
    shown = report._repr_html_()
    assert shown.startswith('<iframe srcdoc="')
    assert shown.count('"') == 6  # nothing in the page ends the attribute
    assert report.path.read_text() in unescape(shown)


def test_a_study_stays_found_where_the_program_goes_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    make_study(tmp_path / "runs" / "hand")
    monkeypatch.chdir(tmp_path)
    study = cca_ray.open("runs/hand")
    monkeypatch.chdir("/")
    assert study.sizes == ("digits_s",)


@pytest.mark.parametrize(
    ("where", "said"),
    [("runs/hund", "no study here; there are: hand; did you mean hand?"), ("run/hand", "no such folder")],
)
def test_what_is_no_study_is_one_line(where: str, said: str, finished: cca_ray.Study, tmp_path: Path):
    with pytest.raises(ValueError, match=said) as error:
        cca_ray.open(tmp_path / where)
    assert "\n" not in str(error.value)


def test_a_champion_that_cannot_be_had_is_one_line(finished: cca_ray.Study):
    with pytest.raises(cca_ray.ConfigError, match="finished sizes: digits_s; digits_x is not among them"):
        finished.champion("digits_x")
    with pytest.raises(cca_ray.ConfigError, match=r"champion\.json: no such file; a `tune` that continues the study"):
        finished.champion()


def test_optuna_speaks_as_before(finished: cca_ray.Study):
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    try:
        finished.trials  # noqa: B018
        assert optuna.logging.get_verbosity() == optuna.logging.DEBUG
    finally:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
