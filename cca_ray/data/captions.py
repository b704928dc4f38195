"""The captions of a token set: texts, and their features as a frozen text encoder left them.

Beside the parts of the set lie `captions.parquet`, a row a caption (its text, how many words its features have), and
`features.npy` [words of all captions, C], one caption after the other.  An image's label is the number of its caption.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from cca_ray.errors import reading
from cca_ray.models.condition import TextFeatures
from cca_ray.storage.arrays import read_array
from cca_ray.storage.files import atomically

TEXTS, FEATURES = "captions.parquet", "features.npy"


class CaptionMeta(BaseModel):
    """What the captions are; part of the token set's own `TokenMeta`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    count: int
    positions: int  # of a model that reads them: longer captions are cut
    width: int  # of the features
    encoder: str  # whose features they are, in words
    sha256: tuple[str, str]  # of the two files

    def __str__(self) -> str:
        return f"captions of {self.positions} x {self.width} features"


@dataclass(frozen=True)
class Captions:
    """texts [K]; features [words, C], where those of caption k are rows `starts[k]` to before `starts[k + 1]`."""

    texts: tuple[str, ...]
    starts: np.ndarray
    features: np.ndarray
    positions: int

    def of(self, numbers: np.ndarray, null: np.ndarray) -> TextFeatures:
        """The captions of these numbers [B], words at the end of all positions; `null` [B]: see `TextFeatures`."""
        width = self.features.shape[1]
        features = np.zeros((len(numbers), self.positions, width), np.float32)
        mask = np.zeros((len(numbers), self.positions), bool)
        for row, number in enumerate(numbers.tolist()):
            start, stop = self.starts[number], self.starts[number + 1]
            words = min(int(stop - start), self.positions)
            features[row, self.positions - words :] = self.features[start : start + words]
            mask[row, self.positions - words :] = True
        return TextFeatures(torch.from_numpy(features), torch.from_numpy(mask), torch.from_numpy(null))


def read_t5(files: Sequence[str | Path]) -> list[np.ndarray]:
    """Features of captions [words, C], as LlamaGen's script leaves those of a T5: a `.npy` [1, words, C] each.

    ValueError, naming the file, if it holds anything else, or what is no number.
    """
    found: list[np.ndarray] = []
    for file in files:
        with reading(file, "not the features of a caption"), open(file, "rb") as opened:
            array = read_array(opened)
        if array.ndim != 3 or len(array) != 1 or not array.shape[1] or array.dtype.kind != "f":
            raise ValueError(f"{file}: holds {array.dtype} {list(array.shape)}, not features [1, words, width]")
        if not np.isfinite(array).all():
            raise ValueError(f"{file}: holds values that are not numbers")
        if found and found[0].shape[1] != array.shape[2]:
            raise ValueError(f"{file}: is {array.shape[2]} wide, but {files[0]} is {found[0].shape[1]}")
        found.append(array[0])
    return found


def write_captions(
    folder: Path, texts: Sequence[str], features: Sequence[np.ndarray], positions: int, encoder: str
) -> CaptionMeta:
    """Both files, for `TokenMeta`. ValueError if a caption has no features, or two have features of two widths."""
    if len(texts) != len(features) or len({array.shape[1:] for array in features}) != 1:
        raise ValueError(f"{len(texts)} captions and {len(features)} arrays [words, width] of them: expected one each")
    if empty := [text for text, array in zip(texts, features, strict=True) if not len(array)]:
        raise ValueError(f"the caption {empty[0]!r} has no features")
    words = pa.array([len(array) for array in features], pa.int32())
    table = pa.table({"text": pa.array(texts, pa.string()), "words": words})
    atomically(folder / TEXTS, lambda partial: pq.write_table(table, partial, compression="zstd"))

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, np.concatenate(features))

    atomically(folder / FEATURES, write)
    return CaptionMeta(
        count=len(texts), positions=positions, width=features[0].shape[1], encoder=encoder,
        sha256=(sha256_of(folder / TEXTS), sha256_of(folder / FEATURES)),
    )  # fmt: skip


def sha256_of(path: Path) -> str:
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_captions(folder: Path, meta: CaptionMeta) -> Captions:
    """Features stay in their file, which is mapped. ValueError, naming the file, if one is missing or altered."""
    for name, sha256 in zip((TEXTS, FEATURES), meta.sha256, strict=True):
        if sha256_of(folder / name) != sha256:
            raise ValueError(f"{folder / name}: missing, or not what the manifest says; make the token set again")
    with reading(folder / TEXTS, "not the captions of a token set"):
        table = pq.ParquetFile(folder / TEXTS).read()  # not pq.read_table: see `tokens`
        texts, words = table["text"].to_pylist(), table["words"].to_numpy()
    with reading(folder / FEATURES, "not the features of captions"):
        features = np.load(folder / FEATURES, mmap_mode="r", allow_pickle=False)
    starts = np.concatenate([[0], np.cumsum(words)])
    if len(texts) != meta.count or features.shape != (starts[-1], meta.width):
        raise ValueError(f"{folder}: {len(texts)} captions, features {list(features.shape)}: not as the manifest says")
    return Captions(tuple(texts), starts, features, meta.positions)
