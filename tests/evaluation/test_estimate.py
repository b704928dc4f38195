"""Intervals and probabilities by Student's t, against scipy's own and a simulation."""

import numpy as np
import pytest
from scipy import stats

from cca_ray.evaluation.estimate import Estimate


def test_a_mean_of_a_few_numbers_has_students_interval():
    numbers = np.array([4.0, 5.5, 6.1, 4.9])
    found = Estimate.of(numbers.mean(), [(numbers.var(ddof=1) / 4, 3)])
    expected = stats.ttest_1samp(numbers, 4.5)
    np.testing.assert_allclose(found.interval(), expected.confidence_interval(0.95))
    assert found.probability_not_above(4.5) == pytest.approx(
        stats.ttest_1samp(numbers, 4.5, alternative="greater").pvalue
    )
    assert found.negative().probability_not_above(-4.5) == pytest.approx(1 - found.probability_not_above(4.5))


def test_variances_of_two_kinds_add_up_as_welch_has_it():
    first, second = np.array([4.0, 5.5, 6.1, 4.9]), np.array([3.0, 3.3, 2.9, 2.0, 2.5])
    parts = [(x.var(ddof=1) / len(x), len(x) - 1) for x in (first, second)]
    found = Estimate.of(first.mean() - second.mean(), parts)
    expected = stats.ttest_ind(first, second, equal_var=False)
    np.testing.assert_allclose(found.interval(), expected.confidence_interval(0.95))
    assert found.freedom == pytest.approx(expected.df)


def test_without_noise_there_is_no_interval_but_its_point():
    found = Estimate.of(2.0, [(0.0, 9)])
    assert found.interval() == (2.0, 2.0)
    assert (found.probability_not_above(2.0), found.probability_not_above(1.9)) == (1.0, 0.0)


def test_an_interval_is_of_the_level_that_is_asked_for():
    found = Estimate.of(1.0, [(0.25, 12)])
    for level in (0.5, 0.95, 0.99):
        half = 0.5 * stats.t.ppf(0.5 + level / 2, 12)
        np.testing.assert_allclose(found.interval(level), (1 - half, 1 + half))
    assert found.interval() == found.interval(0.95)


def test_one_part_without_freedom_leaves_none():
    assert Estimate.of(1.0, [(0.25, 0), (0.5, 9)]) == Estimate(1.0, 0.75**0.5, 0.0)


def test_the_freedom_of_variances_that_are_all_0_is_the_smallest():
    assert Estimate.of(1.0, [(0.0, 9), (0.0, 4)]) == Estimate(1.0, 0.0, 4.0)


def test_a_negative_estimate_has_the_same_error():
    assert Estimate(1.5, 0.5, 7).negative() == Estimate(-1.5, 0.5, 7)
