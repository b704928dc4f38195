"""Which caption each image of a score is of. (Of which class: see `sampler.labels_of`.)"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cca_ray.data.captions import Captions
from cca_ray.evaluation.sampler import labels_of
from cca_ray.models.condition import TextFeatures


@dataclass(frozen=True)
class CaptionsOfImages:
    """A token set's captions, as often as its images have them.

    numbers [N]: of each image's caption. digest: the token set's.
    """

    captions: Captions
    numbers: np.ndarray
    digest: str

    def drawn(self, kind: Literal["balanced", "random"], seed: int, indices: np.ndarray) -> Tensor:
        """The numbers of the captions of these samples: of each, that of an image of the set.

        `balanced`: the images in turn, in an order that is always the same, so that the first are as good as any.
        `random`: drawn by (seed, index).
        """
        order = np.random.default_rng(0).permutation(len(self.numbers))
        images = labels_of(kind, seed, indices, len(self.numbers)).numpy()
        return torch.from_numpy(self.numbers[order[images]])

    def texts(self, numbers: Tensor) -> TextFeatures:
        return self.captions.of(numbers.numpy(), np.zeros(len(numbers), bool))
