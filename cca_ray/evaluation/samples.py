"""Images of a model under a study's protocol, written to files."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from cca_ray.cluster.device import local_device
from cca_ray.config import ResolvedStudy
from cca_ray.evaluation.npz import NpzWriter
from cca_ray.evaluation.sampler import image_grid
from cca_ray.evaluation.scoring import load_base, protocol_of, sample_shards, scoring_of
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.storage.files import atomically

SHOWN = 400  # images of a grid, at most


def write_samples(
    config: ResolvedStudy,
    checkpoint: Path | None,
    count: int,
    guidance_scale: float,
    seed: int,
    grid: Path | None,
    npz: Path | None,
    progress: Callable[[int, int], None],
) -> int:
    """Sample from a checkpoint (None: the base) into a grid of the first images, an `.npz`, or both.

    Returns how many images the grid shows, or would show. `progress` hears how many of `count` there are.
    """
    group = Group(device=local_device(config.placement))
    scoring = scoring_of(config, group.device)
    model = for_sampling(load_base(config, str(checkpoint) if checkpoint else None), config.placement, group)
    protocol = protocol_of(config, scoring, count, guidance_scale, seed)
    shown: list[np.ndarray] = []
    labels: list[np.ndarray] = []

    def images() -> Iterator[np.ndarray]:
        made = 0
        for _, batch, classes in sample_shards(model, scoring, protocol, group):
            array = batch.cpu().numpy()
            made += len(array)
            labels.append(classes.cpu().numpy())
            shown.extend(array[: max(0, SHOWN - len(shown))])
            progress(made, count)
            yield array

    def write(partial: Path) -> None:
        writer = NpzWriter(partial, (count, protocol.image_size, protocol.image_size, 3))
        for batch in images():
            writer.add(batch)
        writer.close(np.concatenate(labels))

    if npz is not None:
        atomically(npz, write)
    else:
        for _ in images():
            pass
    if grid is not None:
        Image.fromarray(image_grid(np.stack(shown), scoring.columns)).save(grid)
    return len(shown)
