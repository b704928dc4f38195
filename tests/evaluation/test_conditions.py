import numpy as np
import torch

from cca_ray.data.captions import Captions
from cca_ray.evaluation.conditions import CaptionsOfImages

NUMBERS = np.array([2, 0, 1, 1, 0, 2, 1, 1, 1, 0])  # of ten images' captions, of which there are three
FEATURES = np.random.default_rng(0).standard_normal((6, 5)).astype(np.float16)
DRAWN = CaptionsOfImages(Captions(("a b", "c", "d e f"), np.array([0, 2, 3, 6]), FEATURES, 4), NUMBERS, "digest")


def test_captions_of_samples_are_as_frequent_as_those_of_images():
    balanced = DRAWN.drawn("balanced", 0, np.arange(20)).numpy()
    assert np.bincount(balanced[:10]).tolist() == np.bincount(NUMBERS).tolist()
    np.testing.assert_array_equal(balanced[10:], balanced[:10])
    assert balanced[:10].tolist() != NUMBERS.tolist()  # not the order of the set, which may be that of classes
    np.testing.assert_array_equal(DRAWN.drawn("balanced", 1, np.arange(5, 9)).numpy(), balanced[5:9])
    many = DRAWN.drawn("random", 0, np.arange(3000)).numpy()
    np.testing.assert_allclose(np.bincount(many) / 3000, np.bincount(NUMBERS) / 10, atol=0.03)
    np.testing.assert_array_equal(DRAWN.drawn("random", 0, np.arange(7, 9)).numpy(), many[7:9])
    assert not np.array_equal(DRAWN.drawn("random", 1, np.arange(3000)).numpy(), many)


def test_a_model_is_given_the_features_of_what_was_drawn():
    texts = DRAWN.texts(torch.tensor([1, 2]))
    assert not texts.null.any()
    assert texts.mask.tolist() == [[False, False, False, True], [False, True, True, True]]
    np.testing.assert_array_equal(texts.features[1, 1:], FEATURES[3:])
    np.testing.assert_array_equal(texts.features[0, 3:], FEATURES[2:3])
