"""What Optuna keeps of a trial, read again."""

from optuna.trial import TrialState, create_trial

from cca_ray.search.records import end_of, readable, rung_scores, used_device_seconds
from tests.search.ledgers import score_of

OF_VERSION_0_1 = {
    "step": 5, "fid": 4.0, "inception_score": 2.0, "without": [[4.1, 2.1], [3.9, 1.9]], "scoring_seconds": 0.5,
    "samples": 40,
}  # fmt: skip


def test_rungs_are_read_in_their_order_as_now_and_as_version_0_1_wrote_them():
    later = [score_of(10 * (i + 1), {"fid": 3.0}) for i in range(10)]
    kept = {f"rung {i + 1}": score.model_dump(mode="json") for i, score in enumerate(later)}
    trial = create_trial(value=3.0, user_attrs={**kept, "rung 0": OF_VERSION_0_1})
    first, *others = rung_scores(trial)
    assert (first.step, first.values) == (5, {"fid": 4.0, "inception_score": 2.0})
    assert first.without == {"fid": (4.1, 3.9), "inception_score": (2.1, 1.9)}
    assert others == later


def test_device_seconds_are_added_up_by_type_of_card():
    used = ({"A40": 1.0}, {"A40": 2.0, "CPU": 4.0})
    trials = [create_trial(value=1.0, user_attrs={"device_seconds": seconds}) for seconds in used]
    assert used_device_seconds([*trials, create_trial(value=1.0)]) == {"A40": 3.0, "CPU": 4.0}


def test_an_open_trial_is_an_interrupted_one():
    assert end_of(create_trial(state=TrialState.RUNNING)) == ("INTERRUPTED", "")
    assert end_of(create_trial(state=TrialState.FAIL, user_attrs={"reason": "why"})) == ("FAIL", "why")


def test_trials_are_named_as_people_speak_of_them():
    params = {"lambda": 312.4, "learning_rate": 1.4e-5, "beta": 0.02}
    assert readable(params) == "λ=312 lr=1.4e-05 beta=0.02"
