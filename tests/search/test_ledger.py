"""What the memory of a study decides; real Optuna storage, no Ray."""

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from cca_ray.config import Range, StudyConfig
from cca_ray.contracts import TrialReport
from cca_ray.search.ledger import Ledger, Limits, Mark, distribution, goes_on, marks_of, open_arms, true_ends
from cca_ray.search.records import readable
from cca_ray.tracking.store import DataSet
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.reports import TrialFailure
from tests.conftest import MakeStudy

DIGESTS = {"base": "b", "tokens": "t", "protocol": "p"}


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "test", tmp_path / "artifacts")


def new_ledger(
    config: StudyConfig, storage: optuna.storages.BaseStorage, tracker: Tracker, limits: Limits | None = None
) -> tuple[Ledger, list[str]]:
    lines: list[str] = []
    arms = open_arms(config, "study", storage, DIGESTS)
    tracker.run("study", "study")
    return Ledger(config, arms, tracker, "study", lines.append, limits), lines


def at_rung(step: int, total: int, fid: float, inception_score: float = 2.0, **more: Any) -> TrialReport:
    """A report with a score."""
    content = {
        "step": step, "total_steps": total, "history": [], "images_per_second": 10.0, "micro_batch": 24,
        "workers": 1, "accelerator": "CPU", "device_seconds": [("CPU", 3.0 * step)],
        "seconds": 3.0 * step, "fid": fid, "inception_score": inception_score, "samples": 40,
        "protocol": "abc", "scoring_seconds": 0.5, "grid": str(Path(__file__)),
        "without": [[fid, inception_score]] * 8,
    }  # fmt: skip
    return TrialReport.model_validate(content | more)


def mark(fid: float, noise: list[float] | None = None, inception_score: float = 2.0, metric: str = "fid") -> Mark:
    without = [[fid + n, inception_score] for n in (noise or [0.0] * 8)]
    return Mark.of({"fid": fid, "inception_score": inception_score, "without": without}, metric)


def test_another_setting_under_the_same_name_is_refused(storage: optuna.storages.RDBStorage, make_study: MakeStudy):
    open_arms(make_study(), "study", storage, DIGESTS)
    more = make_study(search={"trials": 9, "replicates": 2}, placement={"workers": 2})
    open_arms(more, "study", storage, DIGESTS)
    elsewhere = make_study().with_paths({"tokens": "/somewhere/else"})
    open_arms(elsewhere, "study", storage, DIGESTS)
    for config, digests, told in (
        (make_study(train={"beta": 0.7}), DIGESTS, r"train\.beta was 0\.1, is 0\.7"),
        (make_study(search={"seed": 5}), DIGESTS, r"search\.seed was 0, is 5"),
        (make_study(), {**DIGESTS, "tokens": "u"}, r"files\.tokens was t, is u"),
        (make_study(), {**DIGESTS, "protocol": "q"}, r"files\.protocol was p, is q"),
    ):
        with pytest.raises(ValueError, match=told + "; use another --name, or --fresh"):
            open_arms(config, "study", storage, digests)


def test_a_study_of_version_0_1_0_goes_on_whatever_its_objective(
    storage: optuna.storages.RDBStorage, make_study: MakeStudy
):
    """Its memory has the parameters of all objectives."""
    config = make_study(train={"objective": "dpo"}, search={"space": {"beta": {"low": 0.01, "high": 1.0}}})
    for arm in open_arms(config, "study", storage, DIGESTS):
        memory = arm.study.user_attrs["memory"]
        arm.study.set_user_attr("memory", {**memory, "train": {**memory["train"], "lambda": 1.0}})
    assert len(open_arms(config, "study", storage, DIGESTS)) == 2


def test_a_proposal_that_was_cut_short_is_completed(storage: optuna.storages.RDBStorage, make_study: MakeStudy):
    """A kill between Optuna's taking a waiting point and its parameters leaves a trial without them."""
    config = make_study(search={"seed": 20250101, "first_points": [{"lambda": 2.0, "learning_rate": 2e-3}]})
    for arm in open_arms(config, "study", storage, DIGESTS):
        arm.study.ask()
    control, search = open_arms(config, "study", storage, DIGESTS)
    for arm, params in ((control, {"learning_rate": 1e-3}), (search, {"lambda": 2.0, "learning_rate": 2e-3})):
        resumed = arm.propose([0])
        assert resumed is not None
        assert resumed.params == params
    assert control.propose([]) is None
    fresh = search.propose([])
    assert fresh is not None
    assert fresh.number == 1


def test_what_smaller_sizes_found_is_tried_after_the_first_points(
    storage: optuna.storages.RDBStorage, make_study: MakeStudy
):
    config = make_study(search={"first_points": [{"lambda": 2.0, "learning_rate": 2e-3}]})
    taught = [{"lambda": 300.0, "learning_rate": 1e-3, "beta": 0.5}]
    _, search = open_arms(config, "study", storage, DIGESTS, lambda: taught)
    points = [trial.params for trial in (search.propose([]), search.propose([])) if trial]
    assert points == [{"lambda": 2.0, "learning_rate": 2e-3}, {"lambda": 10.0, "learning_rate": 1e-3}]
    again = open_arms(config, "study", storage, DIGESTS, lambda: taught)[1]
    assert len(again.study.trials) == 2


def test_the_rule_at_a_rung_keeps_the_best_share():
    marks = [mark(1.0), mark(2.0), mark(3.0)]
    assert goes_on(mark(9.0), marks[:2], keep=0.5, grace=3)
    assert not goes_on(mark(9.0), marks, keep=0.5, grace=3)
    assert goes_on(mark(1.5), marks, keep=0.5, grace=3)
    assert not goes_on(mark(2.5), marks, keep=0.5, grace=3)
    assert goes_on(mark(9.0), marks, keep=1.0, grace=1)


def test_the_rule_at_a_rung_keeps_what_cannot_be_told_from_the_cut():
    """Noise that two trials share does not count, for they are compared on the same noise."""
    own, common = [0.3, -0.3] * 4, [1.0, -1.0] * 4  # jackknife errors of 0.79 and 2.65
    best = [mark(1.0, common), mark(1.1, common), mark(1.2, common)]
    assert not goes_on(mark(2.0, common), best, keep=0.5, grace=1)
    assert goes_on(mark(2.0, [a + b for a, b in zip(common, own, strict=True)]), best, keep=0.5, grace=1)
    assert not goes_on(mark(4.0, [a + b for a, b in zip(common, own, strict=True)]), best, keep=0.5, grace=1)


def test_with_two_metrics_only_what_is_worse_in_both_is_stopped():
    best = [mark(1.0, metric="both"), mark(1.1, metric="both"), mark(1.2, metric="both")]
    assert not goes_on(mark(5.0, inception_score=1.5, metric="both"), best, keep=0.5, grace=1)
    assert goes_on(mark(5.0, inception_score=2.5, metric="both"), best, keep=0.5, grace=1)


@pytest.mark.parametrize("metric", ["fid", "inception_score", "both"])
def test_states_and_values_are_the_true_ones(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_study: MakeStudy, metric: str
):
    ledger, _ = new_ledger(make_study(search={"metric": metric, "grace_trials": 1, "keep": 0.4}), storage, tracker)
    fids = {"control": 5.0, "good": 3.0, "bad": 9.0, "broken": 0.0}
    for name, fid in fids.items():
        running = ledger.propose(name)
        assert running is not None
        score = 10.0 - fid
        if name == "broken":
            assert ledger.record(name, TrialFailure(reason="Diverged: the loss is nan at step 3"))
        elif ledger.record(name, at_rung(5, 10, fid, score)):
            assert ledger.record(name, at_rung(10, 10, fid, score))
        ledger.finish(name)
    assert ledger.propose("none") is None
    assert ledger.done()
    control, search = ledger.arms
    assert [t.values for t in control.study.trials] == [[5.0]]
    good, bad, broken = search.study.trials
    assert [t.state for t in search.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert good.values == {"fid": [3.0], "inception_score": [-7.0], "both": [3.0, -7.0]}[metric]
    assert [kept["fid"] for kept in marks_of(bad)] == [9.0]
    assert bad.user_attrs["reason"] == "not among the best at a rung"
    assert broken.user_attrs["reason"] == "Diverged: the loss is nan at step 3"
    assert (good.user_attrs["seconds"], bad.user_attrs["seconds"]) == (30.0, 15.0)
    if metric != "both":
        assert list(good.intermediate_values) == [5, 10]
    assert true_ends("study", ledger.arms)["study/tiny-search-0001"] == ("PRUNED", "not among the best at a rung")


def test_mlflow_gets_the_load_the_memory_and_at_the_last_rung_a_model(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_study: MakeStudy
):
    ledger, _ = new_ledger(make_study(), storage, tracker)
    ledger.data_set = DataSet("digits", "0123", "bases/digits", "{}", "{}")
    running = ledger.propose("a")
    assert running is not None
    of_gpu = {"load": [("gpu_0_utilization_percentage", 97.0)], "gpu_memory_gib": 1.5}
    for step, fid in ((5, 4.0), (10, 3.0), (10, 3.0)):  # the last as after a resume
        ledger.record("a", at_rung(step, 10, fid, **of_gpu, history=[[step, 0.5, 0.0, 0.0]]))
    ledger.finish("a")
    assert tracker.flush(60)
    client, run_id = tracker.client, tracker.run_id(ledger.run_of(running))
    assert run_id is not None
    found = {name: [(m.step, m.value) for m in client.get_metric_history(run_id, name)]
             for name in ("fid", "is", "system/gpu_0_utilization_percentage", "gpu_memory_gib")}  # fmt: skip
    assert found == {
        "fid": [(5, 4.0), (10, 3.0)],
        "is": [(5, 2.0), (10, 2.0)],
        "system/gpu_0_utilization_percentage": [(5, 97.0), (10, 97.0)],
        "gpu_memory_gib": [(5, 1.5), (10, 1.5)],
    }
    (model,) = client.search_logged_models([tracker.experiment_id])
    assert model.name == "tiny control lr=1·0e-03"
    assert {(m.key, m.value, m.step, m.dataset_digest) for m in model.metrics} == {
        ("fid", 3.0, 10, "0123"), ("is", 2.0, 10, "0123"),
    }  # fmt: skip


def test_a_storage_fault_stops_the_study_and_leaves_the_trial_open(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_study: MakeStudy
):
    ledger, _ = new_ledger(make_study(), storage, tracker)
    asked: list[int] = []
    ledger.on_halt.append(lambda: asked.append(1))
    assert ledger.propose("a") is not None
    assert ledger.record("a", TrialFailure(reason="[Errno 28] No space left on device: 'x'", stuck=True))
    ledger.finish("a")
    assert ledger.propose("b") is None
    assert asked == [1]
    assert ledger.stuck.startswith("[Errno 28]")
    assert [t.state for t in ledger.arms[0].study.trials] == [TrialState.RUNNING, *[TrialState.WAITING] * 0]
    assert not ledger.done()
    again, _ = new_ledger(make_study(), storage, tracker)
    assert "0 of 4 trials ended, 1 interrupted and taken up again" in again.found()


def test_a_database_that_cannot_be_written_is_named_by_its_own_words(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_study: MakeStudy
):
    ledger, _ = new_ledger(make_study(), storage, tracker)
    assert ledger.propose("a") is not None
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")  # of the one connection that SQLite's pool keeps
    assert ledger.record("a", at_rung(5, 10, 5.0))
    ledger.finish("a")
    assert ledger.stuck == "attempt to write a readonly database"
    assert ledger.propose("b") is None


@pytest.mark.parametrize("limits", [Limits(seconds=100.0), Limits(device_seconds=70.0)])
def test_a_budget_keeps_the_share_of_the_finalists_back(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_study: MakeStudy, limits: Limits
):
    """A trial takes 30 s; the comparison 27 scores of 80 samples, 1 s each: of two finalists twice on three blocks,
    of base, guided base and control on three, and what chooses scale and control.
    """
    ledger, lines = new_ledger(make_study(search={"trials": 50}), storage, tracker, limits)
    begun = 0
    while ledger.propose(f"t{begun}") is not None:
        ledger.record(f"t{begun}", at_rung(10, 10, 5.0 + begun))
        ledger.finish(f"t{begun}")
        limits.started -= 30.0
        begun += 1
    seconds = 30.0 * begun + ledger.final_seconds()
    allowed = min(limits.seconds, limits.device_seconds)
    assert begun >= 2  # the control, and one
    assert ledger.final_seconds() == pytest.approx(27.0)
    assert seconds <= allowed < seconds + 30.0 or begun == 2
    assert ledger.done()
    assert sum("the budget allows no further trial" in line for line in lines) == 1


def test_whole_numbers_are_searched_as_whole_numbers(make_study: MakeStudy):
    train = make_study().train
    assert isinstance(distribution(train, "epochs", Range(low=1, high=8)), optuna.distributions.IntDistribution)
    assert isinstance(distribution(train, "lambda", Range(low=1, high=8)), optuna.distributions.FloatDistribution)


def test_trials_are_named_as_people_speak_of_them():
    params: dict[str, Any] = {"lambda": 312.4, "learning_rate": 1.4e-5, "beta": 0.02}
    assert readable(params) == "λ=312 lr=1.4e-05 beta=0.02"
