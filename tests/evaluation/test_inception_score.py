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


def test_blocks_are_of_five_thousand_images_and_their_scores_are_averaged():
    """The first of two blocks is sure of its one class, the second of its two: 1 and 2."""
    index = np.array([0, 4999, 5000, 9999])
    found = divergences(np.eye(2)[[0, 0, 0, 1]], index)
    assert sorted(found) == [0, 1]
    assert inception_score([found]) == pytest.approx(1.5)
