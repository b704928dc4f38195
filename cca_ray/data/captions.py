"""The captions of a token set: texts, and their features as a frozen text encoder left them.

Beside the parts of the set lie `captions.parquet`, a row a caption (its text, how many words its features have), and
`features.npy` [words of all captions, C], one caption after the other.  An image's label is the number of its caption.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict

from cca_ray.errors import reading
from cca_ray.models.condition import TextFeatures
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


def write_captions(
    folder: Path, texts: Sequence[str], features: Iterable[np.ndarray], positions: int, encoder: str
) -> CaptionMeta:
    """Both files, for `TokenMeta`; `features` [words, C] of each text, one after the other.

    ValueError if a caption has none, or two have features of two widths or types.
    """
    words: list[int] = []
    first = np.zeros((0, 0), np.float32)

    def write(partial: Path) -> None:
        nonlocal first
        begin = 0
        with partial.open("wb") as file:
            for text, array in zip_longest(texts, features):
                if text is None or array is None:
                    raise ValueError(f"{len(texts)} captions, but not as many arrays [words, width]: expected one each")
                first = first if begin else array
                refuse_odd(text, array, first)
                if not begin:
                    write_header(file, array[:0])
                    begin = file.tell()
                words.append(len(array))
                file.write(np.ascontiguousarray(array).tobytes())
            file.seek(0)
            write_header(file, np.broadcast_to(first[:1], (sum(words), first.shape[1])))
            assert file.tell() == begin, "NumPy leaves room in a header for the first axis to grow"

    atomically(folder / FEATURES, write)
    table = pa.table({"text": pa.array(texts, pa.string()), "words": pa.array(words, pa.int32())})
    atomically(folder / TEXTS, lambda partial: pq.write_table(table, partial, compression="zstd"))
    return CaptionMeta(
        count=len(texts), positions=positions, width=first.shape[1], encoder=encoder,
        sha256=(sha256_of(folder / TEXTS), sha256_of(folder / FEATURES)),
    )  # fmt: skip


def write_header(file: IO[bytes], array: np.ndarray) -> None:
    """Of a `.npy` of this shape and type."""
    fields = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
    np.lib.format.write_array_header_1_0(file, fields)


def refuse_odd(text: str, array: np.ndarray, first: np.ndarray) -> None:
    """ValueError if the features of a caption are none, or not like those of the first."""
    if not len(array):
        raise ValueError(f"the caption {text[:40]!r} has no features")
    if (array.dtype, array.shape[1:]) != (first.dtype, first.shape[1:]):
        found, expected = (f"{a.dtype} [words, {', '.join(map(str, a.shape[1:]))}]" for a in (array, first))
        raise ValueError(f"the caption {text[:40]!r} has features {found}, others {expected}")


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
