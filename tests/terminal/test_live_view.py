"""How a study at work looks on a terminal, and what the window leaves for who looks from elsewhere."""

import io
import time
from pathlib import Path

import pytest
from rich.console import Console as RichConsole

from cca_ray.contracts import FID, Prospect
from cca_ray.storage.uris import local_path
from cca_ray.terminal.console import Console
from cca_ray.terminal.live_view import MOST_ROWS, duration, in_a_line, view
from cca_ray.terminal.snapshot import COMPARING, STATUS, AtWork, Best, DriverStatus, SizeSnapshot, read_driver_status
from cca_ray.terminal.window import Window
from tests.processes import wait_until
from tests.terminal.trials_at_work import NOW, at_work


def driver(*trials: AtWork, phase: str = "search", mlflow: str = "", best: Best | None = None) -> DriverStatus:
    snapshot = SizeSnapshot(
        size="digits_s", phase=phase, metric=FID, planned=17, ended={"COMPLETE": 3, "PRUNED": 1}, at_work=trials,
        best=best, arms={"search": (2, 14), "control": (2, 3)},
        seconds_left=None if phase != "search" else 3730.0, at=NOW - 10,
    )  # fmt: skip
    return DriverStatus(
        study="digits", sizes=("digits_s",), process=7, host="here", started=0, at=NOW, log="log.txt", mlflow=mlflow,
        cluster={"CPU": (2, 8), "GPU": (4, 6)}, snapshots=(snapshot,),
    )  # fmt: skip


def drawn(status: DriverStatus, width: int = 80) -> list[str]:
    console = RichConsole(width=width, file=io.StringIO(), record=True)
    console.print(view(status, NOW))
    return [line.rstrip() for line in console.export_text().splitlines()]


def test_a_running_study_at_80_columns():
    best = Best(number=4, settings="λ=100 lr=2.0e-05", values={"fid": 16.5, "inception_score": 8.0})
    head, first, second, best_line, cluster = drawn(driver(at_work(5), at_work(6, step=100), best=best))
    assert head == "digits_s  search 2/14, control 2/3 (3 completed, 1 stopped); about 1:02:00 left"
    assert first.startswith(" search #5 λ=312 lr=1.4e-05")
    assert first.endswith("50/100 1,234 img/s FID 17.25 1:20")
    assert second.startswith(" search #6")
    assert best_line == "best     FID 16.50  λ=100 lr=2.0e-05  (search #4)"
    assert cluster == "cluster  CPU 2/8 in use; GPU 4/6 in use; workers: 4 on A40"


@pytest.mark.parametrize(
    ("width", "shown"),
    [
        (59, " search #5 λ=312 lr=1.4…  50/100 1,234 img/s FID 17.25 1:20"),
        (50, " search #5 λ=3…  50/100 1,234 img/s FID 17.25 1:20"),
        (49, " search #5 λ=312 lr=1.4e-…  50/100 FID 17.25 1:20"),
        (40, " search #5 λ=312…  50/100 FID 17.25 1:20"),
    ],
)
def test_a_narrow_terminal_still_says_which_trial_it_is(width: int, shown: str):
    assert shown in drawn(driver(at_work(5), at_work(6, step=100)), width)


@pytest.mark.parametrize("width", [20, 30, 36])
def test_so_does_one_that_is_too_narrow_for_the_rest(width: int):
    rows = [line for line in drawn(driver(at_work(5), at_work(117)), width) if line.startswith(" search")]
    assert [row.split()[1] for row in rows] == ["#5", "#117"]


def test_what_another_trial_should_bring_is_below_the_best():
    running = driver(at_work(5))
    promising = running.snapshots[0].model_copy(update={"prospect": Prospect(expected_gain=0.0123, chance=0.1)})
    *_, best_line, next_line, cluster = drawn(running.model_copy(update={"snapshots": (promising,)}))
    assert next_line == "next     improves the best by 1.2 % on average; by more than 3 %: chance 10 %"
    assert (best_line[:4], cluster[:7]) == ("best", "cluster")


def test_where_there_is_no_terminal_a_line_says_how_it_stands():
    starts = at_work(6).model_copy(update={"total": 0})
    many = driver(at_work(5), starts, at_work(7), at_work(8), at_work(9))
    line = "digits_s  still at work: search #5 step 50/100, search #6 starts, search #7 step 50/100, 2 more"
    assert in_a_line(many, NOW) == ("search", line)
    begins = many.model_copy(update={"doing": {"digits_m": ("starting the trials", NOW - 12)}})
    assert in_a_line(begins, NOW) == (
        "starting the trials; search",
        f"digits_m  still starting the trials, 0:12; {line}",
    )
    assert in_a_line(driver(phase=COMPARING), NOW) == (COMPARING, "digits_s  still in the final comparison, 0:10")


def test_a_trial_that_has_not_reported_yet_and_a_long_name_fit_a_line():
    starts = at_work(5, 0, "λ=312 lr=1.4e-05 beta=0.02 null_ratio=0.1 weight_decay=0.05").model_copy(
        update={"total": 0, "images_per_second": 0.0, "values": {}, "seconds_left": None}
    )
    rows = [line for line in drawn(driver(starts, at_work(6))) if line.startswith(" search")]
    assert len(rows) == 2
    assert rows[0].endswith("starts 0:10")
    assert "…" in rows[0]


def test_of_very_many_trials_the_first_are_shown():
    lines = drawn(driver(*(at_work(number) for number in range(40))))
    assert sum(line.startswith(" search") for line in lines) == MOST_ROWS
    assert f" … and {40 - MOST_ROWS} more" in lines
    assert lines[-1].startswith("cluster")


def test_sizes_side_by_side_share_the_rows_and_the_last_line():
    one = driver(*(at_work(number) for number in range(10)))
    (snapshot,) = one.snapshots
    lines = drawn(one.model_copy(update={"snapshots": (snapshot, snapshot.model_copy(update={"size": "digits_m"}))}))
    heads = [number for number, line in enumerate(lines) if "search 2/14" in line]
    assert [lines[number].split()[0] for number in heads] == ["digits_s", "digits_m"]
    assert sum(line.startswith(" search") for line in lines) == MOST_ROWS
    assert sum(line.startswith("cluster") for line in lines) == 1
    assert lines[-1].endswith("workers: 40 on A40")


def test_the_final_comparison_and_trouble_with_mlflow_are_told():
    lines = drawn(driver(phase="final comparison", mlflow="http://there does not answer; 3 entries wait"))
    assert lines[0] == "digits_s  final comparison; search 2/14, control 2/3 (3 completed, 1 stopped)"
    assert lines[1] == " base, guided base, control and finalists on fresh noise, for 0:10"
    assert lines[-1] == "MLflow   http://there does not answer; 3 entries wait"


def test_what_comes_before_a_first_trial_moves_too():
    status = driver(at_work(3)).model_copy(
        update={"doing": {"digits_s": ("starting the trials", NOW - 99), "digits_m": ("reading the base", NOW - 7)}}
    )
    lines = drawn(status)
    assert "digits_m  reading the base, 0:07" in lines
    assert not any("starting the trials" in line for line in lines)  # they are there


def test_a_window_shows_what_is_done_before_the_first_trial_and_then_no_more(tmp_path: Path):
    window = Window(Console(io.StringIO()), tmp_path, driver())
    window.doing("digits_m", "reading the base")
    assert window.driver.doing["digits_m"][0] == "reading the base"
    window.hide("digits_m")
    assert window.driver.doing == {}


def test_before_a_trial_of_the_search_has_ended_none_is_said_to_be_the_best():
    assert "best     no trial of the search has been completed yet" in drawn(driver(at_work(5)))


def test_durations_read_as_on_a_clock():
    assert [duration(seconds) for seconds in (0, 41.2, 61, 3800)] == ["0:00", "0:42", "1:01", "1:03:20"]


def test_a_window_tells_of_its_driver_as_long_as_it_is_open(tmp_path: Path):
    with Window(Console(io.StringIO()), tmp_path, driver()) as window:
        wait_until(lambda: read_driver_status(tmp_path) is not None)
        window.hide("digits_s")
        told = read_driver_status(tmp_path)
        assert told is not None
        assert told.at > NOW
    assert not (tmp_path / STATUS).exists()


def test_a_window_brings_the_log_to_its_uri_as_it_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("cca_ray.terminal.window.BEAT_S", 0.05)
    monkeypatch.setattr("cca_ray.terminal.window.LOG_S", 0.1)
    there = tmp_path / "bucket" / "runs" / "digits"
    folder = local_path(f"file://{there}")
    folder.mkdir(parents=True)
    with Window(Console(io.StringIO()), folder, driver()):  # before there is a log
        for text in ("first", "first, second"):
            (folder / "log.txt").write_text(text)
            wait_until(lambda text=text: (there / "log.txt").exists() and (there / "log.txt").read_text() == text)
        before = (there / "log.txt").stat().st_mtime_ns
        time.sleep(0.5)
        assert (there / "log.txt").stat().st_mtime_ns == before  # nothing new
