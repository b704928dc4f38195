"""The user's command is told of a study's end, whatever that was, and what is wrong with the command is told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cca_ray import tune
from cca_ray.errors import ConfigError
from cca_ray.terminal.notify import news_of, notify
from tests.commands import invoke
from tests.studies import summary_of


def test_the_command_reads_the_outcome(tmp_path: Path):
    heard = tmp_path / "heard"
    news = news_of("digits", "runs/digits", [summary_of(fid=17.1)], [])
    assert notify(f"cat > {heard}", news) == ""
    content = json.loads(heard.read_text())
    assert (content["event"], content["study"]) == ("finished", "digits")
    assert content["sizes"] == {"digits_s": {"guided": "better", "control": "better"}}
    assert content["headline"].startswith("Against the guided base: ✓ better: digits_s.")
    assert content["next"] == [
        "digits_s: better than both: use winner.pt",
        "one training seed per size: --replicates 2 adds training noise",
    ]
    assert news_of("a", "b", [summary_of()], ["no report"]).event == "incomplete"


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo no such host >&2; exit 3", "--notify: the command ended with exit code 3: no such host"),
        ("exit 1", "--notify: the command ended with exit code 1"),
        ("", ""),
        (r"printf '\377\330\377'", ""),  # bytes that are no UTF-8
        (r"printf 'caf\351\n' >&2; exit 3", "--notify: the command ended with exit code 3: caf\ufffd"),
        ("true\0", "--notify: the command cannot be run: embedded null byte"),
    ],
)
def test_a_command_that_fails_is_a_line(command: str, told: str):
    assert notify(command, news_of("digits", "runs/digits", [], ["away"], "failed")) == told


def test_a_folder_whose_name_is_not_utf_8_is_told(tmp_path: Path):
    heard, folder = tmp_path / "heard", os.fsdecode(b"runs/caf\351")
    assert notify(f"cat > {heard}", news_of("digits", folder, [], ["away"], "failed")) == ""
    assert json.loads(heard.read_text())["folder"] == folder


PROGRAM = """
from cca_ray.terminal.notify import news_of, notify

print(repr(notify("cat > heard", news_of("digits", "runs/digits", [], ["\\u03bb is away"], "failed"))))
"""


def test_the_news_are_utf_8_also_in_a_locale_that_is_not(tmp_path: Path):
    here = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env={**os.environ, **here}, check=True)
    assert "λ is away" in (tmp_path / "heard").read_text(encoding="utf-8")


@pytest.mark.parametrize("fault", [UnicodeDecodeError("utf-8", b"\351", 0, 1, "x"), RuntimeError("a fault of ours")])
def test_no_fault_of_telling_replaces_what_ended_a_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault):
    def tell(*_: object) -> str:
        raise fault

    monkeypatch.setattr(tune, "tell", tell)
    for ending in (KeyboardInterrupt(), ConfigError("digits_s: no trial was completed")):
        with pytest.raises(type(ending)) as raised, tune.telling_trouble("true", tmp_path, ""):
            raise ending
        assert raised.value is ending


def run_tune(ending: BaseException | tune.Found, command: str, folder: Path, monkeypatch, capsys):
    """A study whose search ends so."""

    def search(*arguments: object) -> tune.Found:
        if isinstance(ending, BaseException):
            raise ending
        return ending

    monkeypatch.setattr(tune, "search", search)
    return invoke(tune.main, ["digits_s", "--storage", str(folder / "runs"), "--notify", command], capsys)


def test_whatever_ends_a_study_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    heard = tmp_path / "heard"
    for ending, event, code in (
        (ConfigError("digits_s: no trial was completed"), "failed", 2),
        (KeyboardInterrupt(), "interrupted", 130),
        (tune.Found(tmp_path, [summary_of()], tmp_path / "report.html", "mlflow ui", "", ""), "finished", 0),
        (tune.Found(tmp_path, [summary_of()], None, "mlflow ui", "no report", ""), "incomplete", 1),
    ):
        outcome = run_tune(ending, f"cat > {heard}", tmp_path, monkeypatch, capsys)
        content = json.loads(heard.read_text())
        assert (content["event"], outcome.code) == (event, code)
    assert content["trouble"] == ["no report"]


def test_a_study_whose_news_could_not_be_told_exits_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys):
    found = tune.Found(tmp_path, [summary_of()], tmp_path / "report.html", "mlflow ui", "", "")
    outcome = run_tune(found, "exit 4", tmp_path, monkeypatch, capsys)
    assert (outcome.code, outcome.err) == (1, "error: --notify: the command ended with exit code 4\n")
