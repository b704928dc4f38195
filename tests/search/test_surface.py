"""The Gaussian process of scores, against what is known of Gaussian processes."""

import numpy as np
import pytest

from cca_ray.search.surface import (
    JITTER,
    Points,
    Surface,
    data_covariance,
    improvement,
    mean_of,
    prior,
    surface_covariance,
)


def some_points(count: int, seed: int = 0) -> Points:
    """Of whole trials, of a rung and of a smaller size."""
    rng = np.random.default_rng(seed)
    kind = np.arange(count) % 3
    distance = np.array([(0, 0), (1, 0), (0, 2)], float)[kind]
    return Points(rng.uniform(-1, 1, (count, 2)), distance, np.array([0, 1, 100])[kind], np.arange(count) // 2)


def bowl(x: np.ndarray, bottom: tuple[float, float] = (0.3, -0.4)) -> np.ndarray:
    return 0.2 * np.square(x - np.array(bottom)).sum(1)


def test_a_covariance_is_one():
    points, hyper = some_points(30), prior(2)
    covariance = data_covariance(hyper, points, np.full(30, 1e-4))
    assert covariance == pytest.approx(covariance.transpose(0, 2, 1), abs=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > 0
    own = surface_covariance(hyper, points, points)
    assert np.diagonal(own, axis1=1, axis2=2).min() > 0


def test_a_prediction_is_that_of_the_textbook():
    """Conditioned on the data as a joint normal distribution is, one set of hyperparameters at a time."""
    data, noise = some_points(12), np.full(12, 1e-3)
    values = bowl(data.x)
    surface = Surface.of(data, values, noise)
    x, origin = np.array([[0.1, 0.2], [-0.7, 0.9]]), np.array([0.5, -0.5])
    mean, deviation = surface.predict(x, origin)
    here = Points.whole(np.concatenate([x, origin[None]]))
    contrast = np.array([[1, 0, -1], [0, 1, -1]], float)
    for h in range(len(surface.weights)):
        hyper = surface.hyper.of(np.array([h]))
        across = surface_covariance(hyper, here, data)[0]
        inverse = np.linalg.inv(data_covariance(hyper, data, noise)[0])
        expected = mean_of(hyper, here.x)[0] + across @ inverse @ (values - mean_of(hyper, data.x)[0])
        left = surface_covariance(hyper, here, here)[0] - across @ inverse @ across.T
        assert mean[h] == pytest.approx(contrast @ expected, abs=1e-7)
        assert deviation[h] ** 2 == pytest.approx(np.diag(contrast @ left @ contrast.T), abs=1e-7)


def test_trials_that_run_make_no_prediction_other_but_surer():
    data = Points.whole(some_points(4).x)
    surface = Surface.of(data, bowl(data.x), np.full(4, 1e-6))
    x, origin = np.array([[0.8, 0.9], [-0.9, 0.9]]), data.x[0]
    before, unsure = surface.predict(x, origin)
    after, surer = surface.expecting(x[:1]).predict(x, origin)
    assert after == pytest.approx(before, abs=1e-9)
    assert (surer[:, 0] < 0.5 * unsure[:, 0]).all()
    assert (surer[:, 1] <= unsure[:, 1] + JITTER).all()


def test_the_bottom_of_a_bowl_is_found_between_the_trials():
    x = np.random.default_rng(1).uniform(-1, 1, (9, 2))
    surface = Surface.of(Points.whole(x), bowl(x), np.full(9, 1e-5))
    grid = np.stack(np.meshgrid(*[np.linspace(-1, 1, 41)] * 2), -1).reshape(-1, 2)
    assert grid[surface.mean(grid).argmin()] == pytest.approx((0.3, -0.4), abs=0.12)


def test_what_a_score_has_in_common_with_all_of_its_rung_says_nothing():
    """Another number of images, or another size, moves all scores; only differences count."""
    data = some_points(15)
    moved = bowl(data.x) + np.where(data.group == 1, 0.7, 0.0) + np.where(data.group == 100, -0.4, 0.0)
    noise, x = np.full(15, 1e-4), np.array([[0.1, 0.2], [0.9, 0.9]])
    plain, other = (Surface.of(data, values, noise).mean(x) for values in (bowl(data.x), moved))
    assert other == pytest.approx(plain, abs=0.03)


def test_improvement_is_the_mean_of_what_is_above_zero():
    drawn = np.random.default_rng(0).normal(0.3, 0.8, 400_000)
    found = improvement(np.array([0.3, -8.0]), np.array([0.8, 0.5]))
    assert found[0] == pytest.approx(np.maximum(drawn, 0).mean(), abs=0.004)
    assert 0 <= found[1] < 1e-12
