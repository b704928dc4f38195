"""Every benchmark runs from end to end: `--smoke` is its real code on tiny sizes.."""

import csv
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
ALONE = ["cluster_sim", "contest", "fid", "gpu.__main__", "intervals", "landscape", "sample", "step"]
ON_RAY = ["prepare", "scaling"]
WHOLE = ["default", "head", "overhead", "reproducibility", "search", "coverage"]  # whole runs, longer than 10 s each


def rows(text: str) -> list[list[str]]:
    """Of the last table that it printed, without its head."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    start = max(i for i, line in enumerate(lines) if set(line) == {"|", "-"})
    width = lines[start].count("|")
    assert all(line.count("|") == width for line in lines[start - 1 :]), text
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[start + 1 :]]


def measured(raw: Path) -> list[list[str]]:
    """The single measurements behind it."""
    said, *lines = raw.read_text(encoding="utf-8").splitlines()
    assert said.startswith("# commit ")
    head, *found = csv.reader(lines)
    assert all(len(row) == len(head) for row in found)
    return found


def test_no_benchmark_is_overlooked():
    programs = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    programs |= {f"{path.parent.name}.__main__" for path in (ROOT / "benchmarks").glob("*/__main__.py")}
    programs -= {"common", "peers", "search_peers", "mutants", "simulator"}  # the last two have tests of their own
    assert programs == {*ALONE, *ON_RAY, *WHOLE}


@pytest.mark.parametrize("name", ALONE)
def test_a_benchmark_runs(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    torch.set_num_threads(1)  # so small, a second one is only waited for
    import_module(f"benchmarks.{name}").main(["--smoke", "--raw", str(tmp_path / "raw.csv")])
    assert rows(capsys.readouterr().out)
    assert measured(tmp_path / "raw.csv")


@pytest.mark.nightly
@pytest.mark.parametrize("name", ON_RAY)
def test_a_benchmark_runs_on_ray(name: str, ray_here: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    test_a_benchmark_runs(name, tmp_path, capsys)


@pytest.mark.nightly
def test_the_benchmarks_that_run_whole_studies_run(tmp_path: Path):
    for name in WHOLE:  # the last takes what search leaves
        raw = tmp_path / "raw" / f"{name}.csv"
        storage = [] if name in ("head", "overhead", "reproducibility") else ["--storage", str(tmp_path)]
        command = [sys.executable, "-m", f"benchmarks.{name}", "--smoke", "--raw", str(raw), *storage]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert ended.returncode == 0, ended.stderr
        assert rows(ended.stdout), name
        assert measured(raw), name
