"""Reading a study changes nothing in it, and whatever is wrong with it is one line."""

import json
import shutil
import sqlite3
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from cca_ray.contracts import FID
from cca_ray.reporting.results import read_study
from cca_ray.reporting.text import protocol
from cca_ray.search.records import RULE
from tests.earlier_versions import OLD_SUMMARY
from tests.studies import make_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_study(tmp_path_factory.mktemp("runs") / "hand")


def test_all_trials_are_read_with_their_rungs_and_reasons(study: Path):
    (size,) = read_study(study.parent, "hand").sizes
    assert Counter((t.arm, t.state) for t in size.trials) == {
        ("control", "COMPLETE"): 1, ("search", "COMPLETE"): 10, ("search", "PRUNED"): 1, ("search", "FAIL"): 1,
        ("search", "RUNNING"): 1,
    }  # fmt: skip
    (stopped,) = size.of("search", "PRUNED")
    assert (stopped.last(FID), len(stopped.rungs), stopped.reason) == (40, 1, "not among the best at a rung")
    assert size.best is not None
    assert size.summary is not None
    assert size.best.number == size.summary.winner.trial
    assert list(size.space) == ["lambda", "learning_rate"]


def test_how_guidance_and_temperature_grow_is_said_where_they_do(study: Path):
    (size,) = read_study(study.parent, "hand").sizes
    assert "temperature 1, " in protocol(size)[0]
    assert "tried on the base: " in protocol(size)[2]
    grown = size.settings.score.model_copy(update={"guidance_power": 2.75, "last_temperature": 0.5})
    size = replace(size, settings=size.settings.model_copy(update={"score": grown}))
    assert "temperature 1 to 0.5 over the steps, " in protocol(size)[0]
    assert "tried on the base (growing over the steps, power 2.75): " in protocol(size)[2]


def test_which_rule_let_trials_continue_is_said(study: Path):
    (size,) = read_study(study.parent, "hand").sizes
    usual, other = "within two standard errors", "continued if the Gaussian process"
    assert (usual in protocol(size)[1], other in protocol(size)[1]) == (True, False)
    searched = size.of("search")
    searched[0].frozen.user_attrs[RULE] = "posterior"
    assert (usual in protocol(size)[1], other in protocol(size)[1]) == (True, True)  # it was changed in between
    for trial in searched:
        trial.frozen.user_attrs[RULE] = "posterior"
    assert (usual in protocol(size)[1], other in protocol(size)[1]) == (False, True)
    assert "% continue" not in protocol(size)[1]


def test_what_the_control_had_where_the_search_tried_other_budgets_is_said(study: Path):
    (size,) = read_study(study.parent, "hand").sizes
    assert "The control is plain fine-tuning with the same steps, data order and EMA, and" in protocol(size)[2]
    searched = size.settings.search.model_copy(update={"space": {**size.space, "epochs": size.space["lambda"]}})
    size = replace(size, settings=size.settings.model_copy(update={"search": searched}))
    assert "The control is plain fine-tuning with the epochs of `train`, in the same data order" in protocol(size)[2]


def test_captions_are_no_labels(study: Path):
    (size,) = read_study(study.parent, "hand").sizes
    assert "class-balanced labels, " in protocol(size)[0]
    assert "all on the same labels and noise" in protocol(size)[1]
    of_texts = replace(size, settings=size.settings.model_copy(
        update={"base": size.settings.base.model_copy(update={"family": "llamagen_t2i"})}))  # fmt: skip
    for drawn, said in (("balanced", "as often as images have them"), ("random", "of images drawn at random")):
        score = size.settings.score.model_copy(update={"labels": drawn})
        text = protocol(replace(of_texts, settings=of_texts.settings.model_copy(update={"score": score})))
        assert f"captions of the token set, {said}, " in text[0]
        assert "all on the same captions and noise" in text[1]
        assert not any(word in " ".join(text) for word in ("class", "label"))


def test_of_an_unfinished_study_the_best_is_that_of_the_last_rung(tmp_path: Path):
    make_study(tmp_path / "half", finished=False)
    (size,) = read_study(tmp_path, "half").sizes
    assert size.summary is None
    assert size.best is not None
    assert size.best.last(FID) == min(t.last(FID) for t in size.of("search", "COMPLETE"))


def test_reading_leaves_the_folder_as_it_was(study: Path):
    before = {path: path.stat().st_mtime_ns for path in study.rglob("*")}
    for path in study.iterdir():
        path.chmod(0o500 if path.is_dir() else 0o400)
    read_study(study.parent, "hand")
    assert {path: path.stat().st_mtime_ns for path in study.rglob("*")} == before


def test_a_study_whose_driver_was_killed_in_the_middle_of_a_write_is_read(study: Path, tmp_path: Path):
    shutil.copytree(study, tmp_path / "hand")
    database = tmp_path / "hand" / "study.db"
    database.chmod(0o600)
    killed = (
        "import sqlite3, os, sys; c = sqlite3.connect(sys.argv[1]); c.execute('pragma cache_size = 2');"
        "c.execute(\"update trial_user_attributes set value_json = value_json || ' '\"); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", killed, str(database)], check=False).returncode == -9
    assert database.with_name("study.db-journal").exists()
    assert len(read_study(tmp_path, "hand").sizes[0].trials) == 14
    assert database.with_name("study.db-journal").exists()  # that is the next driver's to mend


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no folder", "no such folder; --storage"),
        ("unknown name", "other: no study here; there are: hand"),
        ("text", "study.db: not a readable study (DatabaseError: file is not a database)"),
        ("another database", "study.db: not a readable study"),
        ("summary", "summary.json: not a study's summary (Expecting property"),
        ("summary of another time", "summary.json: digits_s has no std_cca"),
        ("summary without a model", "summary.json: sizes.0.models.guide.[key]: input should be"),
        ("sizes asked for", "asked.json: not the sizes of a study (1 validation error"),
        ("lost size", "study.db: has nothing of digits_s"),
    ],
)
def test_what_cannot_be_read_is_one_line(damage: str, message: str, study: Path, tmp_path: Path):
    shutil.copytree(study, tmp_path / "hand")
    database, summary = tmp_path / "hand" / "study.db", tmp_path / "hand" / "summary.json"
    for path in (tmp_path / "hand", database, summary):
        path.chmod(0o700)
    if damage == "text":
        database.write_text("not a database " * 100)
    elif damage == "another database":
        database.unlink()
        with sqlite3.connect(database) as connection:
            connection.execute("create table a (b)")
            connection.execute("create table alembic_version (version_num text)")
            connection.execute("insert into alembic_version values ('v99')")
    elif damage == "sizes asked for":
        (tmp_path / "hand" / "asked.json").write_text('{"sizes": 2}')
    elif damage == "summary":
        summary.write_text("{")
    elif damage == "summary of another time":
        (row,) = json.loads(OLD_SUMMARY)["sizes"]
        del row["std_cca"]
        summary.write_text(json.dumps({"sizes": [row]}))
    elif damage == "summary without a model":
        summary.write_text(summary.read_text().replace('"guided":', '"guide":', 1))
    elif damage == "lost size":
        with sqlite3.connect(database) as connection:
            connection.execute("update studies set study_name = replace(study_name, 'digits_s', 'digits_x')")
    storage = tmp_path / "nowhere" if damage == "no folder" else tmp_path
    with pytest.raises(ValueError, match=r".") as error:
        read_study(storage, "other" if damage == "unknown name" else "hand")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
