"""Real studies: real Ray, real Optuna storage, real MLflow store."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow.entities
import numpy as np
import optuna
import psutil
import pytest
from optuna.trial import TrialState, create_trial
from ray.util import placement_group, placement_group_table

from cca_ray.cluster.session import free_worker_group
from cca_ray.config import StudyConfig
from cca_ray.search.accounts import TERMS
from cca_ray.search.arms import FRESH, open_arms
from cca_ray.search.budget import Limits
from cca_ray.search.ledger import Ledger
from cca_ray.search.mlflow_listener import MlflowListener
from cca_ray.search.ray_tune import Watch, run_trials
from cca_ray.search.records import end_of
from cca_ray.search.size_study import SizeResult, SizeStudy, StudyContext, open_storage
from cca_ray.search.terminal_listener import Lines
from cca_ray.tracking.store import KEY
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.job import Job
from cca_ray.training.trial import TrialSettings, run_trial, trial_folder
from tests.conftest import MakeStudy
from tests.processes import wait_until

ENDED = {TrialState.COMPLETE: "FINISHED", TrialState.PRUNED: "KILLED", TrialState.FAIL: "FAILED"}


@dataclass
class Study:
    """A study that has run, and how to look at what it left."""

    folder: Path
    tracker: Tracker
    lines: list[str]
    result: SizeResult | None = None

    def of_arm(self, arm: str) -> optuna.Study:
        return optuna.load_study(study_name=f"study/tiny/{arm}", storage=f"sqlite:///{self.folder / 'study.db'}")

    def trials(self, arm: str = "search") -> list[optuna.trial.FrozenTrial]:
        return self.of_arm(arm).trials

    def run_of(self, trial: optuna.trial.FrozenTrial) -> mlflow.entities.Run:
        """Its MLflow run."""
        assert self.tracker.flush(30)
        ending = f"tags.`{KEY}` LIKE '%/{trial.user_attrs['key']}'"
        (run,) = self.tracker.client.search_runs([self.tracker.experiment_id], ending)
        return run

    def assert_true_states(self) -> None:
        """Every trial has ended, and its MLflow run says the same; no run is left RUNNING."""
        for arm in ("search", "control"):
            assert self.trials(arm)
            for trial in self.trials(arm):
                run, (state, reason) = self.run_of(trial), end_of(trial)
                assert run.info.status == ENDED[trial.state]
                assert (run.data.tags["state"], run.data.tags.get("reason", "")) == (state, reason)
                assert bool(reason) == (trial.state != TrialState.COMPLETE)
        runs = self.tracker.client.search_runs([self.tracker.experiment_id])
        assert {run.info.status for run in runs} <= {"FINISHED", "FAILED", "KILLED"}
        assert len(runs) == 1 + len(self.trials()) + len(self.trials("control"))


@pytest.fixture
def study(tmp_path: Path, ray_here: None) -> Study:
    tracker = Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "test", tmp_path / "artifacts")
    return Study(tmp_path / "study", tracker, [])


def run(study: Study, config: StudyConfig, slow_s: float = 0.0, limits: Limits | None = None) -> SizeResult:
    """`slow_s`: how long the study's driver takes for a line about a score."""

    def say(line: str) -> None:
        study.lines.append(line)
        time.sleep(slow_s * ("fid" in line))

    study.folder.mkdir(exist_ok=True)
    study.result = SizeStudy(config, StudyContext("study", study.folder, study.tracker, say), limits).run()
    return study.result


def pid_of(trial: Path) -> int:
    """The process, or its first worker, that runs a trial or ran it last."""
    return int(json.loads((trial / "alive-0").read_text())["pid"])


@contextmanager
def killing(trial: Path, process_name: str) -> Iterator[list[int]]:
    """Within, kill -9 a trial's process, which has this name, when there is a checkpoint. It must have come to that.

    Gives a list that will hold its number.
    """
    over, killed = threading.Event(), list[int]()

    def watch() -> None:
        while not over.wait(0.05):
            with suppress(ValueError):  # the sign of life is being written
                if (trial / "checkpoint.pt").exists():
                    process = psutil.Process(pid_of(trial))
                    assert process_name in " ".join(process.cmdline())
                    process.kill()
                    process.wait(20)
                    killed.append(process.pid)
                    return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join(30)
    assert len(killed) == 1, f"no {process_name} was killed"


def test_a_study_runs_to_its_end(study: Study, make_study: MakeStudy):
    space = {"lambda": {"low": 0.5, "high": 10}, "learning_rate": {"low": 1e-4, "high": 0.3}}
    points = [{"lambda": 2.0, "learning_rate": 2e-3}]
    search = {"trials": 5, "grace_trials": 1, "keep": 0.2, "space": space, "first_points": points, "max_concurrent": 1}
    search["sampler"] = "tpe"  # it begins with draws over the whole space: a rung has something to stop
    config = make_study(search=search, control={"learning_rates": [5e-4, 1e-3], "widen": 1})
    summary = run(study, config).summary
    trials = study.trials()
    assert len(trials) == 5
    stopped = next(t for t in trials if t.state == TrialState.PRUNED)  # at concurrency 1 the order is fixed
    assert stopped.intermediate_values[5] > min(t.intermediate_values[5] for t in trials)
    assert list(stopped.intermediate_values) == [5]
    assert study.run_of(stopped).info.status == "KILLED"
    assert trials[0].params == {"lambda": 2.0, "learning_rate": 2e-3}
    assert {t.state for t in trials} <= {TrialState.COMPLETE, TrialState.PRUNED}
    assert all(5 in t.intermediate_values for t in trials)
    first, second, third = study.trials("control")  # of two rates the better one is always at an end
    assert [t.params["learning_rate"] for t in (first, second)] == [5e-4, 1e-3]
    assert third.params["learning_rate"] == (2.5e-4 if first.value <= second.value else 2e-3)
    rates = sorted(t.params["learning_rate"] for t in (first, second, third))
    at_an_end = summary.control_learning_rate in (rates[0], rates[-1])
    assert any(edge.of == "control_learning_rate" for edge in summary.edges) == at_an_end
    assert all(finalist.selection for finalist in summary.finalists)
    study.assert_true_states()

    assert set(summary.models) == {"base", "guided", "control", "tuned"}
    assert set(summary.settings) == {"lambda", "learning_rate"}
    assert (summary.size, summary.trials, summary.models["guided"].guidance_scale) == ("tiny", 5, 1.5)
    assert Path(summary.checkpoint).is_file()
    assert summary.machine is not None
    assert summary.machine.threads == config.placement.cpus  # those of a worker, not of this process
    finalists = sorted((t for t in trials if t.value is not None), key=lambda t: t.value or 0)[:2]
    assert summary.winner.params in [t.params for t in finalists]

    child = study.run_of(trials[0])
    assert child.data.tags["mlflow.parentRunId"] == summary.mlflow.run_id
    assert child.data.params["lambda"] == "2.0"
    assert child.data.params["beta"] == "0.1"
    assert {"train/loss", "train/reward_accuracy", "train/reward_margin", "fid"} <= set(child.data.metrics)
    assert len(study.tracker.client.get_metric_history(child.info.run_id, "train/loss")) in (5, 10)
    assert child.data.tags["protocol"] == trials[0].user_attrs["protocol"]
    assert study.tracker.client.list_artifacts(child.info.run_id, "images")

    ended = {**search, "trials": 6, "stop_when": {"expected_gain": 0.9}}  # which is no end of the control's widening
    wider = make_study(search=ended, control={"learning_rates": [5e-4, 1e-3], "widen": 2})
    fresh = {str(t.number): t.params["learning_rate"] for t in study.trials("control")}  # the smallest is the best
    study.of_arm("control").set_user_attr(FRESH, fresh)
    again = run(study, wider, limits=Limits(seconds=1e6)).summary
    assert len(study.trials("control")) == 4
    assert study.trials() == trials
    assert any("(search.stop_when)" in line for line in study.lines)
    assert (summary.stopped_below, again.stopped_below) == (None, 0.9)
    scored = study.of_arm("control").user_attrs[FRESH]
    best = min(study.trials("control"), key=lambda t: scored[str(t.number)])
    assert again.control_learning_rate == best.params["learning_rate"]


def test_a_finished_study_run_again_repeats_no_trial(study: Study, make_study: MakeStudy):
    """Begun without widening, its control is looked at on fresh noise once that is asked for."""
    control = {"learning_rates": [5e-4, 1e-3], "widen": 0}
    first = run(study, make_study(control=control)).summary
    assert TERMS in study.of_arm("control").user_attrs
    before = study.trials()
    kept = sorted((study.folder / "scores").iterdir())
    assert all(path.name.startswith("tiny-") for path in kept)  # the sizes of a study share the folder
    times = [path.stat().st_mtime_ns for path in kept]
    kept[0].write_bytes(b"torn")  # a final comparison that was cut short goes on where it was
    kept[1].unlink()
    again = run(study, make_study(control=control)).summary
    assert study.trials() == before
    assert first == again
    assert sorted((study.folder / "scores").iterdir()) == kept
    assert [path.stat().st_mtime_ns for path in kept[2:]] == times[2:]
    assert "tiny  found 5 of 5 trials ended (5 complete), 0 interrupted" in study.lines
    control["widen"] = 1
    run(study, make_study(control=control), limits=Limits(device_seconds=0.0))
    assert len(study.trials("control")) == 2  # one of which is at an end, but nothing is left to go on
    assert any("the budget allows no further trial" in line for line in study.lines)
    more = run(study, make_study(search={"trials": 4}, control=control, placement={"micro_batch": 8})).summary
    assert more.trials == 4
    assert study.of_arm("control").user_attrs[FRESH].keys() == {"0", "1", "2"}
    assert study.trials()[:3] == before
    study.assert_true_states()


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
    summary = run(study, make_study(search=search, placement={"micro_batch": 8})).summary
    trials = study.trials()
    took = [t.user_attrs["device_seconds"]["CPU"] for t in (*trials, *study.trials("control"))]
    assert summary.device_hours == pytest.approx(sum(took) / 3600)
    assert [t.state.name for t in trials] == ["FAIL", "FAIL", "COMPLETE", "COMPLETE"]
    assert trials[0].user_attrs["reason"].startswith("Diverged: the loss is nan at step")
    assert trials[1].user_attrs["reason"].startswith("ValueError: global_batch 20 over 1 worker(s) is 20 each")
    assert all(t.user_attrs["seconds"] > 0 for t in trials)
    assert trials[0].user_attrs["device_seconds"] == {"CPU": pytest.approx(trials[0].user_attrs["seconds"])}
    study.assert_true_states()


def test_a_trial_that_lost_its_process_resumes(study: Study, make_study: MakeStudy):
    config = make_study(train={"epochs": 30}, search={"trials": 1, "max_concurrent": 1})
    folder = study.folder / "trials" / "tiny-search-0000"
    with killing(folder, "ray::ImplicitFunc") as killed:
        run(study, config)
    assert pid_of(folder) not in killed  # another took it up
    (trial,) = study.trials()
    assert trial.state == TrialState.COMPLETE
    assert sorted(trial.intermediate_values) == [150, 300]
    steps = [m.step for m in study.tracker.client.get_metric_history(study.run_of(trial).info.run_id, "train/loss")]
    assert steps == list(range(1, 301))
    study.assert_true_states()


@pytest.mark.nightly
def test_a_trial_that_loses_its_process_too_often_fails(study: Study, make_study: MakeStudy):
    config = make_study(train={"epochs": 30}, search={"trials": 2, "max_concurrent": 1}, placement={"max_failures": 0})
    folder = study.folder / "trials" / "tiny-search-0000"
    with killing(folder, "ray::ImplicitFunc") as killed:
        run(study, config)
    assert [pid_of(folder)] == killed  # nobody took it up
    failed, sound = study.trials()
    assert (failed.state, sound.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert "lost its process: The actor died unexpectedly" in failed.user_attrs["reason"]
    study.assert_true_states()


def hangs_at_first(settings: TrialSettings) -> None:
    """A trial whose process stops before it has given any sign of life, but only once."""
    hung = Job.unpacked(settings["job"]).folder.parent.parent / "hung"
    if not hung.exists():
        hung.touch()
        os.kill(os.getpid(), signal.SIGSTOP)
    run_trial(settings)


def test_a_process_that_hangs_before_its_first_sign_of_life_is_killed(study: Study, make_study: MakeStudy):
    config = make_study(search={"trials": 1}, placement={"hung_minutes": 0.1})
    study.folder.mkdir()
    arms = open_arms(config, "study", open_storage(study.folder / "study.db"), {})
    ledger = Ledger(config, arms, [Lines(study.lines.append), MlflowListener(study.tracker, config, "study")])
    study.tracker.run("study", "study")
    run_trials(config, ledger, lambda train: None, study.folder, hangs_at_first)
    assert (study.folder / "hung").exists()
    assert [line.split("s: ")[-1] for line in study.lines if "no sign of life" in line] == ["killing its process"]
    assert [t.state for arm in arms for t in arm.study.trials] == [TrialState.COMPLETE, TrialState.COMPLETE]


@pytest.mark.slow
def test_a_worker_group_that_lost_a_worker_resumes(study: Study, make_study: MakeStudy):
    """One whose loss diverges says so at once, without being started anew. And a driver that is busy, so that a trial's
    last report is still on its way when its workers have ended, gets it all the same."""
    space = {"lambda": {"low": 0.5, "high": 10}, "learning_rate": {"low": 1e-4, "high": 1e30}}
    points = [{"lambda": 2.0, "learning_rate": rate} for rate in (1e30, 1e-3)]
    config = make_study(
        train={"epochs": 12},
        search={"trials": 2, "max_concurrent": 1, "space": space, "first_points": points},
        placement={"workers": 2},
    )
    folder = study.folder / "trials" / "tiny-search-0001"
    with killing(folder, "ray::RayTrainWorker") as killed:
        run(study, config, slow_s=3)
    assert pid_of(folder) not in killed
    diverged, trial = study.trials()
    assert (diverged.state, trial.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert diverged.user_attrs["reason"].startswith("Diverged: the loss is nan at step")
    assert sorted(trial.intermediate_values) == [60, 120]
    study.assert_true_states()


def test_what_the_workers_of_an_ended_trial_still_hold_is_given_back(
    study: Study, make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch
):
    """Ray Train leaves it where several Rays are on one machine: its helper cannot tell them apart."""
    monkeypatch.setattr("cca_ray.search.ray_tune.FREED_S", 0.5)
    study.folder.mkdir()
    config = make_study(placement={"workers": 2})
    arms = open_arms(config, "study", open_storage(study.folder / "study.db"), {})
    ledger = Ledger(config, arms)
    # All that is asked of one of Tune's.
    trial = SimpleNamespace(trial_id="a", temporary_state=SimpleNamespace(ray_actor=None))
    watch = Watch(ledger, study.folder, 60)
    begun = ledger.propose(trial.trial_id)
    assert begun
    group = placement_group([{"CPU": 1}])
    assert group.wait(30)
    sign = trial_folder(study.folder, begun.key) / "alive-0"
    sign.parent.mkdir(parents=True)
    sign.write_text(json.dumps({"pid": 0, "started": "", "node": "", "group": group.id.hex()}))

    def seen() -> str:
        watch.looked = 0.0
        watch.on_step_begin(0, [trial])
        return str(placement_group_table(group)["state"])

    assert seen() == "CREATED"
    ledger.finish(trial.trial_id)
    assert seen() == "CREATED"  # Ray has its time for that
    wait_until(lambda: seen() == "REMOVED")
    assert not free_worker_group(sign.parent)


def test_a_placement_that_this_machine_cannot_hold_is_refused_at_once(study: Study, make_study: MakeStudy):
    with pytest.raises(ValueError, match=r"placement asks for 1 × 1 GPU, the cluster has \d+ CPU"):
        run(study, make_study(placement={"gpus": 1.0}))
    assert not (study.folder / "study.db").exists()


def test_rungs_that_fall_on_one_step_of_the_shortest_trial_are_refused_at_once(study: Study, make_study: MakeStudy):
    rungs = [{"at": 0.01, "samples": 60}, {"at": 0.1, "samples": 60}, {"at": 1.0, "samples": 80}]
    with pytest.raises(ValueError, match=r"tiny: rungs: 0\.01, 0\.1, 1 of a trial of 10 steps are its steps 1, 1, 10"):
        run(study, make_study(rungs=rungs))
    assert not (study.folder / "study.db").exists()


@pytest.mark.slow
def test_finalists_are_trained_again_with_other_seeds(study: Study, make_study: MakeStudy):
    """And scored with guidance, as asked for; a larger number later adds only what is missing. All without a FID."""
    score = {"winner_guidance_scales": [1.5], "metrics": ["kid"]}
    settings: dict[str, Any] = {"search": {"trials": 2, "replicates": 1, "metric": "kid"}, "score": score}
    summary = run(study, make_study(**settings)).summary
    first = study.trials("replicate")
    assert [t.params["seed"] for t in first] == [1, 1]
    assert {t.state for t in first} == {TrialState.COMPLETE}
    assert [f.models for f in summary.finalists] == [2, 2]
    assert np.isfinite([summary.value("tuned_guided"), summary.std("tuned")]).all()
    settings["search"]["replicates"] = 2
    fails = {**first[0].params, "seed": 2}
    lost = create_trial(
        state=TrialState.FAIL,
        params=fails,
        distributions=first[0].distributions,
        user_attrs={"key": "tiny-replicate-0002", "reason": "Diverged"},
    )
    study.of_arm("replicate").add_trial(lost)
    again = run(study, make_study(**settings)).summary
    assert study.trials("replicate")[:2] == first
    assert sorted(t.params["seed"] for t in study.trials("replicate")) == [1, 1, 2, 2]
    models = {tuple(f.params.items()): f.models for f in again.finalists}
    assert sorted(models.values()) == [2, 3]
    assert [f.models for f in run(study, make_study(**settings)).summary.finalists].count(
        3
    ) == 1  # it would diverge again
    assert models[tuple((name, value) for name, value in fails.items() if name != "seed")] == 2
    assert any("warning: 1 of 4 replicates failed" in line for line in study.lines)
    assert study.run_of(first[0]).data.tags["arm"] == "replicate"
    runs = study.tracker.client.search_runs([study.tracker.experiment_id])
    assert {r.info.status for r in runs} == {"FINISHED"}


@pytest.mark.nightly
@pytest.mark.parametrize("objective", ["dpo", "finetune"])
def test_other_objectives_are_searched_the_same_way(study: Study, make_study: MakeStudy, objective: str):
    space = {"learning_rate": {"low": 1e-4, "high": 1e-2}}
    search = {"trials": 2, "space": space, "metric": "both"}
    config = make_study(search=search)
    config = config.model_copy(update={"train": config.train_with({"objective": objective})})
    summary = run(study, config).summary
    assert all(len(t.values) == 2 for t in study.trials())
    assert {row.trial for row in summary.trade_off} == {0, 1}
    assert any(row.front for row in summary.trade_off)
    run_data = study.run_of(study.trials()[0]).data
    assert run_data.params["objective"] == objective
    assert ("train/reward_margin" in run_data.metrics) == (objective != "finetune")
    study.assert_true_states()
