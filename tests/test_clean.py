"""What `clean` shows and deletes, and what the runs after it find."""

import fcntl
import os
import pty
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import optuna
import pytest
from optuna.trial import create_trial

from cca_ray import clean
from cca_ray.contracts import SizeSummary
from cca_ray.reporting.results import read_study
from cca_ray.search.accounts import COUNTED
from cca_ray.storage.mirror import exists, push, sizes_below
from cca_ray.storage.uris import local_path
from tests.buckets import CREDENTIALS, gs_server, s3_server
from tests.commands import invoke
from tests.conftest import MakeStudy
from tests.processes import wait_until
from tests.real_studies import run
from tests.studies import make_study as make_by_hand


def with_files(folder: Path, controls: int = 1, **settings: bool) -> Path:
    """A study made by hand: every trial has a checkpoint of 30 bytes, weights of 10 of its own, and a picture of 1."""
    make_by_hand(folder, completed=5, **settings)
    control = optuna.load_study(study_name=f"{folder.name}/digits_s/control", storage=f"sqlite:///{folder}/study.db")
    (first,) = control.trials
    for number in range(1, controls):
        kept = {**first.user_attrs, "key": f"digits_s-control-{number:04d}"}
        control.add_trial(create_trial(value=23.0, params={"learning_rate": 2e-3 + 1e-5 * number}, user_attrs=kept,
                                       distributions=first.distributions))  # fmt: skip
    for trial in read_study(folder.parent, folder.name).sizes[0].trials:
        own = folder / "trials" / trial.frozen.user_attrs["key"]
        own.mkdir(parents=True)
        (own / "checkpoint.pt").write_bytes(bytes(30))
        (own / "model.pt").write_text(f"{trial.frozen.user_attrs['key']:>10.10}"[:8] + f"{trial.number:02}")
        (own / "samples-000005.png").write_bytes(b"x")
    return folder


def weights(folder: Path) -> set[str]:
    return {path.parent.name for path in sizes_below(folder / "trials") if path.name == "model.pt"}


def finish_by_hand(folder: Path, widened: int = 0) -> str:
    """As a finished study: no trial is open, and the winner's weights are in the size's folder; its key.

    `widened`: by how many learning rates its control was.
    """
    storage = f"sqlite:///{folder / 'study.db'}"
    search = optuna.load_study(study_name=f"{folder.name}/digits_s/search", storage=storage)
    search.tell(len(search.trials) - 1, state=optuna.trial.TrialState.FAIL)
    control = optuna.load_study(study_name=f"{folder.name}/digits_s/control", storage=storage)
    control.set_user_attr(COUNTED, len(search.trials) + widened)
    winner: str = search.best_trial.user_attrs["key"]
    shutil.copyfile(folder / "trials" / winner / "model.pt", folder / "digits_s" / "winner.pt")
    return winner


def best(folder: Path, most: int) -> set[str]:
    trials = read_study(folder.parent, folder.name).sizes[0].of("search", "COMPLETE")
    return {t.frozen.user_attrs["key"] for t in sorted(trials, key=lambda t: t.frozen.value)[:most]}


def test_it_only_shows_unless_it_is_told_to_delete(tmp_path: Path, capsys):
    folder = with_files(tmp_path / "runs" / "one", finished=False)
    before, at = sizes_below(folder / "trials"), ["one", "--storage", str(tmp_path / "runs")]
    shown = invoke(clean.main, at, capsys)
    assert shown.code == 0, shown.err
    assert "--yes deletes them" in shown.out
    assert sizes_below(folder / "trials") == before

    done = invoke(clean.main, [*at, "--yes"], capsys)
    assert done.code == 0, done.err
    after = sizes_below(folder / "trials")
    gone = sum(before.values()) - sum(after.values())
    assert f"deleted {len(before) - len(after)} files, {gone} B" in done.out
    assert {str(path) for path in before.keys() - after.keys()} == {
        line.split()[-1] for line in shown.out.splitlines() if line.endswith(".pt")
    }
    finalists = read_study(folder.parent, "one").sizes[0].settings.score.finalists
    running = "digits_s-search-0007"
    assert weights(folder) == best(folder, finalists) | {"digits_s-control-0000", running}
    assert [path.parent.name for path in after if path.name == "checkpoint.pt"] == [running]
    assert sum(path.suffix == ".png" for path in after) == 9
    again = invoke(clean.main, [*at, "--yes"], capsys)
    assert again.out.startswith("one: nothing to delete")


ASKING = "import sys; from cca_ray import clean; from cca_ray.terminal.console import run; run(clean.main)"


@pytest.mark.parametrize(("key", "code"), [("\x03", 130), ("\x04", 130), ("n\n", 0)], ids=["Ctrl-C", "Ctrl-D", "no"])
def test_a_question_without_a_yes_deletes_nothing(tmp_path: Path, key: str, code: int):
    folder = with_files(tmp_path / "runs" / "one", finished=False)
    before = sizes_below(folder / "trials")
    pid, terminal = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # who runs the tests in the background may have it ignored
        os.execv(sys.executable, [sys.executable, "-c", ASKING, "one", "--storage", str(tmp_path / "runs")])
    shown = ""
    with suppress(OSError):  # the end of a terminal whose program has ended
        while part := os.read(terminal, 4096).decode():
            shown += part
            if shown.endswith("[y/N]: "):
                # Python notices a signal that comes just before it reads only after the next key.
                wait_until(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "S")
                os.write(terminal, key.encode())
    _, status = os.waitpid(pid, 0)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(status) == code, shown
    assert shown.splitlines()[-1] == "nothing was deleted"
    assert sizes_below(folder / "trials") == before


def test_of_a_finished_study_the_winner_is_kept_once_and_what_waits_for_mlflow(tmp_path: Path, capsys):
    folder = with_files(tmp_path / "runs" / "one")
    winner, at = finish_by_hand(folder), ["one", "--yes", "--storage", str(tmp_path / "runs")]
    waits = folder / "trials" / "digits_s-search-0006" / "model.pt"
    (folder / "mlflow-a.journal").write_text(f'{{"do": "pack", "files": {{"model": "{waits}"}}}}\n')
    assert invoke(clean.main, at, capsys).code == 0
    finalists = read_study(folder.parent, "one").sizes[0].settings.score.finalists
    assert weights(folder) == best(folder, finalists) - {winner} | {waits.parent.name}
    (folder / "mlflow-a.journal").write_text("")
    (folder / "digits_s" / "winner.pt").write_text("of another")
    assert invoke(clean.main, at, capsys).code == 0
    assert weights(folder) == best(folder, finalists) - {winner}


def test_of_a_finished_study_whose_control_was_widened_no_control_is_kept(tmp_path: Path, capsys):
    """The space gives four rates; two were tried beyond them, and more might be, which need the scores alone."""
    folder = with_files(tmp_path / "runs" / "one", controls=6)
    finish_by_hand(folder, widened=2)
    assert invoke(clean.main, ["one", "--yes", "--storage", str(tmp_path / "runs")], capsys).code == 0
    assert not any("control" in key for key in weights(folder))


def test_it_refuses_while_a_driver_is_at_work_and_where_there_is_no_study(tmp_path: Path, capsys):
    folder = with_files(tmp_path / "runs" / "one")
    at = ["--yes", "--storage", str(tmp_path / "runs")]
    before = sizes_below(folder / "trials")
    with (folder / "lock").open("w") as lock:
        lock.write("17 on host")
        lock.flush()
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = invoke(clean.main, ["one", *at], capsys)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "in use by process 17 on host" in refused.err
    assert sizes_below(folder / "trials") == before
    none = invoke(clean.main, ["two", *at], capsys)
    assert (none.code, none.err.count("\n")) == (2, 1)
    assert "no study here; there are: one" in none.err


@pytest.mark.parametrize("kind", ["file", "s3", "gs"])
def test_a_bucket_is_cleaned_as_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, kind: str):
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    plain = with_files(tmp_path / "runs" / "one", finished=False)
    servers = {"s3": s3_server, "gs": gs_server}
    if kind == "file":
        clean_bucket(plain, f"file://{tmp_path}/bucket/{{}}", monkeypatch, capsys)
        assert not (tmp_path / "bucket" / "runs" / "one" / "trials" / "digits_s-search-0006" / "model.pt").exists()
    else:
        with servers[kind]() as template:
            clean_bucket(plain, template, monkeypatch, capsys)


def clean_bucket(plain: Path, template: str, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    uri = template.format("runs")
    there = local_path(uri) / "one"
    shutil.copytree(plain, there)
    push(there)
    monkeypatch.setenv("CCA_RAY_CACHE", str(plain.parent / "another-cache"))
    for storage in (str(plain.parent), uri):
        done = invoke(clean.main, ["one", "--yes", "--storage", storage], capsys)
        assert done.code == 0, done.err
    there = local_path(uri) / "one"
    left = {str(path.relative_to(there)): size for path, size in sizes_below(there / "trials").items()}
    assert left == {str(path.relative_to(plain)): size for path, size in sizes_below(plain / "trials").items()}
    assert left
    assert not exists(there / "driver.json")


def shown(size: SizeSummary) -> dict[str, object]:
    """What must not depend on where the study lies and when it ran."""
    return size.model_dump(include={"models", "winner", "finalists", "trade_off", "settings", "trials", "protocol"})


def test_a_cleaned_study_ends_again_and_without_its_weights_says_so(
    tmp_path: Path, make_study: MakeStudy, ray_here: None, capsys
):
    folder, lines = tmp_path / "study", list[str]()
    first = run(folder, make_study, 2)
    assert invoke(clean.main, ["study", "--yes", "--storage", str(tmp_path)], capsys).code == 0
    winner = folder / "trials" / f"tiny-search-{first.winner.trial:04d}" / "model.pt"
    assert not winner.exists()
    assert run(folder, make_study, 2, lines) == first
    assert "tiny  the weights of tiny-control-0000 are missing; their stored scores are used" in lines

    shutil.rmtree(folder / "trials")  # by hand
    assert run(folder, make_study, 2) == first
    (folder / "tiny" / "winner.pt").write_bytes(b"of another")
    with pytest.raises(ValueError, match=f"tiny-search-{first.winner.trial:04d} won, but its weights are gone"):
        run(folder, make_study, 2)
    shutil.rmtree(folder / "scores")
    lines.clear()
    with pytest.raises(ValueError, match=r"weights that the final comparison needs are gone: .*/tiny-control-0000/"):
        run(folder, make_study, 8, lines)
    assert not any("fid" in line for line in lines)  # nothing was trained


@pytest.mark.nightly
def test_a_cleaned_study_goes_on_as_one_that_was_not(tmp_path: Path, make_study: MakeStudy, ray_here: None, capsys):
    folder, twin = tmp_path / "a" / "study", tmp_path / "b" / "study"
    folder.parent.mkdir()
    run(folder, make_study, 4)
    shutil.copytree(folder, twin)
    assert invoke(clean.main, ["study", "--yes", "--storage", str(folder.parent)], capsys).code == 0
    assert shown(run(folder, make_study, 5)) == shown(run(twin, make_study, 5))
