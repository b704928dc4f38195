import shutil
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from mlflow.entities import Run

from cca_ray.tracking.journal import Journal
from cca_ray.tracking.store import KEY
from cca_ray.tracking.tracker import Tracker
from tests.ports import free_port
from tests.processes import begin, wait_until
from tests.tracking.conftest import Make
from tests.tracking.experiments import contents, fill, win
from tests.tracking.servers import Server


@pytest.fixture(params=["sqlite", "server"])
def tracker(request: pytest.FixtureRequest, make: Make) -> Tracker:
    return make(request.getfixturevalue("server").url) if request.param == "server" else make()


def run_of(tracker: Tracker, key: str) -> Run:
    run_id = tracker.run_id(key)
    assert run_id is not None
    return tracker.client.get_run(run_id)


def steps_of(tracker: Tracker, key: str, metric: str = "loss") -> list[int]:
    return [m.step for m in tracker.client.get_metric_history(tracker.run_id(key), metric)]


def test_a_database_and_a_server_keep_the_same(tracker: Tracker, picture: Path):
    child = "study/size/trial-0"
    tracker.run("study/size", "size", tags={"study": "study"})
    tracker.run(child, "λ=3 lr=5e-3", "study/size")
    tracker.params(child, {"lambda": 3.0, "learning_rate": 5e-3})
    tracker.params(child, {"lambda": 3.0})
    tracker.metrics(child, {1: {"loss": 2.0}, 2: {"loss": float("nan"), "fid": 12.5, "margin": -float("inf")}})
    tracker.image(child, "samples", picture, step=2)
    tracker.image(child, "samples", picture, step=2)
    tracker.file("study/size", picture)
    tracker.end(child, "PRUNED", "not among the best")
    tracker.end("study/size", "COMPLETE")
    assert tracker.flush(60)

    run = run_of(tracker, child)
    assert run.info.status == "KILLED"
    assert run.data.params == {"lambda": "3.0", "learning_rate": "0.005"}
    assert run.data.metrics == {"loss": 2.0, "fid": 12.5}
    assert run.data.tags["mlflow.parentRunId"] == tracker.run_id("study/size")
    assert (run.data.tags["state"], run.data.tags["reason"]) == ("PRUNED", "not among the best")
    assert steps_of(tracker, child, "fid") == [2]
    images = [f.path for f in tracker.client.list_artifacts(run.info.run_id, "images")]
    assert sorted(Path(path).suffix for path in images) == [".png", ".webp"]
    parent = run_of(tracker, "study/size")
    assert [f.path for f in tracker.client.list_artifacts(parent.info.run_id)] == ["grid.png"]
    assert parent.info.status == "FINISHED"


def test_the_run_of_a_key_is_found_again_and_reopened(tracker: Tracker, make: Make):
    tracker.run("study/size", "the size's")
    tracker.end("study/size", "INTERRUPTED")
    assert tracker.flush(60)
    assert run_of(tracker, "study/size").info.status == "KILLED"
    again = make(tracker.uri)
    again.run("study/size", "the size's")
    again.run("study/it's other", "other")
    again.run("study/it's other", "other")
    assert again.flush(60)
    assert again.run_id("study/size") == tracker.run_id("study/size")
    assert run_of(again, "study/size").info.status == "RUNNING"
    assert len(again.client.search_runs([again.experiment_id])) == 2
    assert tracker.run_id("study/it's other") is None


def test_a_long_history_is_kept_whole_and_steps_that_come_again_are_left_out(tracker: Tracker, make: Make):
    rows = {step: {"loss": step / 7, "margin": step / 3} for step in range(1700)}
    tracker.run("parent", "parent")
    tracker.run("child", "child", "parent")
    tracker.metrics("child", {step: rows[step] for step in range(1500)})
    tracker.metrics("child", {step: rows[step] for step in range(1400, 1600)})
    assert tracker.flush(60)
    resumed = make(tracker.uri)
    resumed.run("child", "child", "parent")
    resumed.metrics("child", {step: rows[step] for step in range(1300, 1700)})
    assert resumed.flush(60)
    for metric in ("loss", "margin"):
        assert steps_of(resumed, "child", metric) == list(range(1700))


def test_a_deleted_experiment_is_said_at_once(make: Make):
    tracker = make()
    tracker.client.delete_experiment(tracker.experiment_id)
    with pytest.raises(ValueError, match="was deleted"):
        make()


@pytest.mark.parametrize("kind", ["folder", "nobody there", "no database", "no driver"])
def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path, kind: str):
    (tmp_path / "mlflow.db").write_text("not a database " * 100)
    uri = {
        "folder": str(tmp_path / "mlruns"),  # MLflow no longer takes folders
        "nobody there": f"http://127.0.0.1:{free_port()}",
        "no database": f"sqlite:///{tmp_path / 'mlflow.db'}",
        "no driver": "postgresql://127.0.0.1/mlflow",
    }[kind]
    with pytest.raises(ValueError, match="cannot be used") as error:
        Tracker(uri, "study", journal=tmp_path / "journal")
    assert "\n" not in str(error.value)


def test_a_journal_that_cannot_be_used_is_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match=r"journal .* cannot be used"):
        Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "study", journal=tmp_path)


def test_the_way_to_browse_is_a_command_or_an_address(tracker: Tracker):
    assert tracker.browse.startswith(("http://127.0.0.1:", "mlflow server --backend-store-uri sqlite:///"))


def test_what_cannot_be_logged_is_said_and_holds_nothing_up(make: Make, lines: list[str], tmp_path: Path):
    (tmp_path / "torn.png").write_bytes(b"\x89PNG")
    tracker = make()
    tracker.run("study", "study")
    tracker.params("study", {"lambda": 3})
    tracker.params("study", {"lambda": 4})
    tracker.image("study", "samples", tmp_path / "nowhere.png", 1)
    tracker.image("study", "samples", tmp_path / "torn.png", 1)
    tracker.file("study", tmp_path / "nowhere.pt")
    tracker.tags("nobody", {"a": "b"})
    tracker.metrics("study", {1: {"no\nname": 1.0}})
    tracker.metrics("study", {1: {"loss": 1.0}})
    tracker.end("study", "COMPLETE")
    assert tracker.flush(60)
    run = run_of(tracker, "study")
    assert (run.info.status, run.data.params, run.data.metrics) == ("FINISHED", {"lambda": "3"}, {"loss": 1.0})
    refused = ["params of study", "image nowhere.png of study", "image torn.png of study", "file nowhere.pt of study",
               "tags of nobody", "metrics of study"]  # fmt: skip
    assert [line.split(":")[1] for line in lines] == [f" could not log {what}" for what in refused]
    assert tracker.trouble == "6 entries did not arrive"
    assert not any("\n" in line for line in lines)


def test_a_terminal_that_is_gone_stops_nothing(tmp_path: Path):
    def say(line: str) -> None:
        raise BrokenPipeError

    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "study", say=say)
    tracker.tags("nobody", {"a": "b"})
    tracker.run("study", "study")
    assert tracker.flush(60)
    assert tracker.run_id("study")
    tracker.close(10)


def test_a_journal_keeps_whole_lines(tmp_path: Path):
    path = tmp_path / "folder" / "journal"
    journal = Journal(path)
    for at in range(3):
        journal.append({"do": "end", "at": at})
    with path.open("ab") as file:
        file.write(b'{"do": "end", "a')  # killed in the middle of a write
    again = Journal(path)
    assert [entry["at"] for entry in again.entries] == [0, 1, 2]
    again.append({"do": "end", "at": 3})
    last = Journal(path)
    assert [entry["at"] for entry in last.entries] == [0, 1, 2, 3]
    for _ in range(3):
        last.pop()
    assert len(Journal(path).entries) == 4  # the file is emptied as a whole
    last.pop()
    assert path.stat().st_size == 0


@pytest.mark.parametrize("kind", ["sqlite", "server"])
def test_a_journal_that_is_applied_again_changes_nothing(
    request: pytest.FixtureRequest, make: Make, kind: str, tmp_path: Path, picture: Path
):
    """And a database that is locked by another for a moment is waited for."""
    journal, database, uri = tmp_path / "journal", tmp_path / "mlflow.db", f"sqlite:///{tmp_path / 'mlflow.db'}"
    if kind == "server":
        server = request.getfixturevalue("server")
        database, uri = server.folder / "mlflow.db", server.url
    tracker = make(uri, journal)
    with closing(sqlite3.connect(database, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        fill(tracker, picture)
        assert not tracker.flush(0.1)
        shutil.copy(journal, tmp_path / "copy")
        other.execute("ROLLBACK")
    assert tracker.flush(60)
    assert journal.stat().st_size == 0
    tracker.close(10)
    before = contents(tracker)
    assert len(before) == 2 + 4

    lines = (tmp_path / "copy").read_bytes().splitlines(keepends=True)
    assert len(lines) == 17
    for kept in (lines, lines[3:], lines[11:], lines[14:], lines[-1:]):
        journal.write_bytes(b"".join(kept))
        again = make(uri, journal)
        assert again.flush(60)
        again.close(10)
        assert contents(again) == before
    assert journal.stat().st_size == 0


def test_an_image_that_was_logged_half_is_logged_whole(make: Make, tmp_path: Path, picture: Path):
    tracker = make()
    fill(tracker, picture)
    assert tracker.flush(60)
    (small,) = tmp_path.glob("artifacts/**/*.webp")
    small.unlink()
    tracker.client.delete_tag(tracker.run_id("parent/child"), "mlflow.loggedImages")
    again = make()
    again.image("parent/child", "samples", picture, 2)
    assert again.flush(60)
    assert len(list(tmp_path.glob("artifacts/**/*.webp"))) == 1
    assert "mlflow.loggedImages" in run_of(again, "parent/child").data.tags


def test_a_model_that_was_packed_or_registered_half_is_made_whole(tracker: Tracker, picture: Path):
    tracker.run("parent", "parent")
    tracker.run("parent/child", "child", "parent")
    win(tracker, "parent/child", picture, "half")
    assert tracker.flush(60)
    before, client = contents(tracker), tracker.client
    ((model_id, packed),) = before["models"].items()
    assert "mlflow.model.isExternal" not in packed["tags"]
    client.set_logged_model_tags(model_id, {"mlflow.model.isExternal": "true"})
    client.delete_registered_model_alias("half", "champion")
    client.delete_model_version_tag("half", "1", "cca_ray.crowned")
    win(tracker, "parent/child", picture, "half")
    assert tracker.flush(60)
    assert contents(tracker) == before


def test_a_new_winner_takes_the_alias_and_a_study_that_is_run_again_only_from_its_own(tracker: Tracker, picture: Path):
    def champion(key: str) -> str:
        win(tracker, key, picture, "contested")
        assert tracker.flush(60)
        return str(tracker.client.get_registered_model("contested").aliases["champion"])

    for study in ("one", "two"):
        tracker.run(study, study)
        for trial in ("a", "b"):
            tracker.run(f"{study}/{trial}", trial, study)
    assert [champion(key) for key in ("one/a", "one/b", "one/a", "two/a", "one/a", "one/b", "two/a")] == [
        "1", "2", "1", "3", "3", "3", "3",
    ]  # fmt: skip
    tracker.client.set_registered_model_alias("contested", "champion", "2")  # by hand
    assert champion("two/a") == "2"
    assert len(tracker.client.search_model_versions("name = 'contested'")) == 3


def test_a_version_has_the_scores_of_the_last_registration(make: Make, picture: Path):
    tracker = make()
    tracker.run("parent", "parent")
    tracker.run("parent/child", "child", "parent")
    win(tracker, "parent/child", picture, "again")
    tags = {KEY: "parent", "fid": "5.4", "std": "0.6"}  # of more replicates
    tracker.register("parent/child", "again", "champion", "FID 5.4", tags)
    assert tracker.flush(60)
    version = tracker.client.get_model_version("again", "1")
    assert (version.description, version.tags) == ("FID 5.4", {**tags, "cca_ray.crowned": "true"})


def test_what_someone_wrote_about_the_experiment_stays(tracker: Tracker):
    tracker.describe({"mlflow.note.content": "ours"})
    assert tracker.flush(60)
    tracker.client.set_experiment_tag(tracker.experiment_id, "mlflow.note.content", "theirs")
    tracker.describe({"mlflow.note.content": "ours", "more": "said"})
    assert tracker.flush(60)
    tags = tracker.client.get_experiment(tracker.experiment_id).tags
    assert (tags["mlflow.note.content"], tags["more"]) == ("theirs", "said")


def test_figures_of_a_parent_that_are_found_again_are_not_logged_again(tracker: Tracker):
    tracker.run("parent", "parent")
    for fid in (1 / 3, 1 / 3, 0.25):
        tracker.metrics("parent", {10: {"fid_cca": fid, "fid_base": 0.5}})
        assert tracker.flush(60)
    assert steps_of(tracker, "parent", "fid_cca") == [10, 10]
    assert steps_of(tracker, "parent", "fid_base") == [10]


def test_settle_closes_what_a_killed_driver_left(make: Make, lines: list[str]):
    killed = make()
    below, beside = "study/digits_s", "study/digits-s"
    killed.run(below, "parent")
    for trial in ("complete", "orphan", "wrong", "right", "interrupted"):
        killed.run(f"{below}/{trial}", trial, below)
    killed.run(f"{beside}/running", "of another study")
    killed.end(f"{below}/wrong", "INTERRUPTED")
    killed.end(f"{below}/right", "FAIL", "diverged")
    killed.end(f"{below}/interrupted", "INTERRUPTED")
    assert killed.flush(60)

    tracker = make()
    tracker.run(below, "parent")
    states = {"complete": ["COMPLETE", ""], "wrong": ["PRUNED", "not among the best"], "right": ["FAIL", "diverged"]}
    for _ in range(2):
        tracker.settle(below, {f"{below}/{trial}": state for trial, state in states.items()})
    assert tracker.flush(60)
    runs = tracker.client.search_runs([tracker.experiment_id])
    assert {r.data.tags["cca_ray.key"]: (r.info.status, r.data.tags.get("state")) for r in runs} == {
        below: ("RUNNING", None),
        f"{below}/complete": ("FINISHED", "COMPLETE"),
        f"{below}/orphan": ("KILLED", "INTERRUPTED"),
        f"{below}/wrong": ("KILLED", "PRUNED"),
        f"{below}/right": ("FAILED", "FAIL"),
        f"{below}/interrupted": ("KILLED", "INTERRUPTED"),
        f"{beside}/running": ("RUNNING", None),
    }
    assert lines == ["MLflow: closed 3 runs that a killed study had left open"]


def test_a_server_that_dies_and_comes_back_has_everything_once(
    server: Server, make: Make, lines: list[str], tmp_path: Path, picture: Path
):
    tracker = make(server.url, tmp_path / "journal")
    tracker.run("parent", "parent")
    tracker.run("child", "child", "parent")
    for step in range(150):
        tracker.metrics("child", {step: {"loss": step / 7}})
        if step == 50:
            wait_until(lambda: bool(tracker.run_id("child")))
            server.kill()  # in the middle of writing
    tracker.image("child", "samples", picture, 2)
    tracker.end("child", "COMPLETE")
    assert not tracker.flush(0.5)
    assert [line for line in lines if "does not answer" in line] == lines
    assert len(lines) == 1
    assert str(tmp_path / "journal") in lines[0]

    server.start()
    assert tracker.flush(60)
    assert steps_of(tracker, "child") == list(range(150))
    assert run_of(tracker, "child").info.status == "FINISHED"

    server.kill()  # and the end waits for what is on its way, though it takes longer than a server may be silent
    for step in range(150, 400):
        tracker.metrics("child", {step: {"loss": step / 7}})
    assert not tracker.flush(0.1)
    server.start()
    tracker.close(0.5, patient=True)
    assert (tmp_path / "journal").read_text() == ""
    assert steps_of(tracker, "child") == list(range(400))
    assert len(tracker.client.list_artifacts(tracker.run_id("child"), "images")) == 2
    assert lines[1].startswith("MLflow is back; sent ")
    assert (tmp_path / "journal").stat().st_size == 0


DRIVER = """
import sys, time
from pathlib import Path
from cca_ray.tracking.tracker import Tracker
tracker = Tracker(sys.argv[1], sys.argv[2], journal=Path(sys.argv[3]))
tracker.metrics("child", {step: {"loss": step / 7} for step in range(50, 200)})
tracker.end("child", "PRUNED", "not among the best")
tracker.run("other", "other", "parent")
print("written", flush=True)
time.sleep(600)
"""


def test_what_a_killed_driver_could_not_send_is_sent_by_the_next(
    server: Server, make: Make, lines: list[str], tmp_path: Path
):
    journal = tmp_path / "journal"
    first = make(server.url, journal)
    first.run("parent", "parent")
    first.run("child", "child", "parent")
    first.metrics("child", {step: {"loss": step / 7} for step in range(100)})
    assert first.flush(60)
    first.close(10)
    server.kill()

    arguments = [sys.executable, "-c", DRIVER, server.url, f"study {tmp_path.name}", str(journal)]
    driver = begin(arguments, stdout=subprocess.PIPE)
    assert driver.stdout is not None
    assert driver.stdout.readline() == b"written\n"
    driver.kill()
    assert driver.wait(20) == -signal.SIGKILL
    with journal.open("ab") as file:
        file.write(b'{"do": "end", "key": "chi')

    away = make(server.url, journal)  # once more without the server
    away.tags("other", {"size": "s"})
    assert not away.flush(0.5)
    assert away.experiment_id == ""
    away.close(0.1)
    assert lines == [
        f"MLflow at {server.url} does not answer; entries are kept in {journal} and sent when it is back",
        f"MLflow: sending 3 entries that an earlier process left in {journal}",
        f"MLflow at {server.url} does not answer; 4 entries wait in {journal}; "
        "running the same command again sends them",
    ]
    with pytest.raises(ValueError, match="cannot be used"):
        Tracker(server.url, "another experiment", journal=journal)

    server.start()
    tracker = make(server.url, journal)
    assert tracker.flush(60)
    assert steps_of(tracker, "child") == list(range(200))
    assert run_of(tracker, "child").data.tags["state"] == "PRUNED"
    assert run_of(tracker, "other").data.tags["size"] == "s"
    assert journal.stat().st_size == 0


def test_a_password_in_the_uri_is_taken_and_never_shown(server: Server, make: Make, tmp_path: Path, lines: list[str]):
    journal = tmp_path / "kept" / "mlflow.journal"
    tracker = make(server.url.replace("://", "://user:geheim@"), journal)
    tracker.run("study", "study")
    assert tracker.flush(60)
    server.kill()
    tracker.tags("study", {"a": "b"})
    wait_until(lambda: bool(tracker.trouble))
    shown = [*lines, tracker.browse, tracker.trouble, tracker.uri, *(p.read_text() for p in journal.parent.iterdir())]
    assert "does not answer" in tracker.trouble
    assert "user:***@127.0.0.1" in tracker.trouble
    assert not any("geheim" in text for text in shown)
