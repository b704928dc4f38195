"""More images than there are: each once as it is, and in slight affine variants."""

import math

import numpy as np
from PIL import Image

from cca_ray.data.labelled_images import LabelledImages

ROTATION = math.radians(10)  # at most, either way
SCALE = 0.1  # at most, of the logarithm
SHIFT = 1 / 8  # at most, of a side


def with_variants(data: LabelledImages, variants: int, seed: int = 0) -> LabelledImages:
    """All images as they are, then `variants` - 1 times all of them, each time rotated, scaled and shifted a little.

    What an image leaves free is black. Resampled by Pillow, bicubically: the same bytes on every processor.
    """
    rng = np.random.default_rng(seed)
    images = [data.images, *(np.stack([variant_of(image, rng) for image in data.images]) for _ in range(1, variants))]
    return LabelledImages(np.concatenate(images), np.tile(data.labels, variants), data.class_names)


def variant_of(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A variant of one image, [S, S, 3] uint8, about its centre."""
    side = len(image)
    angle, scale = rng.uniform(-ROTATION, ROTATION), math.exp(rng.uniform(-SCALE, SCALE))
    right, down = rng.uniform(-SHIFT * side, SHIFT * side, 2)
    cos, sin, centre = math.cos(angle) * scale, math.sin(angle) * scale, side / 2
    back = (  # from a place in the variant to that in the image: Pillow's (a, b, c, d, e, f)
        cos, sin, centre - (cos + sin) * centre + right,
        -sin, cos, centre - (cos - sin) * centre + down,
    )  # fmt: skip
    pil = Image.fromarray(image)
    return np.asarray(pil.transform(pil.size, Image.Transform.AFFINE, back, resample=Image.Resampling.BICUBIC))
