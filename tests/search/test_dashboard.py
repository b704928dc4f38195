"""A study in optuna-dashboard, a real one, by what it tells a browser."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cca_ray.inputs import find_space
from cca_ray.search.size_study import open_storage
from cca_ray.space_file import load_config
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.reports import TrialFailure
from tests.ports import free_port
from tests.processes import wait_until
from tests.search.ledgers import at_rung, new_ledger


def leave_a_study(folder: Path) -> None:
    """As a driver that was killed leaves it: a trial of every state."""
    settings = ["search.grace_trials=1", "search.keep=0.4", "control.learning_rates=[1e-3]"]
    config = load_config(find_space("digits_s"), settings)
    tracker = Tracker(f"sqlite:///{folder / 'mlflow.db'}", "test", folder / "artifacts")
    ledger = new_ledger(config, open_storage(folder / "study.db"), tracker, name="hand").ledger
    for name, fid in {"control": 5.0, "good": 3.0, "bad": 9.0}.items():
        assert ledger.propose(name)
        if ledger.record(name, at_rung(5, 10, fid)):
            ledger.record(name, at_rung(10, 10, fid))
        tracker.flush(60)
        ledger.finish(name)
    assert ledger.propose("broken")
    ledger.record("broken", TrialFailure(reason="Diverged: the loss is nan at step 3"))
    ledger.finish("broken")
    assert ledger.propose("at work")
    ledger.record("at work", at_rung(5, 10, 2.0))
    tracker.close(60)


@pytest.fixture(scope="module")
def dashboard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Its address."""
    folder = tmp_path_factory.mktemp("dashboard")
    leave_a_study(folder)
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), f"sqlite:///{folder / 'study.db'}", "--host=127.0.0.1", f"--port={port}"]
    with (folder / "dashboard.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: process.poll() is not None or answers(url))
        assert process.poll() is None, (folder / "dashboard.log").read_text()
        yield url
    finally:
        process.kill()
        process.wait(30)


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False


def studies(url: str) -> dict[str, dict[str, Any]]:
    """By name, in full."""
    listed = requests.get(f"{url}/api/studies", timeout=30).json()["study_summaries"]
    return {
        study["study_name"]: requests.get(f"{url}/api/studies/{study['study_id']}", timeout=30).json()
        for study in listed
    }


def test_it_shows_the_studies_of_a_size_by_name_with_what_is_minimized(dashboard: str):
    found = studies(dashboard)
    assert set(found) == {"hand/digits_s/control", "hand/digits_s/search"}
    assert found["hand/digits_s/search"]["objective_names"] == ["FID"]
    assert found["hand/digits_s/search"]["has_intermediate_values"]
    names = {dimension["name"] for dimension in found["hand/digits_s/search"]["union_search_space"]}
    assert names == {"lambda", "learning_rate"}


def test_it_shows_states_values_and_attributes_of_trials(dashboard: str):
    good, bad, broken, at_work = studies(dashboard)["hand/digits_s/search"]["trials"][:4]
    assert [t["state"] for t in (good, bad, broken, at_work)] == ["Complete", "Pruned", "Fail", "Running"]
    assert good["values"] == [3.0]
    assert good["intermediate_values"] == [{"step": 5, "value": 3.0}, {"step": 10, "value": 3.0}]
    assert at_work["intermediate_values"] == [{"step": 5, "value": 2.0}]
    assert {p["name"] for p in good["params"]} == {"lambda", "learning_rate"}
    kept = [{attr["key"]: attr["value"] for attr in t["user_attrs"]} for t in (good, bad, broken, at_work)]
    assert [attrs["key"] for attrs in kept] == [f"digits_s-search-{number:04d}" for number in range(4)]
    assert (kept[0]["seconds"], kept[0]["fid"], kept[0]["inception_score"]) == ("30.0", "3.0", "2.0")
    assert len(kept[0]["mlflow_run_id"]) == 32
    assert kept[1]["reason"] == "not among the best at a rung"
    assert kept[2]["reason"] == "Diverged: the loss is nan at step 3"
