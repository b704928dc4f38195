import numpy as np
import pytest

from cca_ray.evaluation.inception_score import INCEPTION_SCORE, divergences, inception_score
from cca_ray.testing.metric_conformance import MetricConformance
from tests.conftest import golden

ADM = golden("adm_metrics.npz")


class TestInceptionScore(MetricConformance):
    metric = INCEPTION_SCORE


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def test_inception_score_is_the_adm_evaluators():
    p = softmax(ADM["gen"] @ ADM["softmax_weight"])
    found = inception_score([divergences(p, np.arange(len(p)), block=1000)])
    np.testing.assert_allclose(found, ADM["inception_score_split1000"], rtol=1e-6)


def test_inception_score_does_not_depend_on_who_scored_which():
    p = softmax(ADM["gen"] @ ADM["softmax_weight"])
    index = np.arange(len(p))
    parts = [divergences(p[i : i + 256], index[i : i + 256], block=1000) for i in range(0, len(p), 256)]
    assert inception_score(parts) == pytest.approx(inception_score([divergences(p, index, block=1000)]), rel=1e-12)


def test_inception_score_of_sure_and_of_unsure_classifiers():
    index = np.arange(100)
    assert inception_score([divergences(np.eye(10)[index % 10], index)]) == pytest.approx(10)
    assert inception_score([divergences(np.full((100, 10), 0.1), index)]) == pytest.approx(1)
