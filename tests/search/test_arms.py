"""What a study of one size tries next, and under which settings it may go on; real Optuna storage."""

import optuna
import pytest

from cca_ray.config import Range, Train
from cca_ray.search.arms import cost_names, difference, distribution, memory_of, open_arms
from tests.conftest import MakeStudy
from tests.search.ledgers import DIGESTS


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
    points = [{"lambda": 300.0, "learning_rate": 1e-3, "beta": 0.5}]
    _, search = open_arms(config, "study", storage, DIGESTS, lambda: points)
    tried = [trial.params for trial in (search.propose([]), search.propose([])) if trial]
    assert tried == [{"lambda": 2.0, "learning_rate": 2e-3}, {"lambda": 10.0, "learning_rate": 1e-3}]
    again = open_arms(config, "study", storage, DIGESTS, lambda: points)[1]
    assert len(again.study.trials) == 2


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


def test_no_point_is_proposed_twice(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    config = make_config(search={"space": {"epochs": {"low": 1, "high": 4}}, "trials": 10, "random_trials": 2})
    _, search = open_arms(config, "study", storage, DIGESTS)
    tried = []
    while (trial := search.propose([])) is not None:
        tried.append(trial.params["epochs"])
        search.study.tell(trial, abs(trial.params["epochs"] - 2))
    assert sorted(tried) == [1, 2, 3, 4]


def test_looking_for_a_new_point_changes_no_proposal(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    """The twin that is asked before draws what the study itself then draws."""
    config = make_config(search={"trials": 12, "random_trials": 3, "seed": 7})
    _, search = open_arms(config, "study", storage, DIGESTS)
    for number in range(12):
        trials = search.study.get_trials(deepcopy=False)
        expected = search.drawn(trials, search.sampler(number, 0))
        trial = search.propose([])
        assert trial is not None
        assert trial.params == expected
        if number % 3:  # others are left running, as side by side
            search.study.tell(trial, trial.params["lambda"])
