"""What a program writes to never ends it."""

import io
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from cca_ray.cluster.ray_compat import ERRORS_THREAD
from cca_ray.terminal.console import Console
from cca_ray.terminal.stream import Lenient, native_stderr_to

PROGRAM = """
import sys
import typer
from cca_ray.terminal.console import Console, run

def main() -> None:
    console = Console()
    for i in range(20000):
        console.say(f"λ={i} ± 0.1 × the guided base")
    print("the table")
    open(sys.argv[1] if len(sys.argv) > 1 else "done", "w").write("done")

run(main)
"""
ROOT = Path(__file__).parents[2]


class Broken(io.StringIO):
    """Fails from the second write on."""

    def __init__(self, error: Exception):
        super().__init__()
        self.error, self.writes = error, 0

    def write(self, text: str) -> int:
        self.writes += 1
        if self.writes > 1:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize(
    "error", [BrokenPipeError(32, "pipe"), OSError(28, "full"), OSError(5, "gone"), ValueError("x")]
)
def test_a_write_that_fails_raises_nothing_and_is_kept(error: Exception):
    stream = Lenient(Broken(error))
    for _ in range(3):
        print("line", file=stream)  # type: ignore[call-overload]  # a text stream in all that print uses
    assert stream.lost is error
    assert stream.failed == (not isinstance(error, BrokenPipeError))


def test_characters_that_a_stream_cannot_hold_are_replaced():
    raw = io.BytesIO()
    stream = Lenient(io.TextIOWrapper(raw, encoding="ascii"))
    stream.write("λ=3 × 2\n")
    stream.flush()
    assert raw.getvalue() == b"?=3 ? 2\n"
    assert stream.lost is None


@pytest.mark.parametrize("as_terminal", [False, True])
def test_a_console_goes_on_without_its_stream(monkeypatch: pytest.MonkeyPatch, as_terminal: bool):
    """Also one of a script's or a notebook's, which is no stream of ours."""
    stream = Broken(OSError(28, "full"))
    monkeypatch.setattr(stream, "isatty", lambda: as_terminal)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(stream)
    for i in range(4):
        console.say(f"line {i}")
        console.progress("base", i, 4)
    console.close_bars()
    assert stream.writes > 1


class Tee:
    """What scripts put in the place of stdout: it has no encoding and no descriptor."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False


def test_a_stream_of_a_scripts_own_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tee = Tee()
    monkeypatch.setattr(sys, "stderr", tee)
    with native_stderr_to(tmp_path / "log"):
        print("to stderr", file=sys.stderr)
        Console(tee).say("λ")  # type: ignore[arg-type]  # a text stream in all that print uses
    assert tee.text == "to stderr\n    0 s  λ\n"
    assert sys.stderr is tee


def shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "program.py").write_text(PROGRAM)
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} program.py {line}"], cwd=folder, capture_output=True,
        encoding="utf-8", errors="replace", env={**os.environ, "PYTHONPATH": str(ROOT), **environment}, timeout=120,
    )  # fmt: skip


def test_a_reader_that_has_seen_enough_ends_nothing(tmp_path: Path):
    done = shell("| head -4", tmp_path)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 4)
    assert (tmp_path / "done").read_text() == "done"


def test_a_full_disk_behind_the_output_ends_nothing_and_is_told(tmp_path: Path):
    done = shell("> /dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: output to stdout was lost: [Errno 28] No space left on device\n"
    assert (tmp_path / "done").read_text() == "done"


def test_a_closed_output_ends_nothing(tmp_path: Path):
    assert "Traceback" not in shell(">&-", tmp_path).stderr
    assert (tmp_path / "done").read_text() == "done"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_an_encoding_that_lacks_our_characters_ends_nothing(tmp_path: Path, encoding: str):
    done = shell("", tmp_path, PYTHONIOENCODING=encoding)
    assert (done.returncode, done.stderr) == (0, "")
    assert "the table" in done.stdout


NATIVE = """
import os, sys
from pathlib import Path
from cca_ray.terminal.console import run
from cca_ray.terminal.stream import native_stderr_to

def main() -> None:
    with native_stderr_to(Path(file)):
        print("ours", file=sys.stderr)
        os.write(2, b"core_worker.cc\\n")
        os.system("echo daemon >&2")
    os.write(2, b"after\\n")
    raise ValueError("the end")

file = sys.argv.pop()
run(main)
"""


def native(file: str, **streams: int) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", NATIVE, file], cwd=ROOT, stdout=-1, text=True, **streams)


def test_what_libraries_write_past_python_goes_to_the_file(tmp_path: Path):
    (tmp_path / "log").write_text("before\n")
    done = native(str(tmp_path / "log"), stderr=subprocess.PIPE)
    assert done.stderr == "ours\nafter\nerror: the end\n"
    assert (tmp_path / "log").read_text() == "before\ncore_worker.cc\ndaemon\n"


SCRIPT = """
import logging, os, sys
from pathlib import Path
from cca_ray.terminal.console import Console
from cca_ray.terminal.stream import native_stderr_to

before = sys.stderr
with native_stderr_to(Path("log")), native_stderr_to(Path("log")):  # as a study, and Ray in it
    print("the script's", file=sys.stderr)
    os.write(2, b"core_worker.cc\\n")
    for i in range(2000):
        Console().say("λ" * 100)
assert sys.stderr is before
os.write(2, b"after\\n")
"""


@pytest.mark.parametrize(("line", "encoding"), [("| head -1", "utf-8"), ("> /dev/full", "utf-8"), ("", "latin-1")])
def test_a_script_that_calls_us_keeps_its_stderr_and_goes_on_without_its_output(
    tmp_path: Path, line: str, encoding: str
):
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} script.py {line}"], cwd=tmp_path, capture_output=True, text=True,
        encoding="latin-1", env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
    )  # fmt: skip
    assert done.stderr.splitlines()[:2] == ["the script's", "after"]
    assert "Traceback" not in done.stderr
    assert (tmp_path / "log").read_text() == "core_worker.cc\n"


def test_a_file_that_cannot_be_written_leaves_stderr_as_it_is(tmp_path: Path):
    done = native(str(tmp_path / "absent" / "log"), stderr=subprocess.PIPE)
    assert done.stderr == "ours\ncore_worker.cc\ndaemon\nafter\nerror: the end\n"


def test_what_rays_daemons_complain_of_is_not_printed(caplog: pytest.LogCaptureFixture):
    inner = io.StringIO()
    stream = Lenient(inner)
    with caplog.at_level("INFO"):
        for name in (ERRORS_THREAD, "another"):
            thread = threading.Thread(target=print, args=("\x1b[33m(raylet)\x1b[0m a task failed",), name=name,
                                      kwargs={"file": stream})  # fmt: skip
            thread.start()
            thread.join()
    assert inner.getvalue() == "\x1b[33m(raylet)\x1b[0m a task failed\n"
    assert [record.message for record in caplog.records] == ["(raylet) a task failed"]
