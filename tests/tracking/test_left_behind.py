"""Entries that cannot arrive: the others do, and what is left is sent once the cause is fixed."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cca_ray.tracking.journal import Journal
from tests.tracking.conftest import Make
from tests.tracking.experiments import contents, fill
from tests.tracking.servers import Server


def a_file(place: Path) -> None:
    place.write_text("in the way")


def no_folder(place: Path) -> None:
    """As one below a mount that is gone; a folder that may not be written to would not stop root."""
    place.symlink_to("/proc/no/such/folder")


def clear(place: Path) -> None:
    place.unlink()


@pytest.mark.parametrize("put", [a_file, no_folder])
def test_what_has_no_place_waits_and_the_rest_arrives(
    make: Make, lines: list[str], tmp_path: Path, picture: Path, put: Callable[[Path], None]
):
    journal, artifacts = tmp_path / "study" / "mlflow.journal", tmp_path / "artifacts"
    make().close(10)  # the experiment is there, and with it its place
    put(artifacts)
    tracker = make(journal=journal)
    fill(tracker, picture)
    tracker.close(20, patient=True)
    runs = {r.data.tags["cca_ray.key"]: r for r in tracker.client.search_runs([tracker.experiment_id])}
    assert {key: run.info.status for key, run in runs.items()} == {"parent": "FINISHED", "parent/child": "FAILED"}
    assert runs["parent/child"].data.params == {"lambda": "0.1"}
    assert len(tracker.client.get_metric_history(runs["parent/child"].info.run_id, "loss")) == 800
    assert not tracker.client.search_registered_models()  # no champion that cannot be loaded
    said = [line for line in lines if "could not log" in line]
    assert [line.split(":")[1].removeprefix(" could not log ") for line in said] == [
        "image grid.png of parent/child", "file grid.png of parent", "file grid.png of parent", "pack of parent/child",
    ]  # fmt: skip
    assert tracker.left.endswith(
        f"5 entries wait in {journal} (image ×1, file ×2, pack ×1, register ×1); "
        "once the cause is fixed, running the same command again sends them"
    )
    assert [json.loads(line)["do"] for line in journal.read_text().splitlines()] == [
        "image", "file", "file", "pack", "register",
    ]  # fmt: skip

    clear(artifacts)
    again = make(journal=journal)
    again.close(20, patient=True)
    assert (again.left, journal.read_text()) == ("", "")
    direct = make(journal=None)
    before = contents(direct, of_run=False)
    fill(direct, picture)  # as if nothing had been in the way
    assert direct.flush(60)
    assert contents(direct, of_run=False) == before
    model = Path(direct.client.get_model_version_download_uri("digits", "1").removeprefix("file://"))
    assert (model / "MLmodel").is_file()
    assert (model / "data" / "champion" / "model" / "grid.png").is_file()


def test_what_is_mended_before_the_end_is_sent_at_the_end(make: Make, tmp_path: Path, picture: Path):
    artifacts = tmp_path / "artifacts"
    make().close(10)
    a_file(artifacts)
    tracker = make(journal=tmp_path / "study" / "mlflow.journal")
    tracker.run("study", "study")
    tracker.file("study", picture)
    assert tracker.flush(20)
    assert tracker.trouble == "1 entries did not arrive"
    clear(artifacts)
    tracker.close(20, patient=True)
    assert (tracker.left, tracker.trouble) == ("", "")
    assert [f.path for f in tracker.client.list_artifacts(tracker.run_id("study"))] == ["grid.png"]


def test_what_belongs_to_a_run_that_could_not_be_made_waits_with_it(make: Make, lines: list[str], tmp_path: Path):
    journal = tmp_path / "study" / "mlflow.journal"
    tracker = make(journal=journal)
    tracker.run("study", "study")
    tracker.run("study/bad", "bad", "nobody")
    tracker.run("study/bad/below", "below", "study/bad")
    tracker.metrics("study/bad", {1: {"loss": 1.0}})
    tracker.run("study/good", "good", "study")
    tracker.metrics("study/good", {1: {"loss": 1.0}})
    tracker.close(20, patient=True)
    assert [line.split(":")[1] for line in lines[:-1]] == [" could not log run of study/bad"]
    assert "3 entries wait" in lines[-1]
    assert [json.loads(line)["key"] for line in journal.read_text().splitlines()] == [
        "study/bad", "study/bad/below", "study/bad",
    ]  # fmt: skip
    assert tracker.run_id("study/good")


def test_steps_that_were_refused_once_are_not_lost_behind_later_ones(make: Make, tmp_path: Path):
    journal = tmp_path / "study" / "mlflow.journal"
    tracker = make(journal=journal)
    tracker.run("study", "study")
    tracker.run("study/child", "child", "study")
    tracker.metrics("study/child", {step: {"loss": step / 7} for step in range(1, 4)})
    tracker.metrics("study/child", {step: {"loss": step / 7, "bad\nname": 1.0} for step in range(4, 7)})
    tracker.metrics("study/child", {step: {"loss": step / 7} for step in range(7, 10)})
    tracker.close(20)
    waiting = journal.read_text()
    assert len(waiting.splitlines()) == 1
    journal.write_text(waiting.replace("bad\\nname", "good"))
    for _ in range(2):
        again = make(journal=journal)
        again.metrics("study/child", {step: {"loss": step / 7} for step in range(1, 10)})
        again.close(20)
        assert again.left == ""
    history = again.client.get_metric_history(again.run_id("study/child"), "loss")
    assert sorted((m.step, m.value) for m in history) == [(step, step / 7) for step in range(1, 10)]


def test_an_experiment_that_was_deleted_for_good_is_told_of_and_made_anew(make: Make, lines: list[str], tmp_path: Path):
    journal = tmp_path / "study" / "mlflow.journal"
    tracker = make(journal=journal)
    tracker.run("study", "study")
    assert tracker.flush(20)
    tracker.client.delete_experiment(tracker.experiment_id)
    tracker.run("study/child", "child", "study")
    tracker.tags("study/child", {"a": "b"})
    tracker.close(20, patient=True)
    assert "could not log run of study/child" in lines[0]
    assert "2 entries wait" in tracker.left
    tracker.client.restore_experiment(tracker.experiment_id)
    again = make(journal=journal)
    again.close(20, patient=True)
    assert again.left == ""
    assert again.run_id("study/child")


@pytest.mark.timeout(240)
def test_a_server_that_cannot_keep_files_takes_the_rest(server: Server, make: Make, tmp_path: Path, picture: Path):
    """It answers 500 to each, which might pass."""
    place = server.folder / "artifacts"
    if place.exists():
        place.rename(server.folder / "aside")
    a_file(place)
    tracker = make(server.url, tmp_path / "study" / "mlflow.journal")
    tracker.run("study", "study")
    for _ in range(4):
        tracker.file("study", picture)
    tracker.tags("study", {"a": "b"})
    tracker.end("study", "COMPLETE")
    tracker.close(20, patient=True)
    assert "file ×4" in tracker.left
    clear(place)
    again = make(server.url, tmp_path / "study" / "mlflow.journal")
    again.close(20, patient=True)
    assert again.left == ""
    run = again.client.get_run(tracker.run_id("study"))
    assert (run.info.status, run.data.tags["a"]) == ("FINISHED", "b")
    assert [f.path for f in again.client.list_artifacts(tracker.run_id("study"))] == ["grid.png"]


def test_a_journal_keeps_what_was_set_aside(tmp_path: Path):
    path = tmp_path / "study" / "journal"
    journal = Journal(path)
    for at in range(4):
        journal.append({"do": "metrics", "at": at})
    for arrived in (True, False, True, False):
        journal.pop(arrived)
    journal.append({"do": "metrics", "at": 4})
    assert [entry["at"] for entry in Journal(path).entries] == [1, 3, 4]  # as after a kill
    journal.pop()
    assert [entry["at"] for entry in Journal(path).entries] == [1, 3]
    assert journal.take_up() == 2
    assert [entry["at"] for entry in Journal(path).entries] == [1, 3]
    journal.pop()
    journal.pop(arrived=False)
    assert [entry["at"] for entry in Journal(path).entries] == [3]
    journal.take_up()
    journal.pop()
    assert path.read_bytes() == b""


def test_what_was_set_aside_never_undoes_what_came_after_it(tmp_path: Path):
    path = tmp_path / "study" / "journal"
    journal = Journal(path)

    def pop(arrived: bool, do: str, **content: object) -> None:
        journal.append({"do": do, **content})
        journal.pop(arrived)

    pop(False, "tags", key="a", tags={"note": "Running", "other": "1"})
    pop(False, "tags", key="a", tags={"note": "Running still"})
    pop(False, "tags", key="b", tags={"note": "of another run"})
    pop(False, "end", key="a", state="INTERRUPTED")
    pop(False, "register", key="a/1", name="digits", alias="champion")
    pop(False, "register", key="c/1", name="another", alias="champion")
    assert len(journal.aside) == 6
    pop(True, "tags", key="a", tags={"note": "better"})
    pop(True, "end", key="a", state="COMPLETE")
    pop(True, "register", key="a/2", name="digits", alias="champion")  # a newer winner keeps the alias
    left = [
        {"do": "tags", "key": "a", "tags": {"other": "1"}},
        {"do": "tags", "key": "b", "tags": {"note": "of another run"}},
        {"do": "register", "key": "c/1", "name": "another", "alias": "champion"},
    ]
    assert journal.aside == list(Journal(path).entries) == left
    pop(True, "tags", key="a", tags={"other": "2"})
    assert list(Journal(path).entries) == left[1:]
    journal.take_up()
    journal.pop()
    journal.pop()
    assert path.read_bytes() == b""


def test_a_note_that_was_refused_is_not_sent_after_the_verdict(make: Make, tmp_path: Path, monkeypatch):
    tracker = make(journal=tmp_path / "study" / "mlflow.journal")
    tracker.run("study", "study")
    assert tracker.flush(20)
    with monkeypatch.context() as refused:
        refused.setattr(tracker.client, "log_batch", lambda *a, **k: (_ for _ in ()).throw(ValueError("403")))
        tracker.tags("study", {"mlflow.note.content": "Running", "kept": "yes"})
        assert tracker.flush(20)
    tracker.note("study", "better than guided")
    tracker.close(20, patient=True)
    tags = tracker.client.get_run(tracker.run_id("study")).data.tags
    assert (tracker.left, tags["mlflow.note.content"], tags["kept"]) == ("", "better than guided", "yes")


def test_a_journal_names_files_so_that_its_storage_can_move(tmp_path: Path):
    storage, elsewhere = tmp_path / "runs", tmp_path / "elsewhere.png"
    grid, tokenizer = storage / "study" / "trials" / "λ 1" / "grid.png", storage / "bases" / "b" / "tokenizer.pt"
    for file in (grid, tokenizer, elsewhere):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    journal = Journal(storage / "study" / "journal")
    names = [journal.name(file) for file in (grid, tokenizer, elsewhere)]
    assert names == ["trials/λ 1/grid.png", "../bases/b/tokenizer.pt", str(elsewhere)]
    for name in ("archive", "deep/er/archive"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(storage, tmp_path / name)
        moved = Journal(tmp_path / name / "study" / "journal")
        assert [moved.find(name) for name in names] == [
            str(tmp_path / name / "study" / "trials" / "λ 1" / "grid.png"),
            str(tmp_path / name / "bases" / "b" / "tokenizer.pt"),
            str(elsewhere),
        ]
    shutil.rmtree(storage)
    whole = [str(grid), str(tokenizer), str(storage / "not" / "there")]  # as earlier versions wrote them
    assert [moved.find(name) for name in whole] == [
        *(str(moved.path.parent.parent / file.relative_to(storage)) for file in (grid, tokenizer)),
        str(storage / "not" / "there"),
    ]
