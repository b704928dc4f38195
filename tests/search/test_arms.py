"""What a study of one size tries next, and under which settings it may go on; real Optuna storage."""

from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial

from cca_ray.config import Range, Train
from cca_ray.search.arms import Arm, Smaller, cost_names, difference, distribution, lost, memory_of, open_arms
from cca_ray.search.size_study import open_storage
from tests.conftest import MakeStudy
from tests.search.ledgers import DIGESTS, score_of

SAMPLERS = ("gp", "tpe", "random")


def test_another_setting_under_the_same_name_is_refused(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    open_arms(make_config(), "study", storage, DIGESTS)
    more = make_config(search={"trials": 9, "replicates": 2}, placement={"workers": 2})
    open_arms(more, "study", storage, DIGESTS)
    elsewhere = make_config().with_paths({"tokens": "/somewhere/else"})
    open_arms(elsewhere, "study", storage, DIGESTS)
    for config, digests, told in (
        (make_config(train={"beta": 0.7}), DIGESTS, r"train\.beta was 0\.1, is 0\.7"),
        (make_config(search={"seed": 5}), DIGESTS, r"search\.seed was 0, is 5"),
        (make_config(), {**DIGESTS, "tokens": "u"}, r"files\.tokens was t, is u"),
        (make_config(), {**DIGESTS, "protocol": "q"}, r"files\.protocol was p, is q"),
    ):
        with pytest.raises(ValueError, match=told + "; use another --name, or --fresh"):
            open_arms(config, "study", storage, digests)


def test_a_study_of_version_0_1_0_goes_on_whatever_its_objective(
    storage: optuna.storages.RDBStorage, make_config: MakeStudy
):
    """Its memory has the parameters of all objectives."""
    config = make_config(train={"objective": "dpo"}, search={"space": {"beta": {"low": 0.01, "high": 1.0}}})
    for arm in open_arms(config, "study", storage, DIGESTS):
        memory = arm.study.user_attrs["memory"]
        arm.study.set_user_attr("memory", {**memory, "train": {**memory["train"], "lambda": 1.0}})
    assert len(open_arms(config, "study", storage, DIGESTS)) == 2


def test_what_came_later_is_not_in_the_memory_of_a_study_that_does_not_use_it(make_config: MakeStudy):
    """So that studies of earlier versions go on."""
    memory = memory_of(make_config(), DIGESTS)
    assert memory["data"] == {}
    assert set(memory["score"]) == {  # type: ignore[call-overload]
        "image_size", "labels", "temperature", "top_k", "top_p", "seed", "samples", "blocks", "finalists",
        "guidance_scales", "winner_guidance_scales",
    }  # fmt: skip
    used = memory_of(make_config(score={"guidance_power": 2.75, "last_temperature": 0.5}), DIGESTS)
    assert difference(memory, used) == "score.last_temperature was None, is 0.5"
    assert used["score"]["guidance_power"] == 2.75  # type: ignore[index]


def test_a_proposal_that_was_cut_short_is_completed(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    """A kill between Optuna's taking a waiting point and its parameters leaves a trial without them."""
    config = make_config(search={"seed": 20250101, "first_points": [{"lambda": 2.0, "learning_rate": 2e-3}]})
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


def test_a_trial_that_is_taken_up_keeps_what_it_has(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    _, search = open_arms(make_config(), "study", storage, DIGESTS)
    begun = [search.propose([]), search.propose([])]
    assert begun[1] is not None
    begun[1].report(3.0, 5)
    _, again = open_arms(make_config(), "study", storage, DIGESTS)
    taken_up = again.propose([1])
    assert taken_up is not None
    assert (taken_up.number, taken_up.params) == (1, begun[1].params)
    taken_up.report(2.0, 10)
    assert again.study.trials[1].intermediate_values == {5: 3.0, 10: 2.0}
    assert len(again.study.trials) == 2


def test_warm_start_points_are_tried_after_the_first_points(
    storage: optuna.storages.RDBStorage, make_config: MakeStudy
):
    config = make_config(search={"first_points": [{"lambda": 2.0, "learning_rate": 2e-3}]})
    open_arms(make_config().model_copy(update={"name": "smaller"}), "study", storage, DIGESTS)
    points = [Smaller("smaller", {"lambda": 300.0, "learning_rate": 1e-3, "beta": 0.5}, 1000)]
    _, search = open_arms(config, "study", storage, DIGESTS, lambda: points)
    tried = [trial.params for trial in (search.propose([]), search.propose([])) if trial]
    assert tried == [{"lambda": 2.0, "learning_rate": 2e-3}, {"lambda": 10.0, "learning_rate": 1e-3}]
    again = open_arms(config, "study", storage, DIGESTS, lambda: points)[1]
    assert len(again.study.trials) == 2


def test_what_a_warm_start_leaves_open_is_drawn_the_same_whoever_is_killed(make_config: MakeStudy, tmp_path: Path):
    """The smaller size did not search the learning rate; a driver dies before, or as the point is taken."""
    points = [Smaller("smaller", {"lambda": 5.0}, 1000), Smaller("smaller", {"lambda": 3.0}, 1000)]

    def opened(name: str) -> Arm:
        storage = open_storage(tmp_path / name)
        open_arms(make_config().model_copy(update={"name": "smaller"}), "study", storage, DIGESTS)
        return open_arms(make_config(), "study", storage, DIGESTS, lambda: points)[1]

    first = opened("undisturbed")
    undisturbed = [ask(first).params for _ in points]
    assert [params["lambda"] for params in undisturbed] == [5.0, 3.0]
    assert undisturbed[0]["learning_rate"] != undisturbed[1]["learning_rate"]
    killed = opened("killed")
    assert ask(killed).params == undisturbed[0]
    killed.study.ask()  # and nothing of it is written
    taken_up = opened("killed").propose([1])
    assert taken_up is not None
    assert taken_up.params == undisturbed[1]


def test_a_point_of_another_search_is_tried_as_the_whole_numbers_that_are_trained(
    storage: optuna.storages.RDBStorage, make_config: MakeStudy
):
    config = make_config(search={"space": {"epochs": {"low": 1, "high": 8}}})
    open_arms(config.model_copy(update={"name": "smaller"}), "study", storage, DIGESTS)
    points = [Smaller("smaller", {"epochs": 2.6}, 1000), Smaller("smaller", {"epochs": 9.5}, 1000)]
    _, search = open_arms(config, "study", storage, DIGESTS, lambda: points)
    assert [search.propose([]).params for _ in points] == [{"epochs": 3}, {"epochs": 8}]  # type: ignore[union-attr]
    waited = [trial.system_attrs["fixed_params"] for trial in search.study.trials]
    assert waited == [{"epochs": 3}, {"epochs": 8}]


def test_a_smaller_size_that_did_not_measure_what_is_searched_teaches_its_best_point_alone(
    storage: optuna.storages.RDBStorage, make_config: MakeStudy
):
    _, smaller = open_arms(make_config().model_copy(update={"name": "smaller"}), "study", storage, DIGESTS)
    done = ask(smaller)
    done.set_user_attr("rung 0", score_of(10, {"fid": 9.0, "inception_score": 2.0}).model_dump())
    smaller.study.tell(done, 9.0)
    points = [Smaller("smaller", done.params, 1000)]
    both = ["fid", "kid"]
    for metric, known in (("kid", 0), ("fid", 1)):
        config = make_config(search={"metric": metric, "sampler": "gp"}, score={"metrics": both})
        config = config.model_copy(update={"name": metric})
        _, search = open_arms(config, "study", storage, DIGESTS, lambda: points)
        assert [ask(search).params, ask(search).number] == [done.params, 1]
        assert len(search.question([], 0).earlier[0].trials) == known


def test_whole_numbers_are_searched_as_whole_numbers():
    train = Train()
    assert isinstance(distribution(train, "epochs", Range(low=1, high=8)), optuna.distributions.IntDistribution)
    assert isinstance(distribution(train, "lambda", Range(low=1, high=8)), optuna.distributions.FloatDistribution)


def test_a_metric_of_which_more_is_better_is_minimized_with_a_minus():
    fid, inception_score = cost_names(["fid", "inception_score"])
    assert fid == "FID"
    assert inception_score.startswith("-")


def test_whole_numbers_are_rounded_inward():
    found = distribution(Train(), "epochs", Range(low=1.2, high=4.9))
    assert (found.low, found.high) == (2, 4)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_no_point_is_proposed_twice(storage: optuna.storages.RDBStorage, make_config: MakeStudy, sampler: str):
    few = {"epochs": {"low": 1, "high": 4}}
    config = make_config(search={"space": few, "trials": 10, "random_trials": 2, "sampler": sampler})
    _, search = open_arms(config, "study", storage, DIGESTS)
    tried = []
    while (trial := search.propose([])) is not None:
        tried.append(trial.params["epochs"])
        search.study.tell(trial, abs(trial.params["epochs"] - 2))
    assert sorted(tried) == [1, 2, 3, 4]


def ask(search: Arm) -> optuna.Trial:
    trial = search.propose([])
    assert trial is not None
    return trial


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_study_that_is_killed_again_and_again_tries_the_same(make_config: MakeStudy, tmp_path: Path, sampler: str):
    """Its driver dies after every step of every proposal: before, when the settings wait, and when they are taken."""
    config = make_config(search={"trials": 6, "random_trials": 3, "seed": 7, "sampler": sampler})

    def opened(name: str) -> Arm:
        return open_arms(config, "study", open_storage(tmp_path / name), DIGESTS)[1]

    def finish(search: Arm, trial: optuna.Trial) -> None:
        fid = 10 + float(np.log(trial.params["lambda"] / 3) ** 2 + np.log(trial.params["learning_rate"] / 3e-3) ** 2)
        trial.set_user_attr("rung 0", score_of(10, {"fid": fid, "inception_score": 2.0}).model_dump())
        search.study.tell(trial, fid)

    undisturbed = opened("undisturbed")
    for _ in range(6):
        finish(undisturbed, ask(undisturbed))
    for number in range(6):
        search = opened("killed")
        trials = search.study.get_trials(deepcopy=False)
        search.study.enqueue_trial(search.next_point(trials, number))
        search = opened("killed")
        if number % 2:
            search.study.ask()  # and nothing of it is written
            taken_up = opened("killed").propose([number])
            assert taken_up is not None
            finish(search, taken_up)
        else:
            finish(search, ask(search))
    params = [trial.params for trial in opened("killed").study.trials]
    assert params == [trial.params for trial in undisturbed.study.trials]
    assert len({tuple(p.values()) for p in params}) == 6


def test_how_a_study_proposes_may_change(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    """No trial's result depends on it, and version 0.1.0 knew one sampler."""
    _, search = open_arms(make_config(search={"sampler": "tpe"}), "study", storage, DIGESTS)
    memory = search.study.user_attrs["memory"]
    search.study.set_user_attr("memory", {**memory, "search": {**memory["search"], "random_trials": 6}})
    assert open_arms(make_config(search={"sampler": "gp"}), "study", storage, DIGESTS)[1].study.user_attrs


def test_tpe_proposes_what_optuna_would(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    config = make_config(search={"trials": 12, "random_trials": 3, "seed": 7, "sampler": "tpe"})
    _, search = open_arms(config, "study", storage, DIGESTS)
    for number in range(12):
        twin = optuna.create_study(
            sampler=optuna.samplers.TPESampler(seed=7000 + number, n_startup_trials=3, constant_liar=True)
        )
        twin.add_trials(search.study.get_trials(deepcopy=False))
        expected, trial = twin.ask(dict(search.space)).params, ask(search)
        assert trial.params == expected
        if number % 3:  # others are left running, as side by side
            search.study.tell(trial, trial.params["lambda"])


def test_a_replicate_that_failed_with_its_machine_is_tried_again_and_one_that_diverged_is_not():
    seeds = {"seed": IntDistribution(0, 9)}

    def ended(seed: int, state: TrialState = TrialState.FAIL, reason: str = "the process died"):
        attributes = {"reason": reason, "key": f"tiny-replicate-{seed}"}
        values = [1.0] if state == TrialState.COMPLETE else None
        return create_trial(
            state=state, values=values, params={"seed": seed}, distributions=seeds, user_attrs=attributes
        )

    trials = [
        ended(1), ended(2, TrialState.COMPLETE), ended(3, reason="Diverged: the loss is nan at step 2"),
        ended(4), ended(4, TrialState.COMPLETE), ended(5), ended(5),
    ]  # fmt: skip
    points = [{"seed": float(seed)} for seed in range(1, 7)]
    assert lost(points, trials) == [{"seed": 1.0}, {"seed": 5.0}]
    assert lost(points, [*trials, create_trial(state=TrialState.WAITING)]) == []
