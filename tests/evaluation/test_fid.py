import numpy as np
import pytest
import torch

from cca_ray.evaluation.features import FeatureArrays
from cca_ray.evaluation.fid import FID, SFID, frechet_distance, frechet_distance_few
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.evaluation.metric import Context
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.testing.metric_conformance import MetricConformance
from tests.conftest import golden

ADM = golden("adm_metrics.npz")


class TestFID(MetricConformance):
    metric = FID


class TestSFID(MetricConformance):
    metric = SFID


@pytest.fixture(scope="module")
def reference() -> Reference:
    moments = Moments.of(ADM["ref"])
    return Reference(moments.mean, moments.covariance)


def test_fid_is_the_adm_evaluators(reference: Reference):
    np.testing.assert_allclose(frechet_distance(Moments.of(ADM["gen"]), reference), ADM["fid"], rtol=1e-5)


def test_fid_of_few_samples_is_the_adm_evaluators(reference: Reference):
    few = ADM["gen"][:40]
    np.testing.assert_allclose(frechet_distance_few(few, reference), ADM["fid_few40"], rtol=1e-4)
    np.testing.assert_allclose(frechet_distance(Moments.of(few), reference), ADM["fid_few40"], rtol=1e-4)


def test_the_reference_has_no_distance_from_itself(reference: Reference):
    assert abs(frechet_distance(Moments.of(ADM["ref"]), reference)) < 1e-9


def test_the_jackknife_error_of_a_fid_is_about_the_spread_over_fresh_samples():
    rng, dim, count = np.random.default_rng(0), 8, 400
    reference = Reference(np.zeros(dim), np.eye(dim))
    fids, errors = [], []
    for _ in range(40):
        features = 1.2 * rng.normal(size=(count, dim)) + 0.3
        groups = np.arange(count) % 10
        fids.append(frechet_distance(Moments.of(features), reference))
        errors.append(jackknife_error(np.array([
            frechet_distance(Moments.of(features[groups != g]), reference) for g in range(10)
        ])))  # fmt: skip
    assert 0.7 < np.mean(errors) / np.std(fids, ddof=1) < 1.4


@pytest.mark.parametrize(("samples", "kept"), [(40, list), (64, Moments)])
def test_features_are_kept_where_they_are_few(samples: int, kept: type, reference: Reference):
    context = Context(reference, samples, torch.device("cpu"))
    made = ADM["gen"][:samples]
    state = FID.state_of(FeatureArrays(made), np.arange(samples), context)
    assert isinstance(state, kept)
    assert FID.value(state, context) == pytest.approx(frechet_distance(Moments.of(made), reference), rel=1e-6)


def test_few_features_are_merged_as_they_are(reference: Reference):
    """Forty images are fewer than their 64 features: FID keeps these, whoever made which."""
    context, made = Context(reference, 40, torch.device("cpu")), ADM["gen"][:40]
    first, second = (FID.state_of(FeatureArrays(part), np.arange(20), context) for part in (made[:20], made[20:]))
    merged = FID.merge(first, second)
    assert isinstance(merged, list)
    assert FID.value(merged, context) == pytest.approx(frechet_distance_few(made, reference), rel=1e-12)


def test_it_is_the_distance_of_two_normal_distributions_on_a_line():
    """(m - m')² + (s - s')², for one feature: of 2 ± 3 and 1 ± 1."""
    sample = Moments(5, np.array([2.0]), np.array([[36.0]]))  # of four degrees of freedom: variance 9
    assert frechet_distance(sample, Reference(np.array([1.0]), np.array([[1.0]]))) == pytest.approx(1 + 4)
    four = np.array([[2.0, 0.0], [0.0, 0.0]])  # two images of two features: variance 2 along the first, 1 from 0
    assert frechet_distance_few(four, Reference(np.zeros(2), np.diag([8.0, 3.0]))) == pytest.approx(1 + 2 + 3)
