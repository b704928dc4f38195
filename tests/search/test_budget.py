"""When a budget allows a trial more."""

import pytest

from cca_ray.search.budget import Limits, Used, affordable, final_seconds, kept_back
from tests.conftest import MakeStudy
from tests.search.ledgers import score_of

USED = Used(device_seconds=60.0, running=(), completed=((20.0, 20.0), (40.0, 40.0)))


def allows(limits: Limits, now: float, used: Used, final: float, wide: float) -> bool:
    return affordable(limits, now, used, kept_back(limits, used, final, wide, at_once=1))


@pytest.mark.parametrize(("seconds", "allowed"), [(139.0, False), (140.0, True)])
def test_wall_time_must_hold_a_mean_trial_and_the_final_comparison(seconds: float, allowed: bool):
    limits = Limits(seconds=seconds, started=1000.0)
    assert allows(limits, 1100.0, USED, final=10.0, wide=1.0) == allowed


@pytest.mark.parametrize(("at_once", "seconds"), [(2, 100.0), (4, 70.0), (9, 40.0)])
def test_finalists_that_are_trained_again_are_kept_back_like_trials(at_once: int, seconds: float):
    """Five of a mean trial's 30 s each, in rounds, beside the comparison's 10 s on two cards."""
    limits = Limits(seconds=300.0, device_seconds=300.0, started=0.0, replicates=5)
    kept = kept_back(limits, USED, final=10.0, devices=2.0, at_once=at_once)
    assert kept == (seconds, 5 * 30.0 + 2 * 10.0)
    assert affordable(limits, 300.0 - 30.0 - seconds, USED, kept)
    assert not affordable(limits, 301.0 - 30.0 - seconds, USED, kept)
    assert not affordable(Limits(device_seconds=259.0, started=0.0, replicates=5), 0.0, USED, kept)


@pytest.mark.parametrize(("device_seconds", "allowed"), [(169.0, False), (170.0, True)])
def test_device_time_must_hold_those_that_run_too(device_seconds: float, allowed: bool):
    """60 s used, one trial that has taken 50 s already, a mean trial of 30 s, and 10 s of the comparison on 3 cards."""
    limits = Limits(device_seconds=device_seconds, started=0.0)
    used = Used(60.0, (50.0,), USED.completed)
    assert allows(limits, 0.0, used, final=10.0, wide=3.0) == allowed
    begun = Used(60.0, (1.0,), USED.completed)  # expected to take as long as the others
    assert allows(Limits(device_seconds=150.0, started=0.0), 0.0, begun, final=10.0, wide=3.0)
    assert not allows(Limits(device_seconds=149.0, started=0.0), 0.0, begun, final=10.0, wide=3.0)


def test_without_a_completed_trial_nothing_is_known_of_the_next():
    assert allows(Limits(seconds=10.0, started=0.0, replicates=9), 10.0, Used(0.0, (), ()), final=0.0, wide=1.0)


def test_the_final_comparison_is_counted_from_the_scores_at_rungs(make_config: MakeStudy):
    """25 scores of 80 samples, at 0.5 s for 40: of two finalists on three blocks, of the winner on three more and of
    the other on one, of base, guided base and control on three, and what chooses scale and control.
    """
    config = make_config()
    assert final_seconds(config, []) == 0.0
    assert final_seconds(config, [score_of(5, {"fid": 1.0})] * 3) == pytest.approx(25.0)
