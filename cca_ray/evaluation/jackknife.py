"""Standard errors by a jackknife over groups of images that are balanced in their classes."""

import numpy as np

GROUPS = 10  # at most


def jackknife_groups(index: np.ndarray, samples: int, classes: int) -> np.ndarray:
    """The group of each of these images, index [N], among all `samples`: [N], from 0.

    A group is whole rounds of all classes, for balanced labels. With fewer than five rounds that leaves nothing to
    compare: then groups hold some classes each, and the error is overestimated.
    """
    rounds = samples // classes
    return index // classes % min(rounds, GROUPS) if rounds >= 5 else index % max(1, min(samples // 2, GROUPS))


def fewest_left(samples: int, classes: int) -> int:
    """How many images the values are of that leave out a group."""
    sizes = np.bincount(jackknife_groups(np.arange(samples), samples, classes))
    return samples if len(sizes) == 1 else samples - int(sizes.max())


def jackknife_error(without: np.ndarray) -> float:
    """Standard error from values that each leave out one group: without [G].

    Of a difference of two models, give the differences: with common noise they vary less than either. A bootstrap
    would not do, for FID is biased in the number of images (Quenouille 1949, Tukey 1958).
    """
    return float(np.sqrt((len(without) - 1) * np.var(without)))
