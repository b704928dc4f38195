"""Collections of small images, all in memory: the embedded digits, or someone's own."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from sklearn.datasets import load_digits

from cca_ray.data.image_files import read_entry
from cca_ray.data.images import centre_crop, decode
from cca_ray.data.listing import list_images
from cca_ray.data.tokens import no_images


@dataclass(frozen=True)
class LabelledImages:
    """images [N, S, S, 3] uint8, labels [N] int64, one name a class."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        content = self.images.tobytes() + self.labels.tobytes() + "\0".join(self.class_names).encode()
        return hashlib.sha256(content).hexdigest()[:16]


def digits() -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey."""
    bunch = load_digits()
    images = (bunch.images / 16 * 255).round().astype(np.uint8)
    return LabelledImages(np.repeat(images[..., None], 3, axis=-1), bunch.target.astype(np.int64), tuple("0123456789"))


def read_folder(folder: str, size: int, say: Callable[[str], object]) -> LabelledImages:
    """A collection of images as squares of `size` pixels, all in memory. ValueError, naming the file, if one is bad.

    `say` hears of files that were passed over.
    """
    listing = list_images(folder)
    if listing.passed_over:
        say(no_images(dict(listing.passed_over)))
    squares = []
    for entry in listing.entries:
        try:
            squares.append(centre_crop(decode(read_entry(folder, entry.path, entry.start, entry.length)), size))
        except ValueError as error:
            raise ValueError(f"{entry.place}: {error}") from None
    return LabelledImages(np.stack(squares), listing.labels, listing.class_names)
