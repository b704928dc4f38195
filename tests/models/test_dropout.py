import numpy as np
import torch

from cca_ray.models.dropout import Dropout, dropout_keys

INDEX = np.arange(200)


def test_the_rate_and_the_mean_are_right():
    dropped = Dropout(0.3, dropout_keys(INDEX, 0))(torch.ones(200, 16, 32), site=1)
    assert abs((dropped == 0).double().mean() - 0.3) < 0.005
    assert abs(dropped.mean() - 1) < 0.01


def test_a_row_has_the_same_mask_in_any_batch():
    whole = Dropout(0.5, dropout_keys(INDEX, 7, 1))(torch.ones(200, 4, 8), site=3)
    part = Dropout(0.5, dropout_keys(INDEX[50:60], 7, 1))(torch.ones(10, 4, 8), site=3)
    assert torch.equal(part, whole[50:60])


def test_rows_sites_seeds_and_epochs_have_masks_of_their_own():
    """Two masks agree in half of their elements, as independent ones do."""
    ones = torch.ones(200, 16, 32)

    def kept(site: int, *numbers: int) -> torch.Tensor:
        return Dropout(0.5, dropout_keys(INDEX, *numbers))(ones, site) != 0

    first = kept(1, 0, 0)
    for other in (kept(2, 0, 0), kept(1, 1, 0), kept(1, 0, 1), first.roll(1, 0), first.roll(1, 1), first.roll(1, 2)):
        assert abs((first == other).double().mean() - 0.5) < 0.01
