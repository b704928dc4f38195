"""Which files no later run needs."""

import itertools
from pathlib import PurePath

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cca_ray.search.cleaning import Progress, best_trials, needed_weights, unneeded


def study_of(values: list[list[float]], others: tuple[TrialState, ...] = ()) -> optuna.Study:
    """With these completed trials, and one of each other state."""
    study = optuna.create_study(directions=["minimize"] * len(values[0]))
    space = {"x": FloatDistribution(0, 1)}
    for some in values:
        study.add_trial(create_trial(values=some, params={"x": 0.5}, distributions=space))
    for state in others:
        study.add_trial(create_trial(state=state, params={"x": 0.5}, distributions=space))
    return study


@pytest.mark.parametrize("metrics", [1, 2])
def test_whoever_can_still_become_a_finalist_is_needed(metrics: int):
    """Against every finalist of every way on: up to three further trials, anywhere."""
    rng, most = np.random.default_rng(metrics), 2
    for _ in range(20):
        values = rng.integers(0, 6, (6, metrics)).astype(float).tolist()
        study = study_of(values)
        needed = needed_weights("search", study.trials, Progress(most, finished=False))
        for further in itertools.chain.from_iterable(rng.integers(0, 6, (20, n, metrics)).tolist() for n in range(4)):
            on = study_of([*values, *further])
            old = {t.number for t in best_trials(on.trials, most) if t.number < len(values)}
            assert old <= needed
        assert metrics == 2 or len(needed) == most


def test_a_finished_size_needs_its_finalists_but_not_twice_the_winner():
    trials = study_of([[3.0], [1.0], [2.0], [4.0]], (TrialState.FAIL, TrialState.PRUNED)).trials
    assert needed_weights("search", trials, Progress(3, finished=True, winner=2)) == {0, 1}
    assert needed_weights("search", trials, Progress(3, finished=True)) == {0, 1, 2}
    assert needed_weights("search", [], Progress(3, finished=True)) == set()
    for arm in ("control", "replicate"):
        assert needed_weights(arm, trials, Progress(3, finished=True)) == set()
        assert needed_weights(arm, trials, Progress(3, finished=False)) == {0, 1, 2, 3}


FILES = ("model.pt", "checkpoint.pt", "checkpoint.pt.partial-12", "samples-000005.png", "alive-0")


def kept(trial: FrozenTrial, needed: set[int]) -> set[str]:
    return {name for name in FILES if not unneeded(trial, PurePath("trials/key") / name, needed)}


def test_pictures_stay_and_all_that_a_trial_resumes_from():
    small = {"samples-000005.png", "alive-0"}
    complete, fail, pruned, running = study_of([[1.0]], (TrialState.FAIL, TrialState.PRUNED, TrialState.RUNNING)).trials
    assert kept(complete, {0}) == {"model.pt", *small}
    assert kept(complete, set()) == kept(fail, {0}) == kept(pruned, {0}) == small
    assert kept(running, set()) == set(FILES)
