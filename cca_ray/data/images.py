"""Pixels, cut from images as the official code cuts them."""

import io
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from cca_ray.errors import ConfigError

TEN_CROPS = {"ten-crop-1.1": 1.1, "ten-crop-1.05": 1.05}
MOST_PIXELS = 2**26  # of an image that is resized
VAR_EDGE = 1.125
# By their suffixes, with what Pillow calls the kinds. Others are refused whatever a file is named: Pillow would hand an
# EPS to Ghostscript, which is a language's interpreter.
KINDS = {
    ".jpg": "JPEG", ".jpeg": "JPEG", ".jpe": "JPEG", ".jfif": "JPEG", ".png": "PNG", ".ppm": "PPM", ".bmp": "BMP",
    ".pgm": "PPM", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WEBP", ".gif": "GIF", ".avif": "AVIF",
}  # fmt: skip
FORMATS = tuple(dict.fromkeys(KINDS.values()))
AUGMENTATIONS = ("centre", "flips", *TEN_CROPS, "var-random", "var-centre")


def decode(content: bytes | None) -> Image.Image:
    """RGB, whatever it was: grey, palette, transparent, CMYK, 16-bit. ValueError if it is no image."""
    if not content:
        raise ValueError("not an image: no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content), formats=FORMATS)
            if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            floating, image = image.mode == "F", image.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("not an image of any known kind") from None
    except MemoryError:
        raise
    except Exception as error:  # decoders raise what they like: RuntimeError (AVIF), struct.error, KeyError, ...
        raise ValueError(f"not a readable image ({type(error).__name__}: {error})") from None
    if floating:  # what is white is not known: of 0 to 1 this would be black
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    return image


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre square, [size, size, 3] uint8, as ADM cuts it: halved by boxes, then resized bicubically.

    ValueError for a sliver, which would first be enlarged beyond all memory.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MOST_PIXELS:
        raise ValueError(f"too long: {image.width} x {image.height} pixels would become {width} x {height}")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def lanczos(image: Image.Image, edge: int) -> np.ndarray:
    """The whole image, its shorter side `edge` pixels, as VAR resizes it (torchvision's Resize): [H, W, 3] uint8."""
    short, long = min(image.size), max(image.size)
    other = int(edge * long / short)
    if edge * other > MOST_PIXELS:
        raise ValueError(f"too long: {image.width} x {image.height} pixels would become {edge} x {other}")
    size = (edge, other) if image.width <= image.height else (other, edge)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Square:
    """What is cut from an image when it is read: `side` pixels.

    `adm`: the centre (see `centre_crop`); `centre`, `random`: of the image whose shorter side is `edge` pixels.
    """

    kind: Literal["adm", "centre", "random"]
    side: int
    edge: int = 0
    draw: int = 0  # tells the random ones apart

    @property
    def key(self) -> str:
        return f"pixels_{self.kind}_{self.side}_{self.draw}"

    def of(self, image: Image.Image, index: int) -> np.ndarray:
        """[side, side, 3] uint8. A random place is a function of the image's index and the draw."""
        if self.kind == "adm":
            return centre_crop(image, self.side)
        pixels = lanczos(image, self.edge)
        room = np.array(pixels.shape[:2]) - self.side
        if self.kind == "centre":
            top, left = (round(r / 2) for r in room.tolist())
        else:
            top, left = np.random.default_rng([index, self.draw]).integers(0, room + 1).tolist()
        return pixels[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class Crop:
    """One view of an image: so many pixels cut at (top, left) from one of its squares, mirrored or not."""

    name: str
    square: Square
    top: int = 0
    left: int = 0
    mirrored: bool = False


def crops_of(augmentations: Sequence[str], size: int) -> list[Crop]:
    """The official views of `size` pixels, in the official order.

    LlamaGen: `centre`; `flips`: it and its mirror image; `ten-crop-1.1`: corners and centre of a square that is 1.1
    times as wide, then their mirror images (torchvision's TenCrop).  VAR: `var-random`, `var-centre`: of the image
    whose shorter side is 1.125 times as long.  ConfigError for an unknown one.
    """
    crops: list[Crop] = []
    for draw, name in enumerate(augmentations):
        if name not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {name!r}: any of {', '.join(AUGMENTATIONS)}")
        if name == "centre":
            crops.append(Crop(name, Square("adm", size)))
        elif name == "flips":
            crops += [Crop(f"flips/{i}", Square("adm", size), mirrored=bool(i)) for i in (0, 1)]
        elif name in TEN_CROPS:
            edge = int(size * TEN_CROPS[name])
            rest = edge - size
            middle = round(rest / 2)
            corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)]
            places = [(*corner, mirrored) for mirrored in (False, True) for corner in corners]
            crops += [Crop(f"{name}/{i}", Square("adm", edge), *place) for i, place in enumerate(places)]
        else:
            kind: Literal["centre", "random"] = "random" if name == "var-random" else "centre"
            crops.append(Crop(f"{name}/{draw}", Square(kind, size, round(size * VAR_EDGE), draw)))
    return crops


def cut(pixels: dict[str, np.ndarray], crop: Crop, size: int) -> np.ndarray:
    """A view of every image: `pixels[square's key]` [B, side, side, 3] -> [B, size, size, 3]."""
    source = pixels[crop.square.key]
    source = source[:, :, ::-1] if crop.mirrored else source
    return source[:, crop.top : crop.top + size, crop.left : crop.left + size]
