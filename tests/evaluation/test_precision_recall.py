import numpy as np
import pytest
import torch

from cca_ray.evaluation.metric import Context
from cca_ray.evaluation.precision_recall import PRECISION, RECALL, ROWS, are_precise, are_recalled, vectors
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
