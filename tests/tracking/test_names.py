"""Metrics fall into sections, and a run that version 0.1.0 began keeps the names that it has."""

from pathlib import Path

import pytest

from cca_ray.tracking.names import as_before, evaluated, final, trained
from cca_ray.tracking.tracker import Tracker


@pytest.mark.parametrize(
    ("name", "before"),
    [
        (trained("loss"), "loss"),
        (trained("gpu_memory_gib"), "gpu_memory_gib"),
        (evaluated("fid"), "fid"),
        (evaluated("inception_score"), "is"),
        (evaluated("kid"), "kid"),
        (final("fid"), "fid_final"),
        (final("inception_score"), "is_final"),
        ("system/cpu_utilization_percentage", "system/cpu_utilization_percentage"),
    ],
)
def test_every_name_has_one_of_before(name: str, before: str):
    assert as_before(name) == before


def test_the_primary_metric_has_no_section():
    assert (evaluated("fid"), evaluated("kid"), final("fid", "cca")) == ("fid", "eval/kid", "final/fid_cca")


def opened(folder: Path) -> Tracker:
    return Tracker(f"sqlite:///{folder / 'mlflow.db'}", "test", folder / "artifacts")


@pytest.mark.parametrize(("loss", "score"), [("loss", "is"), ("train/loss", "eval/inception_score")])
def test_a_run_goes_on_under_the_names_with_which_it_began(loss: str, score: str, tmp_path: Path):
    first = opened(tmp_path)
    first.run("study", "study")
    first.run("study/child", "child", "study")
    first.metrics("study/child", {1: {loss: 2.0}, 2: {loss: 1.5, score: 2.0}})
    assert first.flush(60)
    first.close(5)
    again = opened(tmp_path)
    again.run("study/child", "child", "study")
    more = {2: {"train/loss": 1.5}, 3: {"train/loss": 1.0, "eval/inception_score": 2.5, "fid": 9.0, "system/load": 1.0}}
    again.metrics("study/child", more)
    assert again.flush(60)
    run_id = again.run_id("study/child")
    assert run_id is not None
    assert again.client.get_run(run_id).data.metrics == {loss: 1.0, score: 2.5, "fid": 9.0, "system/load": 1.0}
    assert [metric.step for metric in again.client.get_metric_history(run_id, loss)] == [1, 2, 3]
    again.close(5)


def test_what_a_journal_of_version_0_1_0_brings_is_continued_under_its_names(tmp_path: Path):
    tracker = opened(tmp_path)
    tracker.run("study", "study")
    tracker.run("study/child", "child", "study")
    tracker.metrics("study/child", {1: {"loss": 2.0}})
    tracker.metrics("study/child", {2: {"train/loss": 1.5}})
    assert tracker.flush(60)
    run_id = tracker.run_id("study/child")
    assert run_id is not None
    assert tracker.client.get_run(run_id).data.metrics == {"loss": 1.5}
    tracker.close(5)
