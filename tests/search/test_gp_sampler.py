"""What the sampler `gp` proposes: pure functions of trials, as Optuna's storage keeps them."""

import time
from collections.abc import Sequence

import numpy as np
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cca_ray.search.gp_sampler import APART, GP, MOST, MOST_RUNGS, Box, common_noise, knowledge
from cca_ray.search.samplers import Distribution, Earlier, Question
from tests.search.ledgers import score_of

SPACE: dict[str, Distribution] = {
    "lambda": FloatDistribution(1, 100, log=True),
    "learning_rate": FloatDistribution(1e-4, 1e-2, log=True),
}
BEST = {"lambda": 30.0, "learning_rate": 3e-4}
RUNGS = (0.25, 1.0)


def fid(params: dict[str, float], best: dict[str, float] = BEST) -> float:
    return 8 * float(np.exp(0.4 * sum(np.log10(params[name] / best[name]) ** 2 for name in SPACE)))


def trial(
    number: int,
    params: dict[str, float],
    state: TrialState = TrialState.COMPLETE,
    scores: Sequence[float] = (),
    space: dict[str, Distribution] = SPACE,
) -> FrozenTrial:
    """With these scores at its rungs; the error of each is 1 %."""
    kept = {
        f"rung {i}": score_of(i, {"fid": v, "inception_score": 2.0}, {"fid": list(np.linspace(-0.005, 0.005, 8) * v)})
        for i, v in enumerate(scores)
    }
    attributes = {name: score.model_dump() for name, score in kept.items()}
    value = scores[-1] if state == TrialState.COMPLETE else None
    made = create_trial(state=state, params=params, distributions=space, value=value, user_attrs=attributes)
    made.number = number
    return made


def question(trials: Sequence[FrozenTrial], seed: int = 0, earlier: Sequence[Earlier] = ()) -> Question:
    return Question(list(trials), SPACE, ("fid",), RUNGS, len(trials), seed, None, earlier)


def searched(count: int, best: dict[str, float] = BEST) -> list[FrozenTrial]:
    """Trials that it proposed itself, one after another."""
    trials: list[FrozenTrial] = []
    for number in range(count):
        params = dict(GP.propose(question(trials, number)))
        score = fid(params, best)
        trials.append(trial(number, params, scores=[1.3 * score, score]))
    return trials


def apart(a: dict[str, float], b: dict[str, float]) -> float:
    """In shares of half the space."""
    return float(np.abs(np.diff(Box(SPACE).inside([a, b]), axis=0)).max())


def test_the_same_trials_give_the_same_proposal_and_another_seed_another():
    trials = searched(5)
    assert GP.propose(question(trials, 1)) == GP.propose(question(trials, 1))
    assert GP.propose(question(trials, 1)) != GP.propose(question(trials, 2))


def test_the_first_proposal_is_in_the_middle_and_others_beside_it_are_elsewhere():
    first = dict(GP.propose(question([])))
    assert first == pytest.approx({"lambda": 10.0, "learning_rate": 1e-3})
    running = [trial(0, first, TrialState.RUNNING)]
    for number in range(1, 5):
        proposal = dict(GP.propose(question(running, number)))
        assert min(apart(proposal, t.params) for t in running) > 0.2
        running.append(trial(number, proposal, TrialState.RUNNING))


@pytest.mark.parametrize("beside", [0, 3])
def test_after_trials_that_failed_the_next_is_elsewhere(beside: int):
    """All fail, so that nothing is known; some run beside one another."""
    tried = list[dict[str, float]]()
    for number in range(12):
        states = [TrialState.RUNNING if i >= number - beside else TrialState.FAIL for i in range(number)]
        trials = [trial(i, params, state) for i, (params, state) in enumerate(zip(tried, states, strict=True))]
        proposal = dict(GP.propose(question(trials, number)))
        assert min((apart(proposal, params) for params in tried), default=1) > 0.1
        tried.append(proposal)


def test_a_few_trials_are_enough_for_a_smooth_surface():
    assert min(fid(t.params) for t in searched(10)) < 1.02 * 8


def test_proposals_beside_one_another_do_not_pile_up():
    trials = searched(8)
    for number in range(8, 12):
        proposal = dict(GP.propose(question(trials, number)))
        assert min((apart(proposal, t.params) for t in trials[8:]), default=1) >= APART
        trials.append(trial(number, proposal, TrialState.RUNNING))


def test_what_a_smaller_size_found_is_where_the_next_begins():
    smaller = Earlier(searched(12, {"lambda": 50.0, "learning_rate": 2e-4}), RUNGS, doublings=1.0)
    first = dict(GP.propose(question([], earlier=[smaller])))
    assert apart(first, {"lambda": 50.0, "learning_rate": 2e-4}) < 0.35


def test_its_own_scores_count_before_the_many_of_others():
    """A large study that it learns from could push them all out, for they are worse."""
    grid = [{"lambda": a, "learning_rate": b} for a in np.geomspace(1, 100, 20) for b in np.geomspace(1e-4, 1e-2, 10)]
    large = Earlier([trial(i, p, scores=[9.0, 8.0]) for i, p in enumerate(grid)], RUNGS, doublings=4.0)
    own = [trial(i, p, scores=[13.0, 10.0 + i]) for i, p in enumerate(grid[:4])]
    data = knowledge(question(own, earlier=[large]), Box(SPACE))
    assert data is not None
    assert len(data.values) == MOST
    assert (data.points.group < MOST_RUNGS).sum() == 2 * len(own)


def test_stopped_trials_are_known_by_their_rungs():
    """All of the space but one corner is bad already at a rung."""
    corner = {"lambda": 90.0, "learning_rate": 1.2e-4}
    grid = [{"lambda": a, "learning_rate": b} for a in (2.0, 10.0, 50.0) for b in (2e-4, 1e-3, 5e-3)]
    stopped = [trial(i, p, TrialState.PRUNED, [fid(p, corner)]) for i, p in enumerate(grid)]
    assert apart(dict(GP.propose(question(stopped))), corner) < 0.6


def test_a_place_where_trials_fail_is_left():
    middle = {"lambda": 10.0, "learning_rate": 1e-3}
    failed = [trial(i, {**middle, "lambda": 10.0 + i}, TrialState.FAIL) for i in range(3)]
    others = [
        trial(3 + i, {"lambda": a, "learning_rate": b}, scores=[12.0, 10.0])
        for i, (a, b) in enumerate([(2.0, 2e-4), (60.0, 2e-4), (2.0, 6e-3), (60.0, 6e-3)])
    ]
    assert apart(dict(GP.propose(question([*failed, *others]))), middle) > 0.2


@pytest.mark.parametrize("own", ["none", "a rung", "whole"])
def test_where_a_smaller_size_was_best_but_trials_fail_is_left(own: str):
    """Whatever is known of its own: a failure is worse than the best of all that is."""
    best, away = {"lambda": 50.0, "learning_rate": 2e-4}, {"lambda": 2.0, "learning_rate": 6e-3}
    smaller = Earlier(searched(12, best), RUNGS, doublings=1.0)
    trials = {
        "none": [],
        "a rung": [trial(0, away, TrialState.PRUNED, [15.0])],
        "whole": [trial(0, away, scores=[15.0, 12.0])],
    }[own]
    first = dict(GP.propose(question(trials, earlier=[smaller])))
    proposal = first
    for number in range(6):
        trials.append(trial(len(trials), proposal, TrialState.FAIL))
        proposal = dict(GP.propose(question(trials, number, [smaller])))
    assert apart(proposal, first) > 0.3


def test_a_failure_is_worse_than_the_best_also_beside_a_single_score():
    own = [trial(0, BEST, scores=[9.0, 8.0]), trial(1, {**BEST, "lambda": 2.0}, TrialState.FAIL)]
    data = knowledge(question(own), Box(SPACE))
    assert data is not None
    assert data.values[data.points.trial == 1] > data.values[data.points.trial == 0].max() + 0.1


def test_failures_count_beside_the_many_scores_of_others():
    grid = [{"lambda": a, "learning_rate": b} for a in np.geomspace(1, 100, 20) for b in np.geomspace(1e-4, 1e-2, 10)]
    large = Earlier([trial(i, p, scores=[9.0, 8.0]) for i, p in enumerate(grid)], RUNGS, doublings=4.0)
    failed = [trial(i, p, TrialState.FAIL) for i, p in enumerate(grid[:4])]
    data = knowledge(question(failed, earlier=[large]), Box(SPACE))
    assert data is not None
    assert len(data.values) == MOST
    assert set(data.points.trial) >= {0, 1, 2, 3}


def test_whole_numbers_are_proposed_as_such():
    space: dict[str, Distribution] = {"epochs": IntDistribution(1, 8), "learning_rate": SPACE["learning_rate"]}
    trials: list[FrozenTrial] = []
    for number in range(5):
        found = dict(GP.propose(Question(trials, space, ("fid",), RUNGS, number, number)))
        assert found["epochs"] in range(1, 9)
        assert isinstance(found["epochs"], int)
        assert 1e-4 <= found["learning_rate"] <= 1e-2
        trials.append(trial(number, found, scores=[9.0, 8.0 + abs(found["epochs"] - 3)], space=space))


def test_a_metric_of_which_more_is_better_is_searched_too():
    """Costs are below zero then."""
    grid = [{"lambda": a, "learning_rate": b} for a in (2.0, 10.0, 50.0) for b in (2e-4, 1e-3, 5e-3)]
    trials = []
    for number, params in enumerate(grid):
        found = trial(number, params, scores=[9.0, 8.0])
        score = score_of(1, {"fid": 8.0, "inception_score": 300 / fid(params)})
        found.user_attrs = {"rung 0": score.model_dump(), "rung 1": score.model_dump()}
        trials.append(found)
    proposal = GP.propose(Question(trials, SPACE, ("inception_score",), RUNGS, 9, 0))
    assert apart(dict(proposal), BEST) < 0.6


def test_common_noise_is_what_all_scores_share():
    rng = np.random.default_rng(0)
    shared = rng.normal(size=500)
    alike = [shared + rng.normal(size=500) for _ in range(6)]
    assert common_noise(alike) == pytest.approx(0.5, abs=0.1)
    assert common_noise([rng.normal(size=500) for _ in range(6)]) == pytest.approx(0.0, abs=0.05)
    assert common_noise(alike[:1]) == 0.0


def test_two_hundred_trials_take_no_time():
    rng = np.random.default_rng(0)
    box = Box(SPACE)
    points = [box.params(x) for x in rng.uniform(-1, 1, (200, 2))]
    trials = [trial(i, p, scores=[1.3 * fid(p), fid(p)]) for i, p in enumerate(points)]
    asked = question(trials)
    began = time.process_time()
    GP.propose(asked)
    assert time.process_time() - began < 1.0  # the goal is half of it, on a machine that does nothing else
