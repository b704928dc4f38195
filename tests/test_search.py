"""Real studies: real Ray, real Optuna storage, real MLflow store."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from optuna.trial import TrialState

from cca_ray.config import Range, StudyConfig
from cca_ray.search import SizeResult, distribution, goes_on, open_arms, readable, run_size
from cca_ray.tracking import Tracker
from tests.conftest import MakeStudy

ENDED = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


@dataclass
class Study:
    """A study that has run, and how to look at what it left."""

    folder: Path
    tracker: Tracker
    lines: list[str]
    result: SizeResult | None = None

    def trials(self, arm: str = "search") -> list[optuna.trial.FrozenTrial]:
        storage = f"sqlite:///{self.folder / 'study.db'}"
        return optuna.load_study(study_name=f"study/tiny/{arm}", storage=storage).trials

    def assert_true_states(self) -> None:
        """Every trial has ended, and its MLflow run says the same; no run is left RUNNING."""
        for arm in ("search", "control"):
            for trial in self.trials(arm):
                run = self.tracker.client.get_run(trial.user_attrs["mlflow_run_id"])
                assert run.info.status == ENDED[trial.state]
                assert run.data.tags["state"] == trial.state.name
                reason = {TrialState.FAIL: trial.user_attrs.get("reason"), TrialState.COMPLETE: None}
                assert run.data.tags.get("reason") == reason.get(trial.state, "not among the best at a rung")
        runs = self.tracker.client.search_runs([self.tracker.experiment_id])
        assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
        assert len(runs) == 1 + len(self.trials()) + len(self.trials("control"))


@pytest.fixture
def study(tmp_path: Path, ray_here: None) -> Study:
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "test", tmp_path / "artifacts")
    return Study(tmp_path / "study", tracker, [])


def run(study: Study, config: StudyConfig) -> SizeResult:
    study.folder.mkdir(exist_ok=True)
    study.result = run_size(config, "study", study.folder, study.tracker, study.lines.append)
    return study.result


def kill_when(ready: Callable[[], bool], process_name: str) -> threading.Thread:
    """Kill -9 one process of that name as soon as `ready`."""

    def watch() -> None:
        for _ in range(1200):
            time.sleep(0.05)
            if not ready():
                continue
            for process in psutil.process_iter(["cmdline"]):
                if process_name in " ".join(process.info["cmdline"] or ()):
                    process.kill()
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    return thread


def test_a_study_runs_to_its_end(study: Study, make_study: MakeStudy):
    space = {"lambda": {"low": 0.5, "high": 10}, "learning_rate": {"low": 1e-4, "high": 0.3}}
    points = [{"lambda": 2.0, "learning_rate": 2e-3}]
    search = {"trials": 5, "grace_trials": 1, "keep": 0.2, "space": space, "first_points": points, "max_concurrent": 1}
    config = make_study(search=search)
    summary = run(study, config).summary
    trials = study.trials()
    assert len(trials) == 5
    stopped = next(t for t in trials if t.state == TrialState.PRUNED)  # at concurrency 1 the order is fixed
    assert stopped.intermediate_values[5] > min(t.intermediate_values[5] for t in trials)
    assert list(stopped.intermediate_values) == [5]
    assert study.tracker.client.get_run(stopped.user_attrs["mlflow_run_id"]).info.status == "KILLED"
    assert trials[0].params == {"lambda": 2.0, "learning_rate": 2e-3}
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(5 in t.intermediate_values for t in trials)
    assert [t.params["learning_rate"] for t in study.trials("control")] == [1e-3]
    study.assert_true_states()

    expected = {"size", "params", "fid_base", "fid_guided", "guidance_scale", "fid_control", "fid_cca", "lambda",
                "learning_rate", "trials", "seconds"}  # fmt: skip
    assert expected <= set(summary)
    assert (summary["size"], summary["trials"], summary["guidance_scale"]) == ("tiny", 5, 1.5)
    assert Path(summary["checkpoint"]).is_file()
    finalists = sorted((t for t in trials if t.value is not None), key=lambda t: t.value or 0)[:2]
    assert summary["winner"] in [t.params for t in finalists]

    child = study.tracker.client.get_run(trials[0].user_attrs["mlflow_run_id"])
    assert child.data.tags["mlflow.parentRunId"] == summary["mlflow_run_id"]
    assert child.data.params["lambda"] == "2.0"
    assert child.data.params["beta"] == "0.1"
    assert {"loss", "reward_accuracy", "reward_margin", "fid", "images_per_second"} <= set(child.data.metrics)
    assert len(study.tracker.client.get_metric_history(child.info.run_id, "loss")) in (5, 10)
    assert child.data.tags["protocol"] == trials[0].user_attrs["protocol"]
    assert study.tracker.client.list_artifacts(child.info.run_id, "images")


def test_a_finished_study_run_again_repeats_no_trial(study: Study, make_study: MakeStudy):
    first = run(study, make_study()).summary
    before = study.trials()
    again = run(study, make_study()).summary
    assert study.trials() == before
    assert first == again
    more = run(study, make_study(search={"trials": 4}, placement={"micro_batch": 8})).summary
    assert more["trials"] == 4
    assert study.trials()[:3] == before
    study.assert_true_states()


def test_another_setting_under_the_same_name_is_refused(study: Study, make_study: MakeStudy):
    storage = optuna.storages.RDBStorage(f"sqlite:///{study.folder.parent / 'refused.db'}")
    open_arms(make_study(), "study", storage)
    open_arms(make_study(search={"trials": 9}, placement={"workers": 2}), "study", storage)
    with pytest.raises(ValueError, match=r"train\.beta was 0\.1, is 0\.7; use another --name"):
        open_arms(make_study(train={"beta": 0.7}), "study", storage)


def test_failing_trials_end_in_their_true_state_and_the_study_goes_on(study: Study, make_study: MakeStudy):
    """One diverges to NaN, one raises (a global batch that cannot be cut by 8), two are sound."""
    space = {
        "lambda": {"low": 0.5, "high": 10},
        "learning_rate": {"low": 1e-4, "high": 1e30},
        "global_batch": {"low": 16, "high": 24},
    }
    points = [
        {"lambda": 2.0, "learning_rate": 1e30, "global_batch": 24},
        {"lambda": 2.0, "learning_rate": 1e-3, "global_batch": 20},
        {"lambda": 2.0, "learning_rate": 1e-3, "global_batch": 24},
        {"lambda": 2.0, "learning_rate": 2e-3, "global_batch": 16},
    ]
    search = {"space": space, "first_points": points, "trials": 4, "grace_trials": 4}
    run(study, make_study(search=search, placement={"micro_batch": 8}))
    trials = study.trials()
    assert [t.state.name for t in trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[0].user_attrs["reason"].startswith("Diverged: the loss is nan at step")
    assert trials[1].user_attrs["reason"].startswith("ValueError: global_batch 20 over 1 worker(s) is 20 each")
    study.assert_true_states()


def test_a_trial_that_lost_its_process_resumes(study: Study, make_study: MakeStudy):
    config = make_study(train={"epochs": 30}, search={"trials": 1, "max_concurrent": 1})
    checkpoint = study.folder / "trials" / "tiny-search-0000" / "checkpoint.pt"
    killer = kill_when(checkpoint.exists, "ray::ImplicitFunc")
    run(study, config)
    killer.join(timeout=1)
    assert not killer.is_alive()
    (trial,) = study.trials()
    assert trial.state == TrialState.COMPLETE
    assert sorted(trial.intermediate_values) == [150, 300]
    steps = [m.step for m in study.tracker.client.get_metric_history(trial.user_attrs["mlflow_run_id"], "loss")]
    assert steps == list(range(1, 301))
    study.assert_true_states()


def test_a_trial_that_loses_its_process_too_often_fails(study: Study, make_study: MakeStudy):
    config = make_study(train={"epochs": 30}, search={"trials": 2, "max_concurrent": 1}, placement={"max_failures": 0})
    checkpoint = study.folder / "trials" / "tiny-search-0000" / "checkpoint.pt"
    kill_when(checkpoint.exists, "ray::ImplicitFunc")
    run(study, config)
    failed, sound = study.trials()
    assert (failed.state, sound.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert "lost its process: The actor died unexpectedly" in failed.user_attrs["reason"]
    study.assert_true_states()


def test_a_worker_group_that_lost_a_worker_resumes(study: Study, make_study: MakeStudy):
    """And one whose loss diverges says so at once, without being started anew."""
    space = {"lambda": {"low": 0.5, "high": 10}, "learning_rate": {"low": 1e-4, "high": 1e30}}
    points = [{"lambda": 2.0, "learning_rate": rate} for rate in (1e30, 1e-3)]
    config = make_study(
        train={"epochs": 30},
        search={"trials": 2, "max_concurrent": 1, "space": space, "first_points": points},
        placement={"workers": 2},
    )
    checkpoint = study.folder / "trials" / "tiny-search-0001" / "checkpoint.pt"
    killer = kill_when(checkpoint.exists, "ray::RayTrainWorker")
    run(study, config)
    assert not killer.is_alive()
    diverged, trial = study.trials()
    assert (diverged.state, trial.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert diverged.user_attrs["reason"].startswith("Diverged: the loss is nan at step")
    assert sorted(trial.intermediate_values) == [150, 300]
    study.assert_true_states()


def test_a_placement_that_this_machine_cannot_hold_is_refused_at_once(study: Study, make_study: MakeStudy):
    with pytest.raises(ValueError, match=r"placement asks for 1 GPU, this machine has 0"):
        run(study, make_study(placement={"gpus": 1.0}))
    assert not (study.folder / "study.db").exists()


def test_a_proposal_that_was_cut_short_is_completed(tmp_path: Path, make_study: MakeStudy):
    """A kill between Optuna's taking a waiting point and its parameters leaves a trial without them."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")
    config = make_study(search={"seed": 20250101, "first_points": [{"lambda": 2.0, "learning_rate": 2e-3}]})
    for arm in open_arms(config, "study", storage):
        arm.study.ask()
    control, search = open_arms(config, "study", storage)
    for arm, params in ((control, {"learning_rate": 1e-3}), (search, {"lambda": 2.0, "learning_rate": 2e-3})):
        resumed = arm.propose([0])
        assert resumed is not None
        assert resumed.params == params
    assert control.propose([]) is None
    fresh = search.propose([])
    assert fresh is not None
    assert fresh.number == 1


def test_the_rule_at_a_rung_keeps_the_best_share():
    assert goes_on(9.0, [1.0, 2.0], keep=0.5, grace=3)
    assert not goes_on(9.0, [1.0, 2.0, 3.0], keep=0.5, grace=3)
    assert goes_on(1.5, [1.0, 2.0, 3.0], keep=0.5, grace=3)
    assert not goes_on(2.5, [1.0, 2.0, 3.0], keep=0.5, grace=3)
    assert goes_on(9.0, [1.0, 2.0, 3.0], keep=1.0, grace=1)


def test_whole_numbers_are_searched_as_whole_numbers():
    assert isinstance(distribution("epochs", Range(low=1, high=8)), optuna.distributions.IntDistribution)
    assert isinstance(distribution("lambda", Range(low=1, high=8)), optuna.distributions.FloatDistribution)


def test_trials_are_named_as_people_speak_of_them():
    params: dict[str, Any] = {"lambda": 312.4, "learning_rate": 1.4e-5, "beta": 0.02}
    assert readable(params) == "λ=312 lr=1.4e-05 beta=0.02"
