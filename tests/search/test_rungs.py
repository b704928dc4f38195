"""The rule at a rung."""

import numpy as np
import pytest

from cca_ray.config import Rung
from cca_ray.search.rungs import Mark, best_value, cost, goes_on, share_kept
from tests.conftest import MakeStudy
from tests.search.ledgers import score_of

BOTH = ("fid", "inception_score")


def mark(
    fid: float, noise: list[float] | None = None, inception_score: float = 2.0, metrics: tuple[str, ...] = ("fid",)
):
    score = score_of(5, {"fid": fid, "inception_score": inception_score}, {"fid": noise or [0.0] * 8})
    return Mark.of(score, metrics)


def test_less_is_better_in_a_mark():
    assert (cost("fid", 3.0), cost("inception_score", 3.0)) == (3.0, -3.0)
    both = mark(3.0, inception_score=7.0, metrics=BOTH)
    assert both.costs.tolist() == [3.0, -7.0]


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
    best = [mark(1.0, metrics=BOTH), mark(1.1, metrics=BOTH), mark(1.2, metrics=BOTH)]
    assert not goes_on(mark(5.0, inception_score=1.5, metrics=BOTH), best, keep=0.5, grace=1)
    assert goes_on(mark(5.0, inception_score=2.5, metrics=BOTH), best, keep=0.5, grace=1)


def test_a_mark_is_by_the_metrics_that_are_searched():
    score = score_of(5, {"fid": 3.0, "inception_score": 7.0}, {"inception_score": [1.0, 0.0]})
    found = Mark.of(score, ("inception_score",))
    np.testing.assert_array_equal(found.costs, [-7.0])
    np.testing.assert_array_equal(found.without, [[-8.0, -7.0]])


@pytest.mark.parametrize(("rung", "kept"), [(0, 0.25), (1, 0.5), (5, 0.5)])
def test_a_rung_may_keep_a_share_of_its_own(make_config: MakeStudy, rung: int, kept: float):
    config = make_config().model_copy(update={"rungs": (Rung(at=0.5, samples=60, keep=0.25), Rung(at=1.0, samples=80))})
    assert share_kept(config, rung) == kept


def test_better_by_two_standard_errors_is_sure_and_no_less():
    """Of eight values that are 1 above and below, the jackknife's error is √7: two of them are 5.29."""
    noisy = [1.0, -1.0] * 4
    best = mark(1.0, noisy)
    assert not best.surely_better(mark(1.0 + 5.28))
    assert best.surely_better(mark(1.0 + 5.30))
    assert not mark(1.0).surely_better(mark(1.0))  # without noise, too, what is equal is no better


def test_what_is_better_in_one_metric_and_equal_in_the_other_is_surely_better():
    best = mark(1.0, inception_score=2.0, metrics=BOTH)
    assert best.surely_better(mark(3.0, inception_score=2.0, metrics=BOTH))
    assert not best.surely_better(mark(3.0, inception_score=2.1, metrics=BOTH))


@pytest.mark.parametrize(("better", "on"), [(4, True), (5, False)])
def test_a_share_of_seven_is_rounded_up(better: int, on: bool):
    """The best 0.7 of seven are 4.9, so five go on: whom no more than four beat."""
    others = [mark(1.0)] * better + [mark(9.0)] * (6 - better)
    assert goes_on(mark(5.0), others, keep=0.7, grace=1) is on


def test_the_first_trials_go_on_up_to_the_grace():
    better = [mark(1.0), mark(2.0)]
    assert goes_on(mark(9.0), better, keep=0.1, grace=3)
    assert not goes_on(mark(9.0), better, keep=0.1, grace=2)


def test_the_best_value_is_by_the_metrics_own_direction():
    scores = [score_of(5, {"fid": fid, "inception_score": fid}) for fid in (3.0, 1.0, 2.0)]
    assert (best_value("fid", scores), best_value("inception_score", scores)) == (1.0, 3.0)


def test_trials_of_other_cards_are_seldom_told_apart_by_the_draw_alone():
    """In bfloat16 another card draws other images from the same noise: then the groups share nothing."""
    rng, told = np.random.default_rng(0), 0
    for _ in range(400):
        marks = []
        for _card in range(2):
            groups = rng.normal(20, 1, 10)
            marks.append(Mark(groups.mean(keepdims=True), ((groups.sum() - groups) / 9)[None]))
        told += marks[0].surely_better(marks[1])
    assert told / 400 < 0.06  # one side of two standard errors, of ten groups: 0.04 expected
