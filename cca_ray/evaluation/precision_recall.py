"""Precision and recall of the manifold that the features span (Kynkäänniemi et al. 2019), as in the ADM evaluator."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from cca_ray.evaluation.metric import Context, FeatureMetric

NEIGHBOUR = 3
ROWS = 10_000  # of distances at a time


def distances(u: Tensor, v: Tensor) -> Tensor:
    """Squared, in float16 where that is finite, as the ADM evaluator takes them: u [N, D], v [M, D] -> [N, M]."""
    u16, v16 = u.half(), v.half()
    result = u16.square().sum(1)[:, None] - 2 * (u16 @ v16.T) + v16.square().sum(1)
    if result.isfinite().all():
        return result.clamp(min=0).float()
    return (u.square().sum(1)[:, None] - 2 * (u @ v.T) + v.square().sum(1)).clamp(min=0)


def radii(features: Tensor, rows: int) -> Tensor:
    """Squared distance of each vector [N, D] to its third neighbour among the others: [N]."""
    blocks, found = features.split(rows), []
    for block in blocks:
        of_block = torch.cat([distances(block, other) for other in blocks], dim=1)
        found.append(of_block.kthvalue(NEIGHBOUR + 1, dim=1).values)  # the nearest is the vector itself
    return torch.cat(found)


def are_precise(real: Tensor, made: Tensor, rows: int = ROWS) -> Tensor:
    """Which of the made vectors [M, D] lie within the manifold of the real ones [N, D]: bool [M]."""
    found, reach = torch.zeros(len(made), dtype=torch.bool, device=made.device), radii(real, rows)
    for i in range(0, len(real), rows):
        for j in range(0, len(made), rows):
            d = distances(real[i : i + rows], made[j : j + rows])
            found[j : j + rows] |= (d <= reach[i : i + rows, None]).any(0)
    return found


def are_recalled(real: Tensor, made: Tensor, rows: int = ROWS) -> Tensor:
    """Which of the real vectors [N, D] lie within the manifold of the made ones [M, D]: bool [N]."""
    found, reach = torch.zeros(len(real), dtype=torch.bool, device=real.device), radii(made, rows)
    for i in range(0, len(real), rows):
        for j in range(0, len(made), rows):
            d = distances(real[i : i + rows], made[j : j + rows])
            found[i : i + rows] |= (d <= reach[j : j + rows]).any(1)
    return found


class Manifold(FeatureMetric):
    """What precision and recall share."""

    lower_is_better = False
    needs = frozenset({"pooled", "reference_features"})
    fewest = NEIGHBOUR + 1


def vectors(context: Context, state: list[np.ndarray]) -> tuple[Tensor, Tensor]:
    """Real ones [N, D] and made ones [M, D], float32, where they are compared. ValueError if there are too few."""
    assert context.reference.features is not None
    real, made = (
        torch.from_numpy(np.asarray(x, dtype=np.float32)).to(context.device)
        for x in (context.reference.features, np.concatenate(state))
    )
    for name, features in (("reference", real), ("sample", made)):
        if len(features) <= NEIGHBOUR:
            raise ValueError(f"precision and recall need more than {NEIGHBOUR} {name} images, not {len(features)}")
    return real, made


class Precision(Manifold):
    """The share of the samples that lie within the real images' manifold."""

    name, label = "precision", "precision"

    def value(self, state: list[np.ndarray], context: Context) -> float:
        return are_precise(*vectors(context, state)).double().mean().item()

    def with_jackknife(self, groups: Sequence[list[np.ndarray]], context: Context) -> tuple[float, tuple[float, ...]]:
        """No sample's place depends on the other samples: they are looked at once."""
        precise = are_precise(*vectors(context, [x for group in groups for x in group])).double().cpu()
        parts = precise.split([sum(map(len, group)) for group in groups])
        if len(parts) == 1:
            return precise.mean().item(), (precise.mean().item(),)
        without = [torch.cat([*parts[:g], *parts[g + 1 :]]).mean().item() for g in range(len(parts))]
        return precise.mean().item(), tuple(without)


class Recall(Manifold):
    """The share of the real images that lie within the samples' manifold."""

    name, label = "recall", "recall"

    def value(self, state: list[np.ndarray], context: Context) -> float:
        return are_recalled(*vectors(context, state)).double().mean().item()


PRECISION, RECALL = Precision(), Recall()
