"""Pictures in the page: the samples of trials and of the models that were compared, small enough for one file."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cca_ray.reporting.results import TrialRow
from cca_ray.storage.mirror import pull

OF_TRIALS = 2_000_000  # characters that the samples of trials may take in a page, of all sizes
MOST_TRIALS = 200  # of a size, whose samples are looked for: a storage at a URI is asked for each
TRIAL_WIDTH, MODEL_WIDTH, ALL_WIDTH = 400, 720, 1400  # pixels, at most: of a trial, a model, all models in one
COLOURS = 64  # of a trial's samples
LOSSLESS = 100_000  # bytes; other pictures that take more as a PNG are JPEGs
QUALITY = 80


@dataclass(frozen=True)
class Picture:
    """`data`: what an `img` shows. `pixels`: it may be enlarged, and then without smoothing."""

    data: str
    width: int
    height: int
    pixels: bool


def of_model(path: Path, width: int = MODEL_WIDTH) -> Picture | None:
    """As it is, if that is small enough. None if it is damaged."""
    image = opened(path)
    if image is None:
        return None
    small = within(image, width)
    png = encoded(small, "png", optimize=True)
    return picture(image, small, png if len(png) <= LOSSLESS else encoded(small, "jpeg", quality=QUALITY))


def of_trial(path: Path) -> Picture | None:
    """The first rows, in few colours or as a JPEG, whichever is smaller. None if it is damaged."""
    image = opened(path)
    if image is None:
        return None
    small = within(first_rows(image), TRIAL_WIDTH)
    few = small.quantize(COLOURS, dither=Image.Dither.NONE)
    contents = (encoded(few, "png", optimize=True), encoded(small, "jpeg", quality=QUALITY))
    return picture(image, small, min(contents, key=len))


def opened(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, Image.DecompressionBombError):  # Pillow raises all of these
        return None


def within(image: Image.Image, width: int) -> Image.Image:
    if image.width <= width:
        return image
    return image.resize((width, max(1, round(image.height * width / image.width))), Image.Resampling.LANCZOS)


def first_rows(image: Image.Image) -> Image.Image:
    """No higher than half its width, cut at one of the white lines between rows; all of it if there is none."""
    white = np.flatnonzero((np.asarray(image) == 255).all(axis=(1, 2)))
    cuts = white[(white > 1) & (white <= image.width // 2)]
    return image.crop((0, 0, image.width, int(cuts[-1]) + 1)) if len(cuts) else image


def encoded(image: Image.Image, kind: str, **how: int) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **how)
    return buffer.getvalue()


def picture(image: Image.Image, small: Image.Image, content: bytes) -> Picture:
    kind = "png" if content.startswith(b"\x89PNG") else "jpeg"
    data = f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
    return Picture(data, small.width, small.height, small.width == image.width)


def of_trials(folder: Path, trials: Sequence[TrialRow], room: int) -> dict[str, Picture]:
    """The samples at the last rungs of these trials of a study in `folder`, in this order, in so many characters.

    Some have none, such as those of the first version.
    """
    found = dict[str, Picture]()
    for t in trials[:MOST_TRIALS]:
        path = folder / "trials" / t.frozen.user_attrs.get("key", "") / f"samples-{t.rungs[-1].step:06d}.png"
        if not pull(path) or (shown := of_trial(path)) is None:
            continue
        room -= len(shown.data)
        if room < 0:
            break
        found[t.name] = shown
    return found
