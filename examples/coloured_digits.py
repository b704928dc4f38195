"""Makes a folder of 32-pixel images in ten classes, without a download: scikit-learn's digits, turned and coloured.

    python examples/coloured_digits.py photos --images 12000

Every digit is used equally often. Each time it is enlarged, turned, sheared, scaled and shifted, and drawn in one
random colour on another, over a gradient. The same seed gives the same images.
"""

import argparse
import colorsys
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits

SIDE = 32  # pixels
INK = 24  # pixels that the 8 x 8 digit is enlarged to


def map_to_digit(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random affine map (matrix [2, 2], offset [2]) from pixels of the picture to those of the 8 x 8 digit."""
    turn, shear = generator.normal(0, 0.15), generator.normal(0, 0.15)  # radians, ratio
    scale = 8 / INK / generator.uniform(0.8, 1.2, 2)
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.diag(scale) @ np.array([[1, shear], [0, 1]]) @ np.array([[cos, -sin], [sin, cos]])
    centre = np.full(2, (SIDE - 1) / 2) + generator.uniform(-3, 3, 2)
    return matrix, np.full(2, 3.5) - matrix @ centre


def colours(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Ink and ground, [3] each in 0..1: two hues, one bright and one dark."""
    hues, bright = generator.random(2), generator.uniform(0.7, 1.0)
    dark = generator.uniform(0.1, 0.35)
    values = (bright, dark) if generator.random() < 0.5 else (dark, bright)
    first, second = (np.array(colorsys.hsv_to_rgb(h, 0.7, v)) for h, v in zip(hues, values, strict=True))
    return first, second


def draw(digit: np.ndarray, generator: np.random.Generator) -> Image.Image:
    """One picture of a digit [8, 8] in 0..16."""
    matrix, offset = map_to_digit(generator)
    mask = affine_transform(digit / 16, matrix, offset, output_shape=(SIDE, SIDE), order=3).clip(0, 1)[..., None]
    ink, ground = colours(generator)
    slope = generator.uniform(-0.15, 0.15, 2) / SIDE
    gradient = (np.indices((SIDE, SIDE)) - SIDE / 2).transpose(1, 2, 0) @ slope
    picture = mask * ink + (1 - mask) * (ground + gradient[..., None])
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    generator, digits = np.random.default_rng(arguments.seed), load_digits()
    for i in range(arguments.images):
        which = i % len(digits.images)
        folder = arguments.folder / str(digits.target[which])
        folder.mkdir(parents=True, exist_ok=True)
        draw(digits.images[which], generator).save(folder / f"{i:05d}.png")
    print(f"{arguments.images:,} images of {SIDE} x {SIDE} pixels in {arguments.folder}")


if __name__ == "__main__":
    main()
