"""Images of a model under a study's protocol, kept or written to files."""

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Samples:
    """Images and their labels, one each. In a notebook: a grid of the first ones."""

    images: np.ndarray  # [N, H, W, 3] uint8
    labels: np.ndarray  # [N]
    columns: int  # of the grid: one a class, where there are no more than ten

    def grid(self) -> Image.Image:
        """A picture of the first images, at most `SHOWN`."""
        return Image.fromarray(image_grid(self.images[:SHOWN], self.columns))

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.grid().save(file, "png")
        return file.getvalue()

    def __repr__(self) -> str:
        return f"{len(self.images):,} images, {' × '.join(map(str, self.images.shape[1:3]))} pixels"


def make_samples(
    config: ResolvedStudy,
    checkpoint: Path | None,
    count: int,
    guidance_scale: float,
    seed: int,
    grid: Path | None,
    npz: Path | None,
    progress: Callable[[int, int], None],
) -> Samples:
    """Sample from a checkpoint (None: the base), also into a grid of the first images, an `.npz`, or both.

    Of images that are written only the first `SHOWN` are kept. `progress` hears how many of `count` there are.
    """
    kept = count if grid is npz is None else min(count, SHOWN)
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
            shown.extend(array[: max(0, kept - len(shown))])
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
    samples = Samples(np.stack(shown), np.concatenate(labels)[:kept], scoring.columns)
    if grid is not None:
        atomically(grid, lambda partial: samples.grid().save(partial, "png"))
    return samples
