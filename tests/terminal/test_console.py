"""What the verbs print, on a terminal and elsewhere."""

import io
import re
import shlex
import subprocess
import sys
import threading
import tomllib
from importlib import import_module
from pathlib import Path

import pytest
from rich.progress import TaskID
from rich.text import Text

import cca_ray
from cca_ray.cli import VERBS, group
from cca_ray.terminal.console import Console, command, complete_space, complete_study, examples


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Of 80 columns."""
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": "1"}.items():
        monkeypatch.setenv(name, value)
    return Terminal()


def test_elsewhere_progress_is_a_line_every_quarter():
    stream = io.StringIO()
    console = Console(stream)
    for done in range(1, 101):
        console.progress("tokens", done, 100)
    assert [line.split(" s  ")[1] for line in stream.getvalue().splitlines()] == [
        "tokens  25 %", "tokens  50 %", "tokens  75 %", "tokens  100 %"
    ]  # fmt: skip


def test_a_note_is_said_beside_progress_with_the_time_left(monkeypatch: pytest.MonkeyPatch, terminal: Terminal):
    now = 0.0
    monkeypatch.setattr("cca_ray.terminal.console.time.monotonic", lambda: now)
    stream = io.StringIO()
    console = Console(stream)
    for done in range(41):
        now = 10.0 * done
        console.progress("model", done, 80)
        console.note(f"validation loss {5 - done / 10:.1f}")
    assert [line.split(" s  ")[1] for line in stream.getvalue().splitlines()] == [
        "model  1 %, validation loss 5.0, about 14 min left",
        "model  2 %, validation loss 4.9, about 13 min left",
        "model  5 %, validation loss 4.7, about 13 min left",
        "model  10 %, validation loss 4.3, about 12 min left",
        "model  17 %, validation loss 3.7, about 11 min left",
        "model  25 %, validation loss 3.1, about 10 min left",
        "model  32 %, validation loss 2.5, about 9 min left",
        "model  40 %, validation loss 1.9, about 8 min left",
        "model  47 %, validation loss 1.3, about 7 min left",
        "model  50 %, validation loss 1.1, about 7 min left",
    ]
    on_terminal = Console(terminal)
    on_terminal.note("validation loss 2.5")
    for total in (80, 40):  # it ends early
        on_terminal.progress("model", 40, total)
    on_terminal.close_bars()
    assert re.search(r"model .* 100 % 0:00:00 validation loss 2.5", terminal.getvalue())


def test_what_is_kept_below_is_gone_in_the_end_and_the_lines_stay(terminal: Terminal):
    console = Console(terminal)
    console.keep_below(lambda: Text("3 of 5 trials"), lambda: ("search", "3 of 5"))
    console.say("a line that is longer than the eighty columns of this terminal, and is not to be cut into two of them")
    console.clear()
    console.say("the next")
    text = terminal.getvalue()
    assert "3 of 5 trials" in text
    assert "longer than the eighty columns of this terminal, and is not to be cut into two of them\n" in text
    assert text.rstrip().endswith("the next")
    assert text.rindex("\x1b[2K") > text.rindex("3 of 5 trials")  # erased


def test_while_something_is_waited_for_a_terminal_counts_the_seconds(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
):
    now = 100.0
    monkeypatch.setattr("cca_ray.terminal.console.time.monotonic", lambda: now)
    console = Console(terminal)
    console.waiting("starting Ray")
    now = 103.4
    console.say("a line")
    assert console.live is not None
    console.live.refresh()
    console.progress("tokens", 1, 2)  # a bar takes its place
    assert console.live is None
    console.close_bars()
    assert "starting Ray, 3 s" in terminal.getvalue()


def test_progress_beside_what_another_thread_keeps_below_is_lines_and_leaves_one_bar(terminal: Terminal):
    """As `tune --side-by-side`: a base is made while another size is searched."""
    console = Console(terminal)
    console.progress("base", 1, 100)
    for done in range(2, 101):
        console.keep_below(lambda: Text("3 of 5 trials"), lambda: ("search", "3 of 5"))
        console.progress("base", done, 100)
    assert terminal.getvalue().count("━") < 50  # of one bar, which fills 80 columns with the rest
    assert [line.split("s  ")[1] for line in terminal.getvalue().splitlines() if "s  base" in line] == [
        "base  25 %", "base  50 %", "base  75 %", "base  100 %"
    ]  # fmt: skip
    console.clear()
    console.progress("base", 100, 100)
    assert console.bars is not None  # the next has them again
    console.close_bars()


@pytest.mark.parametrize("other", ["say", "keep_below"])
def test_bars_outlive_what_other_threads_do_to_them(terminal: Terminal, other: str):
    """A thread that comes between a bar's opening and its drawing waits."""
    console, came = Console(terminal), list[threading.Thread]()

    def come() -> None:
        if other == "say":
            console.say("MLflow is back")
        else:
            console.keep_below(lambda: Text("3 of 5 trials"), lambda: ("search", "3 of 5"))

    class Tasks(dict[str, TaskID]):
        def __contains__(self, what: object) -> bool:
            came.append(threading.Thread(target=come))
            came[-1].start()
            came[-1].join(0.3)
            return super().__contains__(what)

    console.tasks = Tasks()
    console.progress("base", 1, 100)
    came[0].join()
    console.clear()
    console.close_bars()


def test_elsewhere_nothing_is_kept_below():
    stream = io.StringIO()
    console = Console(stream)
    console.keep_below(lambda: Text("3 of 5 trials"), lambda: ("search", "3 of 5"))
    console.clear()
    assert stream.getvalue() == ""


def test_a_quiet_console_says_nothing(terminal: Terminal):
    for stream in (terminal, io.StringIO()):
        console = Console(stream, quiet=True)
        console.say("a line")
        console.progress("tokens", 1, 1)
        console.keep_below(lambda: Text("3 of 5 trials"), lambda: ("search", "3 of 5"))
        assert stream.getvalue() == ""


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_examples_that_its_parser_takes(verb: str):
    main = import_module(f"cca_ray.{verb}").main
    found = examples(main)
    assert found
    for line, _ in found:
        program, name, *arguments = shlex.split(line.split(" > ")[0])
        assert (program, name) == ("cca-ray", verb)
        assert command(main).make_context(verb, arguments).params


@pytest.mark.parametrize("verb", VERBS)
def test_the_list_of_verbs_says_what_they_say_themselves(verb: str):
    assert import_module(f"cca_ray.{verb}").main.__doc__.splitlines()[0] == VERBS[verb]


def test_help_shows_the_examples_within_80_columns(terminal: Terminal, capsys):
    for verb in VERBS:
        with pytest.raises(SystemExit, match=r"^0$"):
            group().main([verb, "--help"], prog_name="cca-ray")
        shown = capsys.readouterr().out
        assert f"Usage: cca-ray {verb} " in shown
        assert max(map(len, shown.splitlines())) <= 80
        for line, _ in examples(import_module(f"cca_ray.{verb}").main):
            assert line in shown


def test_the_main_command_says_what_each_option_is_by_default(terminal: Terminal, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        group().main(["tune", "--help"], prog_name="cca-ray")
    shown = capsys.readouterr().out
    own = command(import_module("cca_ray.tune").main).params
    valued = [
        option for option in own if not getattr(option, "is_flag", False) and option.name not in ("set_", "notify")
    ]
    assert len(valued) > 8
    assert shown.count("[default:") == len(valued)


def run_program(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`cca-ray ARGUMENTS`, with all that it imports on stderr."""
    here = {"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2]), "COLUMNS": "80", **environment}
    program = [sys.executable, "-X", "importtime", "-c", "from cca_ray.cli import main; main()"]
    return subprocess.run([*program, *arguments], cwd=cwd, env=here, capture_output=True, text=True, check=False)


def test_the_list_of_verbs_and_their_completion_import_nothing_heavy(tmp_path: Path):
    helped = run_program(cwd=tmp_path)
    completed = run_program(
        cwd=tmp_path, _CCA_RAY_COMPLETE="complete_bash", COMP_WORDS="cca-ray st", COMP_CWORD="1",
        _TYPER_COMPLETE_ARGS="cca-ray st",
    )  # fmt: skip
    assert "pretrain  Make a small base from images" in helped.stdout
    assert completed.stdout.split() == ["status"]
    for outcome in (helped, completed):
        assert outcome.returncode == 0
        for heavy in ("torch", "ray", "mlflow", "optuna"):
            assert f"| {heavy}\n" not in outcome.stderr


def test_the_version_is_that_of_the_package_and_imports_nothing_heavy(tmp_path: Path):
    outcome = run_program("--version", cwd=tmp_path)
    declared = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["version"]
    assert (outcome.returncode, outcome.stdout) == (0, f"cca_ray {declared}\n")
    assert cca_ray.__version__ == declared
    assert "| torch\n" not in outcome.stderr


def test_an_unknown_verb_is_one_line_and_exit_code_2(tmp_path: Path):
    outcome = run_program("tun", cwd=tmp_path)
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines()[-1] == "error: No such command 'tun'. Did you mean 'tune'?"


def test_the_shell_completes_spaces_and_studies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert complete_space("digits_") == ["digits_m", "digits_rar", "digits_s", "digits_var"]
    for name in ("mine", "my-other", "unrelated"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "study.db").touch()
    (tmp_path / "mlartifacts").mkdir()
    monkeypatch.setenv("CCA_RAY_STORAGE", str(tmp_path))
    assert complete_study("m") == ["mine", "my-other"]
