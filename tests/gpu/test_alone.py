"""One test at a time uses the card, however many processes pytest has."""

import subprocess
import sys
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COLLECT = """
import sys, pytest

class Told:
    def pytest_collection_finish(self, session):
        for item in session.items:
            print("FOUND", "card_alone" in item.fixturenames, item.nodeid)

sys.exit(pytest.main(["--collect-only", "-q", "-n", "0", *sys.argv[1:]], plugins=[Told()]))
"""


def collected(*words: str) -> list[list[str]]:
    """(whether it waits for the card, which it is) of each test."""
    ended = subprocess.run([sys.executable, "-c", COLLECT, *words], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return [line.split(" ", 2)[1:] for line in ended.stdout.splitlines() if line.startswith("FOUND")]


def test_all_tests_on_a_card_wait_for_it_and_no_others():
    some = ["tests/gpu", "tests/models/test_contract.py", "tests/models/test_dropout.py"]
    on_card = collected("-m", "gpu", *some)
    assert {name.partition("::")[0] for _, name in on_card} >= {*some[1:], "tests/gpu/test_golden.py"}
    assert [name for waits, name in on_card if waits == "False"] == []
    own = "tests/gpu/test_alone.py"
    others = [(waits, name) for waits, name in collected("-m", "not gpu", *some) if not name.startswith(own)]
    assert any(name.endswith("[cpu]") for _, name in others)
    assert [name for waits, name in others if waits == "True"] == []


def test_who_has_the_card_has_it_alone(card_alone: None, tmp_path_factory: pytest.TempPathFactory):
    base = tmp_path_factory.getbasetemp()
    path = next(folder / "card" for folder in (base, base.parent) if (folder / "card").exists())
    with path.open("w") as second:  # as another process would
        with pytest.raises(BlockingIOError):
            flock(second, LOCK_EX | LOCK_NB)
        flock(second, LOCK_UN)
