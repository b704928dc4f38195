"""What the memory of a study decides; real Optuna storage, no Ray."""

import time
from collections.abc import Mapping
from dataclasses import replace

import optuna
import pytest
from optuna.trial import TrialState

from cca_ray.config import StudyConfig
from cca_ray.contracts import Attempt, TrialReport
from cca_ray.search.budget import Limits
from cca_ray.search.ledger import Ledger
from cca_ray.search.listener import Listener, RungOutcome, TrialEnd, TrialInfo
from cca_ray.search.mlflow_listener import true_ends
from cca_ray.search.records import RULE, rung_scores, used_device_seconds
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.reports import TrialFailure
from tests.conftest import MakeStudy
from tests.search.ledgers import at_rung, heartbeat, new_ledger, score_of


class Heard(Listener):
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def on_trial_start(self, trial: TrialInfo) -> None:
        self.events.append(f"start {trial.key}")

    def on_trial_result(self, trial: TrialInfo, report: TrialReport) -> None:
        self.events.append(f"result {report.step}")

    def on_rung(self, trial: TrialInfo, outcome: RungOutcome) -> None:
        self.events.append(f"rung {outcome.score.step} {outcome.goes_on} {outcome.best}")

    def on_trial_complete(self, trial: TrialInfo, end: TrialEnd) -> None:
        self.events.append(f"complete {end.state}")

    def on_halt(self, size: str, running: int) -> None:
        self.events.append(f"halt {running}")

    def attributes(self, trial: TrialInfo) -> dict[str, str]:
        return {"heard": trial.key}


def test_listeners_are_told_in_the_order_in_which_it_happens(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    ledger, heard = new_ledger(make_config(), storage, tracker).ledger, Heard()
    ledger.listeners.append(heard)
    ledger.propose("a")
    for report in (heartbeat(2, 10), at_rung(5, 10, 4.0), at_rung(10, 10, 3.0), at_rung(10, 10, 3.0)):
        assert ledger.record("a", report)
    ledger.finish("a")
    assert heard.events == [
        "start tiny-control-0000", "result 2", "result 5", "rung 5 True None", "result 10", "rung 10 True 3.0",
        "result 10", "complete COMPLETE",
    ]  # fmt: skip
    assert ledger.arms[0].study.trials[0].user_attrs["heard"] == "tiny-control-0000"


@pytest.mark.parametrize("metric", ["fid", "inception_score", "both"])
def test_states_and_values_are_the_true_ones(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy, metric: str
):
    config = make_config(search={"metric": metric, "grace_trials": 1, "keep": 0.4})
    ledger = new_ledger(config, storage, tracker).ledger
    fids = {"control": 5.0, "good": 3.0, "bad": 9.0, "broken": 0.0}
    for name, fid in fids.items():
        assert ledger.propose(name) is not None
        score = 10.0 - fid
        if name == "broken":
            assert ledger.record(name, TrialFailure(reason="Diverged: the loss is nan at step 3"))
        else:
            goes_on = ledger.record(name, at_rung(5, 10, fid, score))
            assert goes_on == (name != "bad")
            assert not goes_on or ledger.record(name, at_rung(10, 10, fid, score))
        ledger.finish(name)
    assert ledger.propose("none") is None
    assert ledger.done()
    control, search = ledger.arms
    assert [t.values for t in control.study.trials] == [[5.0]]
    good, bad, broken = search.study.trials
    assert [t.state for t in search.study.trials] == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]
    assert good.values == {"fid": [3.0], "inception_score": [-7.0], "both": [3.0, -7.0]}[metric]
    assert [kept.values["fid"] for kept in rung_scores(bad)] == [9.0]
    assert bad.user_attrs["reason"] == "not among the best at a rung"
    assert broken.user_attrs["reason"] == "Diverged: the loss is nan at step 3"
    assert (good.user_attrs["seconds"], bad.user_attrs["seconds"]) == (30.0, 15.0)
    assert list(good.intermediate_values) == ([] if metric == "both" else [5, 10])
    assert true_ends("study", ledger.arms)["study/tiny-search-0001"] == ("PRUNED", "not among the best at a rung")


@pytest.mark.parametrize(("measured", "value"), [(["kid"], 2.0), (["inception_score", "kid"], -2.0)])
def test_where_no_fid_is_measured_the_control_goes_by_the_metric_that_chooses(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy, measured: list[str], value: float
):
    config = make_config(search={"metric": measured[0], "trials": 1}, score={"metrics": measured})
    told = new_ledger(config, storage, tracker)
    for name in ("control", "search"):
        assert told.ledger.propose(name)
        score = score_of(10, dict.fromkeys(measured, 2.0))
        assert told.ledger.record(name, heartbeat(10, 10).model_copy(update={"score": score}))
        told.ledger.finish(name)
    assert told.ledger.done()
    assert [[t.values for t in arm.study.trials] for arm in told.ledger.arms] == [[[value]], [[value]]]
    assert any(measured[0] in line for line in told.lines)


@pytest.mark.parametrize("metric", ["fid", "inception_score", "both"])
def test_by_the_posterior_a_trial_stops_that_promises_less_than_a_new_one(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy, metric: str
):
    """Once a trial is completed; of both metrics the usual rule decides, which needs four trials."""
    config = make_config(search={"metric": metric, "rungs": "posterior", "sampler": "gp", "trials": 3})
    ledger = new_ledger(config, storage, tracker).ledger
    for name, fid in {"control": 5.0, "first": 6.0, "bad": 9.0, "better": 4.0}.items():
        assert ledger.propose(name) is not None
        goes_on = ledger.record(name, at_rung(5, 10, fid, 10.0 - fid, spread=0.02))
        assert goes_on == (name != "bad" or metric == "both")
        assert not goes_on or ledger.record(name, at_rung(10, 10, fid, 10.0 - fid, spread=0.02))
        ledger.finish(name)
    assert ledger.done()
    rules = {t.user_attrs.get(RULE) for t in ledger.arms[1].study.trials}
    assert rules == ({None} if metric == "both" else {"posterior"})


def test_a_search_ends_when_another_trial_would_bring_too_little(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    """A flat surface: nothing is to be gained. Running the command again begins no trial either."""
    config = make_config(
        search={"sampler": "gp", "trials": 30, "grace_trials": 2, "stop_when": {"expected_gain": 0.02}}
    )
    told = new_ledger(config, storage, tracker)
    ledger, number = told.ledger, 0
    while ledger.propose(f"{number}") is not None:
        for step in (5, 10):
            assert ledger.record(f"{number}", at_rung(step, 10, 5.0, spread=0.01))
        ledger.finish(f"{number}")
        number += 1
    assert 3 <= number < 20
    assert ledger.done()
    assert (ledger.used_up, ledger.enough) == (False, True)
    assert [line for line in told.lines if "stop_when" in line]
    again = new_ledger(config, storage, tracker).ledger
    assert not again.done()
    assert again.propose("again") is None
    assert again.done()


def two_at_once(make_config: MakeStudy) -> StudyConfig:
    limit = {"stop_when": {"expected_gain": 0.02}, "max_concurrent": 2}
    return make_config(search={"sampler": "gp", "trials": 30, "grace_trials": 2, **limit})


def search_until_none(ledger: Ledger, fid: float) -> str:
    """Two at once, until none more begins; which one still runs."""
    number = 0
    while ledger.propose(f"{number}") is not None:
        if number:
            finish(ledger, f"{number - 1}", fid)
        number += 1
    assert number < 20
    return f"{number - 1}"


def test_a_search_does_not_end_while_a_trial_runs_that_may_be_the_best(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    ledger = new_ledger(two_at_once(make_config), storage, tracker).ledger
    last = search_until_none(ledger, 5.0)
    assert ledger.undecided()
    assert ledger.at_once() == 2  # or may begin
    finish(ledger, last, 3.0)
    assert ledger.propose("more") is not None
    assert not ledger.enough


def test_the_next_run_decides_as_this_one_whether_a_search_ends(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    ledger, names, begun = new_ledger(two_at_once(make_config), storage, tracker).ledger, list[str](), 0
    while True:
        while len(names) < 2 and ledger.propose(f"{begun}") is not None:
            names.append(f"{begun}")
            begun += 1
        if not names:
            break
        assert begun < 30
        finish(ledger, names.pop(0), 5.0)
    assert ledger.enough
    assert not ledger.undecided()
    assert ledger.done()
    assert new_ledger(two_at_once(make_config), storage, tracker).ledger.propose("again") is None


def finish(ledger: Ledger, name: str, fid: float) -> None:
    for step in (5, 10):
        assert ledger.record(name, at_rung(step, 10, fid, spread=0.01))
    ledger.finish(name)


def test_a_storage_fault_stops_the_study_and_leaves_the_trial_open(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    told, heard = new_ledger(make_config(), storage, tracker), Heard()
    ledger = told.ledger
    ledger.listeners.append(heard)
    assert ledger.propose("a") is not None
    assert ledger.record("a", TrialFailure(reason="[Errno 28] No space left on device: 'x'", stuck=True))
    ledger.finish("a")
    assert ledger.propose("b") is None
    assert [event for event in heard.events if "halt" in event] == ["halt 1"]
    assert ledger.stuck.startswith("[Errno 28]")
    assert [t.state for t in ledger.arms[0].study.trials] == [TrialState.RUNNING, *[TrialState.WAITING] * 0]
    assert not ledger.done()
    again = new_ledger(make_config(), storage, tracker).ledger
    assert "0 of 4 trials ended, 1 interrupted and resumed" in again.found()


def test_a_database_that_cannot_be_written_is_named_by_its_own_words(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    ledger = new_ledger(make_config(), storage, tracker).ledger
    assert ledger.propose("a") is not None
    with storage.engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA query_only = ON")  # of the one connection that SQLite's pool keeps
    assert ledger.record("a", at_rung(5, 10, 5.0))
    ledger.finish("a")
    assert ledger.stuck == "attempt to write a readonly database"
    assert ledger.propose("b") is None


@pytest.mark.parametrize(
    ("limits", "trials"),
    [
        (Limits(seconds=100.0), 2),
        (Limits(seconds=143.0), 3),  # the time that the test itself takes counts too
        (Limits(device_seconds=70.0), 2),  # the control, and one, whatever the budget
        (Limits(device_seconds=120.0), 3),
        (Limits(seconds=305.0, replicates=3), 7),  # three more in two rounds
        (Limits(device_seconds=240.0, replicates=3), 4),
    ],
)
def test_a_budget_keeps_the_share_of_the_finalists_back(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy, limits: Limits, trials: int
):
    """A trial takes 30 s; the comparison 25 scores of 80 samples, 1 s each: of two finalists on three blocks, of
    the winner on three more and of the other on one, of base, guided base and control on three, and what chooses.
    """
    limits = replace(limits, started=time.monotonic())  # not when the tests were listed
    told = new_ledger(make_config(search={"trials": 50}), storage, tracker, limits)
    ledger, lines = told.ledger, told.lines
    begun = 0
    while ledger.propose(f"t{begun}") is not None:
        ledger.record(f"t{begun}", at_rung(10, 10, 5.0 + begun))
        ledger.finish(f"t{begun}")
        ledger.limits = replace(ledger.limits, started=ledger.limits.started - 30.0)
        begun += 1
    assert begun == trials
    assert ledger.final_seconds() == pytest.approx(25.0)
    assert ledger.done()
    assert sum("the budget allows no further trial" in line for line in lines) == 1


def test_a_replicate_counts_as_long_as_its_settings_are_a_finalists(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    """Of two finalists; a further trial that pushes one out is still to be trained again."""
    config = make_config(search={"trials": 3}, score={"finalists": 2})
    ledger = new_ledger(config, storage, tracker, Limits(device_seconds=1e6, replicates=4)).ledger
    control = ledger.propose("control")
    assert control
    finish(ledger, "control", 9.0)
    settings = list[Mapping[str, float]]()
    for name, fid in (("first", 5.0), ("second", 6.0)):
        trial = ledger.propose(name)
        assert trial
        settings.append(trial.params)
        finish(ledger, name, fid)
    assert ledger.replicates_left() == 4
    ledger.again = [{**params, "seed": seed} for params in settings for seed in (1, 2)]
    assert ledger.replicates_left() == 0
    kept = ledger.limits
    assert ledger.propose("third")
    finish(ledger, "third", 4.0)
    assert ledger.replicates_left() == 2
    assert ledger.limits == kept


@pytest.mark.parametrize(("device_seconds", "controls"), [(110.0, 2), (140.0, 3)])
def test_the_control_goes_beyond_its_rates_as_far_as_the_budget_allows(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy, device_seconds: float, controls: int
):
    """The given rates and a first trial are run whatever they cost: 30 s each, and 26 s of comparison are kept back."""
    config = make_config(search={"trials": 9}, control={"learning_rates": [1e-3, 3e-3]})
    told = new_ledger(config, storage, tracker, Limits(device_seconds=device_seconds))
    begun, ledger = list[str](), told.ledger
    while trial := ledger.propose("a"):
        begun.append(trial.arm)
        ledger.record("a", at_rung(10, 10, 9.0 - len(begun)))
        ledger.finish("a")
    assert (begun.count("control"), begun.count("search")) == (controls, 1)
    assert ledger.used_up
    assert ledger.done()
    assert sum("the budget allows no further trial" in line for line in told.lines) == 1


def told_by(id: str, seconds: float, step: int) -> TrialReport:
    """A report of an attempt on two cards, which counts what came before it only as far as it was not lost."""
    attempt = Attempt(id=id, seconds=seconds, device_seconds={"A40": 2 * seconds})
    return heartbeat(step, 10).model_copy(update={"attempt": attempt})


def test_a_trial_counts_all_attempts_whatever_ended_them(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    """The first is killed with its driver, the second loses its process, the third fails: 20, 30 and 5 s."""
    first = new_ledger(make_config(), storage, tracker).ledger
    first.keep_s = 0.0  # every report is written down
    first.propose("a")
    first.record("a", told_by("first", 8.0, 2))
    first.record("a", told_by("first", 20.0, 4))
    assert sum(first.used().running) == 40.0
    assert first.used().device_seconds == 0.0

    second = new_ledger(make_config(), storage, tracker).ledger
    assert second.used().device_seconds == 40.0  # interrupted, and not taken up yet
    second.propose("a")
    assert (second.used().device_seconds, second.used().running) == (0.0, (40.0,))
    second.record("a", told_by("first", 8.0, 2))  # as the checkpoint has it
    second.record("a", told_by("second", 24.0, 5))
    running = second.running["a"]
    running.reported -= 6.0
    second.lose("a", "lost its process", never_ran=False)
    assert running.seconds == pytest.approx(50.0, abs=1)
    failed = Attempt(id="third", seconds=5.0, device_seconds={"H100": 5.0})
    second.record("a", TrialFailure(reason="Diverged", attempt=failed))
    second.finish("a")
    (trial,) = second.arms[0].study.get_trials(states=(TrialState.FAIL,))
    assert trial.user_attrs["seconds"] == pytest.approx(55.0, abs=1)
    used = used_device_seconds([trial])
    assert used == {"A40": pytest.approx(100.0, abs=2), "H100": 5.0}
    assert second.used().device_seconds == sum(used.values())


def test_what_an_earlier_version_kept_of_an_interrupted_trial_counts_once(
    storage: optuna.storages.RDBStorage, tracker: Tracker, make_config: MakeStudy
):
    first = new_ledger(make_config(), storage, tracker).ledger
    first.propose("a")
    trial = first.running["a"].trial
    trial.set_user_attr("seconds", 9.0)
    trial.set_user_attr("device_seconds", {"CPU": 9.0})
    second = new_ledger(make_config(), storage, tracker).ledger
    second.propose("a")
    second.record("a", heartbeat(2, 10))  # of its checkpoint: 6 s
    second.record("a", told_by("new", 4.0, 3))
    assert second.running["a"].seconds == 13.0
    assert second.running["a"].device_seconds == {"CPU": 9.0, "A40": 8.0}
