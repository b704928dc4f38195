"""What libraries say goes to a file, nothing of it to the terminal."""

import logging
import re
import warnings
from pathlib import Path

import pytest

from cca_ray.storage.uris import local_path
from cca_ray.terminal.log_file import logging_to
from tests.commands import invoke


@pytest.fixture
def library() -> logging.Logger:
    """One that writes to the terminal by a handler of its own, as Ray, Optuna and MLflow do."""
    logger = logging.getLogger("a_library")
    logger.handlers, logger.propagate = [logging.StreamHandler()], False
    logger.setLevel(logging.INFO)
    return logger


def test_loggers_and_warnings_go_to_the_file_and_come_back(library: logging.Logger, tmp_path: Path, capfd):
    before = list(library.handlers)
    with logging_to(tmp_path / "log.txt"):
        library.info("starting")
        warnings.warn("old", DeprecationWarning, stacklevel=1)
    assert capfd.readouterr() == ("", "")
    text = (tmp_path / "log.txt").read_text()
    assert "INFO a_library: starting" in text
    assert "DeprecationWarning: old" in text
    assert not library.propagate
    assert library.handlers == before


def test_a_full_disk_is_for_others_to_tell(library: logging.Logger, capfd):
    with logging_to(Path("/dev/full")):
        library.warning("a line")
    assert capfd.readouterr() == ("", "")


def test_a_second_run_appends(library: logging.Logger, tmp_path: Path):
    for text in ("first", "second"):
        with logging_to(tmp_path / "log.txt"):
            library.warning(text)
    assert [line.split()[-1] for line in (tmp_path / "log.txt").read_text().splitlines()] == ["first", "second"]


def test_an_error_names_the_file_in_its_line_and_leaves_its_traceback_there(tmp_path: Path, capsys):
    path = tmp_path / "log.txt"

    def main() -> None:
        with logging_to(path):
            raise ValueError("tiny: the disk is full")

    outcome = invoke(main, [], capsys)
    assert (outcome.code, outcome.err) == (2, f"error: tiny: the disk is full (log: {path})\n")
    assert "Traceback" in path.read_text()


def test_a_fault_of_ours_is_a_traceback_on_the_terminal_too(tmp_path: Path):
    with pytest.raises(ZeroDivisionError, match="by zero") as error, logging_to(tmp_path / "log.txt"):
        print(1 / 0)
    assert error.value.__notes__ == [f"log: {tmp_path / 'log.txt'}"]
    assert "ZeroDivisionError" in (tmp_path / "log.txt").read_text()


def write_and_fail(logger: logging.Logger, text: str) -> None:
    logger.warning(text)
    raise ZeroDivisionError


def test_the_log_of_a_study_at_a_uri_is_there_also_after_an_error_and_goes_on_from_another_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: logging.Logger
):
    there = tmp_path / "bucket" / "runs" / "tiny" / "log.txt"
    for machine in ("first", "second"):
        monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / machine))
        log = local_path(f"file://{there}")
        log.parent.mkdir(parents=True)
        with pytest.raises(ZeroDivisionError), logging_to(log):
            write_and_fail(library, machine)
    text = there.read_text()
    assert re.findall("a_library: (.*)", text) == ["first", "second"]
    assert text.count("Traceback") == 2
