import numpy as np
import pytest

from cca_ray.evaluation.jackknife import fewest_left, jackknife_error, jackknife_groups


def test_jackknife_groups_are_whole_rounds_of_all_classes():
    index = np.arange(130)
    groups = jackknife_groups(index, 130, classes=10)
    assert sorted(set(groups.tolist())) == list(range(10))
    for group in range(10):
        counts = np.bincount(index[groups == group] % 10, minlength=10)
        assert counts.min() == counts.max()
    assert set(jackknife_groups(np.arange(70), 70, classes=10).tolist()) == set(range(7))
    assert len(set(jackknife_groups(np.arange(20), 20, classes=10).tolist())) == 10  # too few rounds
    np.testing.assert_array_equal(groups[50:70], jackknife_groups(index[50:70], 130, classes=10))


def test_the_jackknife_error_is_that_of_a_mean():
    """For a mean it is exact: the standard error of the groups' means."""
    values = np.random.default_rng(0).normal(size=(10, 30))
    without = np.array([np.delete(values, group, axis=0).mean() for group in range(10)])
    assert jackknife_error(without) == pytest.approx(values.mean(1).std(ddof=1) / 10**0.5)


@pytest.mark.parametrize(("samples", "left"), [(2, 2), (3, 3), (4, 2), (5, 2), (60, 50), (100, 90)])
def test_so_many_images_are_left_without_the_largest_group(samples: int, left: int):
    assert fewest_left(samples, classes=10) == left


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (50, [0] * 10 + [1] * 10 + [2] * 10 + [3] * 10 + [4] * 10),  # five rounds are enough for whole ones
        (49, list(range(10)) * 5),  # four are not: groups of some classes each, ten at most
        (13, [0, 1, 2, 3, 4, 5] * 3),  # half as many as images, so that a group has two
        (3, [0, 0, 0]),
        (1, [0]),  # never none
    ],
)
def test_groups_are_whole_rounds_from_five_rounds_on(samples: int, expected: list[int]):
    with np.errstate(all="raise"):  # NumPy's x % 0 is 0, with a warning
        assert jackknife_groups(np.arange(samples), samples, classes=10).tolist() == expected[:samples]
