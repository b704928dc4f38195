from pathlib import Path

import torch

from cca_ray.evaluation.features import extract
from cca_ray.evaluation.small_network import SMALL, FeatureNet
from cca_ray.models.files import digest_of_weights, write_atomically
from cca_ray.testing.extractor_conformance import ExtractorConformance


class TestSmallKind(ExtractorConformance):
    kind = SMALL

    def write(self, path: Path) -> None:
        torch.manual_seed(0)
        network = FeatureNet(8, 7)
        write_atomically({"model": network.state_dict(), "config": {"image_size": 8, "num_classes": 7}}, path)


def test_features_of_any_image_size():
    for size in (4, 8, 32):
        features = extract(FeatureNet(size, 7), torch.zeros(2, size, size, 3, dtype=torch.uint8))
        assert features.probabilities is not None
        assert (features.pooled.shape, features.probabilities.shape) == ((2, 64), (2, 7))


def test_the_digest_of_weights_sees_every_weight():
    network = FeatureNet(8, 7)
    before = digest_of_weights(network)
    network.classify.bias.data[3] += 1e-3
    assert digest_of_weights(network) != before
