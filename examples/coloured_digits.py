"""Makes a folder of 32-pixel images in ten classes, without a download: scikit-learn's digits on striped grounds.

    python examples/coloured_digits.py photos --images 12000

Every digit is used equally often. Each time it is enlarged, turned, sheared, scaled and shifted. As in photographs, a
class has more than a shape: ink, ground and stripes vary about colours and an angle that are its own. The same seed
gives the same images.
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
ROWS, COLUMNS = np.indices((SIDE, SIDE)) / SIDE


def map_to_digit(generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """A random affine map (matrix [2, 2], offset [2]) from pixels of the picture to those of the 8 x 8 digit."""
    turn, shear = generator.normal(0, 0.1), generator.normal(0, 0.1)  # radians, ratio
    scale = 8 / INK / generator.uniform(0.85, 1.15, 2)
    cos, sin = np.cos(turn), np.sin(turn)
    matrix = np.diag(scale) @ np.array([[1, shear], [0, 1]]) @ np.array([[cos, -sin], [sin, cos]])
    centre = np.full(2, (SIDE - 1) / 2) + generator.uniform(-2, 2, 2)
    return matrix, np.full(2, 3.5) - matrix @ centre


def colour(tenth: int, saturation: float, low: float, high: float, generator: np.random.Generator) -> np.ndarray:
    """[3] in 0..1: of about this tenth of all hues, and of a brightness between these."""
    hue = tenth / 10 + generator.normal(0, 0.06)
    return np.array(colorsys.hsv_to_rgb(hue % 1, saturation, generator.uniform(low, high)))


def stripes(label: int, generator: np.random.Generator) -> np.ndarray:
    """[SIDE, SIDE, 1] in 0..1: waves at about an angle of the class."""
    angle, phase = np.pi * (3 * label % 10) / 10 + generator.normal(0, 0.12), generator.uniform(0, 2 * np.pi)
    along = np.cos(angle) * COLUMNS + np.sin(angle) * ROWS
    return (0.5 + 0.5 * np.sin(2 * np.pi * (2 + label % 3) * along + phase))[..., None]


def draw(digit: np.ndarray, label: int, generator: np.random.Generator) -> Image.Image:
    """One picture of a digit [8, 8] in 0..16."""
    matrix, offset = map_to_digit(generator)
    mask = affine_transform(digit / 16, matrix, offset, output_shape=(SIDE, SIDE), order=3).clip(0, 1)[..., None]
    ink = colour(label, 0.6, 0.85, 1, generator)
    first, second = (colour(times * label % 10, 0.7, 0.15, 0.4, generator) for times in (3, 7))
    wave = stripes(label, generator)
    picture = mask * ink + (1 - mask) * (wave * first + (1 - wave) * second)
    return Image.fromarray((picture.clip(0, 1) * 255).round().astype(np.uint8))


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=12_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(words)
    generator, digits = np.random.default_rng(arguments.seed), load_digits()
    for i in range(arguments.images):
        which = i % len(digits.images)
        label = int(digits.target[which])
        folder = arguments.folder / str(label)
        folder.mkdir(parents=True, exist_ok=True)
        draw(digits.images[which], label, generator).save(folder / f"{i:05d}.png")
    print(f"{arguments.images:,} images of {SIDE} x {SIDE} pixels in {arguments.folder}")


if __name__ == "__main__":
    main()
