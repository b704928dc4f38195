"""Wall time over all runs, however they ended."""

import multiprocessing
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import optuna
import pytest

from cca_ray.search.accounts import RunClock, runs_of, seconds_of_size, seconds_of_study

SIZES = [
    {"seconds": 5.0, "seconds_until": 3},  # of a version that kept no runs
    {"runs": [[1000, 20.0], [1100, 10.0]]},
    {"runs": [[1010, 30.0], [1102, 3.0], [1200, 1.5]], "seconds": 2.0},
    {},
]


def test_what_sizes_ran_side_by_side_counts_once():
    seconds = np.zeros(3000, bool)  # each half a second
    for size in SIZES:
        for began, took in size.get("runs", []):  # type: ignore[attr-defined]
            seconds[2 * (began - 900) : round(2 * (began - 900 + took))] = True
    assert seconds_of_study(SIZES) == seconds.sum() / 2 + 7.0
    assert seconds_of_study(SIZES, before=1100) == 40.0 + 7.0
    assert [seconds_of_size(size) for size in SIZES] == [5.0, 30.0, 36.5, 0.0]


def open_memory(path: Path) -> optuna.Study:
    return optuna.create_study(storage=f"sqlite:///{path}", study_name="memory", load_if_exists=True)


def be_killed(path: Path) -> None:
    with RunClock(open_memory(path), lambda: 0, mark_s=0.05):
        time.sleep(60)


def test_runs_that_were_killed_interrupted_or_failed_count_and_one_with_nothing_to_do_does_not(tmp_path: Path):
    path, trials, took = tmp_path / "study.db", 0, list[float]()
    memory = open_memory(path)
    for error in (KeyboardInterrupt, ValueError):
        began = time.monotonic()
        with suppress(error), RunClock(memory, lambda: trials, mark_s=60):
            time.sleep(0.2)
            raise error
        took.append(time.monotonic() - began)

    process = multiprocessing.get_context("fork").Process(target=be_killed, args=(path,))
    began = time.monotonic()
    process.start()
    while time.monotonic() < began + 30 and not (
        len(runs := runs_of(memory.user_attrs)) == 3 and runs[2].seconds > 0.3
    ):
        time.sleep(0.02)
    process.kill()
    process.join()
    took.append(time.monotonic() - began)

    with RunClock(memory, lambda: trials, mark_s=0.05) as clock:
        time.sleep(0.2)
        trials = 4
        total = clock.finish()
    assert len(runs_of(memory.user_attrs)) == 4
    assert [run.seconds for run in runs_of(memory.user_attrs)[:2]] == pytest.approx(took[:2], abs=0.15)
    assert 0.3 < runs_of(memory.user_attrs)[2].seconds < took[2]
    assert total == seconds_of_size(memory.user_attrs)

    with RunClock(memory, lambda: trials, mark_s=0.05) as clock:  # the same command again: nothing left to do
        time.sleep(0.2)
        assert clock.finish() == total
    assert seconds_of_size(open_memory(path).user_attrs) == total
    with RunClock(memory, lambda: 5, mark_s=60) as clock:  # with a trial more
        time.sleep(0.1)
        assert clock.finish() >= total + 0.1
