"""Kernel distance (KID, Bińkowski et al. 2018): the unbiased squared maximum mean discrepancy of the features.

The kernel is (x·y / D + 1)³, of all pairs, summed in float64.  Unlike FID it has no bias in the number of images, and
so may fall below 0.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from cca_ray.evaluation.metric import Context, FeatureMetric
from cca_ray.evaluation.reference import Reference

ROWS = 4096  # of a block of pairs at a time


def kernel_sum(x: Tensor, y: Tensor) -> float:
    """Over all pairs: x [N, D], y [M, D], float64."""
    blocks = ((a @ b.T / x.shape[1] + 1).pow(3).sum() for a in x.split(ROWS) for b in y.split(ROWS))
    return float(sum(block.item() for block in blocks))


def kernel_trace(x: Tensor) -> float:
    """Over the pairs of a vector with itself."""
    return float((x.square().sum(1) / x.shape[1] + 1).pow(3).sum().item())


def as_tensor(features: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.asarray(features, dtype=np.float64)).to(device)


@lru_cache(maxsize=2)
def of_reference(reference: Reference, device: torch.device) -> tuple[Tensor, float]:
    """Its features [M, D], and the mean kernel of two different ones; kept between the trials of one process."""
    assert reference.features is not None
    real = as_tensor(reference.features, device)
    return real, (kernel_sum(real, real) - kernel_trace(real)) / (len(real) * (len(real) - 1))


class KernelDistance(FeatureMetric):
    """Of the samples' features from the real ones."""

    name, label = "kid", "KID"
    needs = frozenset({"pooled", "reference_features"})

    def value(self, state: list[np.ndarray], context: Context) -> float:
        return self.with_jackknife([state], context)[0]

    def with_jackknife(self, groups: Sequence[list[np.ndarray]], context: Context) -> tuple[float, tuple[float, ...]]:
        """From the sums of each pair of groups, which are made once."""
        real, of_real = of_reference(context.reference, context.device)
        made = [as_tensor(np.concatenate(group), context.device) for group in groups]
        count, across = np.array([len(x) for x in made]), np.array([kernel_sum(x, real) for x in made])
        within = np.diag([kernel_sum(x, x) - kernel_trace(x) for x in made])
        for g, h in zip(*np.triu_indices(len(made), k=1), strict=True):
            within[g, h] = within[h, g] = kernel_sum(made[g], made[h])

        def distance(chosen: np.ndarray) -> float:
            n = count[chosen].sum()
            of_made = within[np.ix_(chosen, chosen)].sum() / (n * (n - 1))
            return float(of_made + of_real - 2 * across[chosen].sum() / (n * len(real)))

        every = np.arange(len(made))
        whole = distance(every)
        return whole, tuple(distance(np.delete(every, g)) for g in every) if len(made) > 1 else (whole,)


KID = KernelDistance()
