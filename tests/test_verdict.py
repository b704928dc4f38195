"""What is better, what ties, and what nothing beats."""

import numpy as np
import pytest

from cca_ray.contracts import FID, INCEPTION_SCORE, Difference, Score, SizeSummary
from cca_ray.verdict import best_of, compared, front, noise, ratio, ties, verdict, verdict_in_words
from tests.studies import summary_of


@pytest.mark.parametrize(("fid", "outcome"), [(17.0, 1), (17.8, 0), (18.2, 0), (19.0, -1)])
def test_two_models_are_equal_within_their_spread(fid: float, outcome: int):
    assert compared(summary_of(fid=fid, std=0.2), "guided") == outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome", "word"),
    [(-0.9, -0.1, 1, "better than"), (-0.6, 0.2, 0, "not distinguishable from"), (0.1, 0.9, -1, "worse than")],
)
def test_the_interval_of_the_difference_decides_and_the_verdict_begins_with_it(
    low: float, high: float, outcome: int, word: str
):
    found = Difference(value=(low + high) / 2, low=low, high=high, at_least_as_good=0.5)
    size = summary_of(fid=17.1, std=9.0, differences={"guided": found})
    assert compared(size, "guided") == outcome
    assert verdict(size).startswith(f"digits_s: {word} the guided base")
    assert f"{found.value:+.2f} (95 %: {low:+.2f} to {high:+.2f})" in verdict(size)
    assert compared(by_inception_score(size), "guided") == -outcome


def test_it_is_said_which_noise_a_spread_covers():
    one = summary_of()
    assert "sampling alone" in noise([one])
    several = one.model_copy(update={"winner": one.winner.model_copy(update={"models": 3})})
    assert "3 training seeds" in noise([several])
    assert "several training seeds" in noise([one, several])


def by_inception_score(size: SizeSummary) -> SizeSummary:
    return size.model_copy(update={"metrics": (INCEPTION_SCORE, FID)})


def test_where_more_is_better_more_is_better():
    good, bad = (by_inception_score(summary_of(fid=fid)) for fid in (12.0, 40.0))
    assert (compared(good, "guided"), compared(bad, "guided")) == (1, -1)
    assert ratio(good, "guided") > 1
    assert "inception score 8.40 ± 0.01: better than the guided base (8.10)" in verdict_in_words(good)


def test_the_verdict_compares_with_guidance_and_control():
    said = verdict(summary_of(fid=17.1))
    assert "0.95 × the guided base" in said
    assert "0.72 × the control" in said


def test_the_winner_does_not_tie_with_itself():
    size = summary_of(winner=3)
    assert [finalist.trial for finalist in ties(size)] == [4]


def test_of_equal_trials_the_first_is_the_best():
    scores = {n: Score(values={"fid": fid, "inception_score": -fid}) for n, fid in ((4, 2.0), (2, 2.0), (1, 3.0))}
    assert best_of(scores, FID) == 2
    assert best_of(scores, INCEPTION_SCORE) == 2
    assert best_of({}, FID) is None


def test_the_front_holds_what_nothing_beats():
    points = np.array([[1.0, 5.0], [2.0, 2.0], [5.0, 1.0], [3.0, 3.0], [2.0, 2.0], [5.0, 5.0]])
    assert front(points).tolist() == [True, True, True, False, True, False]
    assert front(np.array([[3.0], [1.0], [1.0]])).tolist() == [False, True, True]
