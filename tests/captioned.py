"""Digits with captions such as "two sevens, thick": images, texts, and features of a frozen embedder of characters."""

import zlib
from pathlib import Path

import numpy as np

from cca_ray.data.captions import write_captions
from cca_ray.data.labelled_images import LabelledImages
from cca_ray.data.tokens import TokenMeta, write_token_set

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
COUNTS = ("one", "two")
WORDS, WIDTH = 4, 16  # positions of text, and features of each word
ENCODER = "a bag of characters"


def captioned(data: LabelledImages) -> LabelledImages:
    """16 pixels wide: one digit or two alike side by side, thin or thick, in turn; a caption stands for its class."""
    texts, images = [], []
    for i, (digit, label) in enumerate(zip(data.images, data.labels, strict=True)):
        count, thick = i % 2, i // 2 % 2
        canvas = np.zeros((16, 16, 3), np.uint8)
        for left in (0, 8) if count else (4,):
            canvas[4:12, left : left + 8] = digit
        if thick:
            canvas = np.maximum(canvas, np.roll(canvas, 1, axis=0))
        name = NAMES[label] + ("es" if NAMES[label].endswith(("o", "x")) else "s") * count
        texts.append(f"{COUNTS[count]} {name}, {'thick' if thick else 'thin'}")
        images.append(canvas)
    captions, numbers = np.unique(texts, return_inverse=True)
    return LabelledImages(np.stack(images), numbers.astype(np.int64), tuple(captions.tolist()))


def embedded(text: str) -> np.ndarray:
    """[words, WIDTH] float16: of each word the sum of its characters' own vectors, which nothing trains."""

    def vector(character: str) -> np.ndarray:
        return np.random.default_rng(zlib.crc32(character.encode())).standard_normal(WIDTH)

    return np.stack([sum(map(vector, word)) / len(word) for word in text.split()]).astype(np.float16)


def write_captioned(folder: Path, numbers: np.ndarray, codes: np.ndarray, texts: tuple[str, ...],
                    meta: TokenMeta) -> str:  # fmt: skip
    """The token set of codes [N, L] whose captions have these numbers [N]; `meta`: without captions or classes."""
    captions = write_captions(folder, texts, [embedded(text) for text in texts], WORDS, ENCODER)
    meta = TokenMeta.model_validate({**meta.model_dump(), "class_names": (), "captions": captions})
    return write_token_set(folder, [(numbers, codes[:, None])], meta)
