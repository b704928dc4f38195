import numpy as np
import pytest
import torch

from cca_ray.evaluation.metric import Context
from cca_ray.evaluation.precision_recall import (
    PRECISION,
    RECALL,
    ROWS,
    are_precise,
    are_recalled,
    distances,
    radii,
    vectors,
)
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.testing.metric_conformance import MetricConformance
from tests.conftest import golden, largest_tensor

ADM = golden("adm_metrics.npz")


class TestPrecision(MetricConformance):
    metric = PRECISION


class TestRecall(MetricConformance):
    metric = RECALL


def precision_recall(real: np.ndarray, made: np.ndarray, rows: int = ROWS) -> tuple[float, float]:
    reference = Reference.of(Moments.of(real), features=real)
    pair = vectors(Context(reference, len(made), torch.device("cpu")), [made])
    precise, recalled = are_precise(*pair, rows), are_recalled(*pair, rows)
    return precise.double().mean().item(), recalled.double().mean().item()


def test_precision_and_recall_are_the_adm_evaluators():
    """In float16 the order of a sum decides its last bit: one of the 1,200 samples may fall on the other side."""
    precision, recall = precision_recall(ADM["ref"][:1500], ADM["gen"][:1200])
    assert precision == pytest.approx(float(ADM["precision"]), abs=1.01 / 1200)
    assert recall == pytest.approx(float(ADM["recall"]), abs=1e-9)


def test_precision_and_recall_do_not_depend_on_the_rows_at_a_time():
    real, made = ADM["ref"][:300], ADM["gen"][:200]
    assert precision_recall(real, made, rows=64) == precision_recall(real, made)


def test_precision_and_recall_keep_no_more_than_some_rows_of_distances():
    largest = largest_tensor(lambda: precision_recall(ADM["ref"][:1000], ADM["gen"][:1000], rows=100))
    assert largest == 100 * 1000


def test_precision_and_recall_of_too_few_images_is_one_line():
    with pytest.raises(ValueError, match="more than 3 sample images, not 3"):
        precision_recall(ADM["ref"][:300], ADM["gen"][:3])


def test_features_too_large_for_float16_are_compared_in_float32():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(50, 8)) * 1e3, rng.normal(size=(50, 8)) * 1e3 + 1e5
    assert precision_recall(real, made) == (0.0, 0.0)
    assert precision_recall(real, real + 1e-3) == (1.0, 1.0)


def test_the_metrics_are_these_shares():
    reference = Reference.of(Moments.of(ADM["ref"][:300]), features=ADM["ref"][:300])
    made, context = ADM["gen"][:200], Context(reference, 200, torch.device("cpu"))
    values = PRECISION.value([made], context), RECALL.value([made], context)
    assert values == precision_recall(ADM["ref"][:300], made)


@pytest.mark.parametrize("far", [0.0, 1e4], ids=["float16", "float32"])
def test_distances_are_squared_and_never_below_0(far: float):
    """A vector that is far off is too much for float16: then all are taken in float32."""
    rng = np.random.default_rng(0)
    x = np.concatenate([0.1 * rng.normal(size=(40, 8)), [[far] * 8]]).astype(np.float32)
    found = distances(torch.from_numpy(x), torch.from_numpy(x)).double().numpy()
    expected = np.square(x[:, None].astype(np.float64) - x[None]).sum(-1)
    np.testing.assert_allclose(found, expected, rtol=1e-4 if far else 2e-2, atol=1e-6 if far else 1e-3)
    assert found.dtype == np.float64
    near = torch.from_numpy(x + np.float32(30 + far))
    assert distances(near, near).min() == 0  # rounding alone would take some below


def test_the_edge_of_the_manifold_belongs_to_it():
    """On a line, at 0, 1, 2 and 3, the third neighbour of the first is 3 away, of the second 2."""
    real = np.array([[0.0], [1.0], [2.0], [3.0]])
    made = np.array([[-3.0], [-3.5], [6.0], [6.5]])
    reference = Reference.of(Moments.of(real), features=real)
    pair = vectors(Context(reference, 4, torch.device("cpu")), [made])
    assert radii(pair[0], 2).tolist() == [9.0, 4.0, 4.0, 9.0]
    assert are_precise(*pair).tolist() == [True, False, True, False]
    assert are_recalled(pair[1], pair[0]).tolist() == [True, False, True, False]


def test_four_images_are_enough_and_more_of_them_are_better():
    for metric in (PRECISION, RECALL):
        assert metric.fewest == 4
        assert metric.lower_is_better is False
