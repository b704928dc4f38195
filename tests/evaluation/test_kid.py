import numpy as np
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel

from cca_ray.evaluation import kid
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.evaluation.kid import KID
from cca_ray.evaluation.metric import Context
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.testing.metric_conformance import MetricConformance
from tests.conftest import golden

ADM = golden("adm_metrics.npz")


class TestKID(MetricConformance):
    metric = KID


def context_of(real: np.ndarray, samples: int) -> Context:
    return Context(Reference.of(Moments.of(real), features=real), samples, torch.device("cpu"))


def kernel_distance(made: np.ndarray, real: np.ndarray) -> float:
    """The definition, with scikit-learn's kernel: (x·y / D + 1)³, of all pairs of different images."""
    x, y = made.astype(np.float64), real.astype(np.float32).astype(np.float64)
    n, m = len(x), len(y)
    kernel_xx, kernel_yy = polynomial_kernel(x, degree=3), polynomial_kernel(y, degree=3)
    of_made = (kernel_xx.sum() - np.trace(kernel_xx)) / (n * (n - 1))
    of_real = (kernel_yy.sum() - np.trace(kernel_yy)) / (m * (m - 1))
    return float(of_made + of_real - 2 * polynomial_kernel(x, y, degree=3).mean())


def test_it_is_the_unbiased_kernel_distance():
    made, real = ADM["gen"][:300], ADM["ref"][:400]
    found, without = KID.with_jackknife(
        [[made[:100]], [made[100:160], made[160:200]], [made[200:]]], context_of(real, 300)
    )
    assert found == pytest.approx(kernel_distance(made, real), rel=1e-9)
    for g, rest in enumerate((made[100:], np.delete(made, np.s_[100:200], axis=0), made[:200])):
        assert without[g] == pytest.approx(kernel_distance(rest, real), rel=1e-9)


def test_of_two_groups_each_is_left_out_and_of_one_none():
    made, real = ADM["gen"][:80], ADM["ref"][:100]
    whole, without = KID.with_jackknife([[made[:30]], [made[30:]]], context_of(real, 80))
    assert without == pytest.approx((kernel_distance(made[30:], real), kernel_distance(made[:30], real)), rel=1e-9)
    assert KID.with_jackknife([[made]], context_of(real, 80)) == (whole, (whole,))


def test_more_pairs_than_fit_in_a_block_are_summed_block_by_block(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kid, "ROWS", 16)
    rng = np.random.default_rng(0)
    made, real = rng.normal(size=(42, 3)), rng.normal(size=(50, 3))
    assert KID.value([made], context_of(real, len(made))) == pytest.approx(
        kernel_distance(made, real), rel=1e-7, abs=1e-12
    )


def test_of_images_like_the_real_ones_it_is_0_on_average_however_few_they_are():
    rng = np.random.default_rng(0)
    real = rng.normal(size=(400, 5))
    context = context_of(real, 20)
    values = [KID.value([rng.normal(size=(20, 5))], context) for _ in range(200)]
    assert abs(np.mean(values)) < 3 * np.std(values) / 200**0.5 + 0.02
    assert min(values) < 0 < max(values)


def test_its_jackknife_error_is_about_the_spread_over_fresh_samples():
    rng = np.random.default_rng(0)
    context, values, errors = context_of(rng.normal(size=(300, 4)), 200), [], []
    for _ in range(40):
        made = 1.2 * rng.normal(size=(200, 4)) + 0.3
        value, without = KID.with_jackknife([[made[g::10]] for g in range(10)], context)
        values.append(value)
        errors.append(jackknife_error(np.array(without)))
    assert 0.7 < np.mean(errors) / np.std(values, ddof=1) < 1.4
