"""Our own feature network, a small classifier, for images on which Inception's features say little."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.evaluation.features import Extractor, ExtractorKind, FeatureFile, Features
from cca_ray.models.files import load_state


class FeatureNet(Extractor):
    """A small convolutional classifier. Strides until the grid is 4 or less."""

    def __init__(self, image_size: int, num_classes: int, features: int = 64, width: int = 32):
        super().__init__()
        self.image_size, self.width = image_size, features
        stages, side = 0, image_size
        while side > 4:
            side, stages = -(-side // 2), stages + 1
        widths = [3] + [min(width * 2**i, 128) for i in range(stages + 1)]
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, 3, padding=1, stride=1 if i == 0 else 2) for i, (a, b) in enumerate(pairwise(widths))
        )
        self.norms = nn.ModuleList(nn.GroupNorm(8, b) for b in widths[1:])
        self.project = nn.Linear(widths[-1] * side * side, features)
        self.classify = nn.Linear(features, num_classes)

    def logits(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, D] and logits [B, K]."""
        x = images.permute(0, 3, 1, 2).float() / 127.5 - 1.0
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.silu(norm(conv(x)))
        features = self.project(x.flatten(1))
        return features, self.classify(F.silu(features))

    def forward(self, images: Tensor) -> Features:
        features, logits = self.logits(images)
        return Features(features, logits.softmax(-1))


class SmallKind(ExtractorKind):
    """Known by the settings in its file; `training.small_base` makes such files."""

    name = "small"

    def recognises(self, file: FeatureFile) -> bool:
        return set(file.settings) == {"image_size", "num_classes"}

    def load(self, file: FeatureFile) -> Extractor:
        network = FeatureNet(**file.settings)
        load_state(network, file.state, file.path)
        return network


SMALL = SmallKind()
