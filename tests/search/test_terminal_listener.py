"""The lines about trials."""

import optuna
import pytest

from cca_ray.search.listener import TrialEnd
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.reports import TrialFailure
from tests.conftest import MakeStudy
from tests.search.ledgers import Told, at_rung, heartbeat, new_ledger


@pytest.fixture
def told(storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy) -> Told:
    return new_ledger(make_config(search={"grace_trials": 1, "keep": 0.4}), storage, tracker)


def test_lines_tell_of_steps_rungs_and_ends(told: Told):
    ledger = told.ledger
    for name, fids in {"control": (6.0, 5.0), "good": (4.0, 3.0), "bad": (9.0,)}.items():
        trial = ledger.propose(name)
        ledger.record(name, heartbeat(2, 10))
        for step, fid in zip((5, 10), fids, strict=False):
            ledger.record(name, at_rung(step, 10, fid))
        ledger.finish(name)
    assert trial is not None
    settings = trial.label.split("  ")[-1]
    assert told.lines[:3] == [
        "tiny  control #0  lr=1.0e-03  step 2/10",
        "tiny  control #0  lr=1.0e-03  step 5/10  fid 6.00 (40 samples)",
        "tiny  control #0  lr=1.0e-03  step 10/10  fid 5.00 (40 samples)  best so far 5.00",
    ]
    assert told.lines.pop() == "tiny  search 2/3, control 1/1"
    assert told.lines[-1] == f"tiny  search #1  {settings}  step 5/10  fid 9.00 (40 samples)  stopped"


def test_lines_tell_of_failures_and_interruptions(told: Told):
    ledger = told.ledger
    ledger.propose("control")
    ledger.record("control", at_rung(10, 10, 5.0))
    ledger.finish("control")
    ledger.propose("a")
    ledger.record("a", TrialFailure(reason="Diverged: the loss is nan at step 3"))
    ledger.finish("a")
    assert told.lines.pop() == "tiny  search 1/3, control 1/1"
    assert told.lines.pop().endswith("  FAILED: Diverged: the loss is nan at step 3")
    ledger.propose("b")
    ledger.halt()
    ledger.close()
    assert told.lines[-3] == "tiny  stopping: 1 running trials are writing their checkpoints"
    assert told.lines[-2].endswith("  interrupted")


def test_lines_tell_why_a_trial_runs_otherwise_than_before(told: Told):
    ledger = told.ledger
    ledger.propose("a")
    ledger.record("a", heartbeat(1, 10))
    ledger.record("a", heartbeat(2, 10).model_copy(update={"micro_batch": 12}))
    ledger.record("a", heartbeat(3, 10).model_copy(update={"micro_batch": 12, "accelerator": "A40", "workers": 2}))
    why = [line.split("lr=1.0e-03  ")[1] for line in told.lines if "now" in line]
    assert why == ["out of memory: now 1 × CPU, micro-batch 12", "moved: now 2 × A40, micro-batch 12"]


def test_a_trial_without_a_reason_ends_with_how_many_have_ended(told: Told):
    trial = told.ledger.propose("a")
    assert trial is not None
    before = list(told.lines)
    for listener in told.ledger.listeners[:2]:
        listener.on_trial_complete(trial, TrialEnd("COMPLETE"))
    assert told.lines == [*before, "tiny  search 0/3, control 0/1"]
    told.view.show = lambda ledger: True  # the view counts them
    for listener in told.ledger.listeners[:2]:
        listener.on_trial_complete(trial, TrialEnd("COMPLETE"))
    assert len(told.lines) == len(before) + 1
