"""Images in an `.npz`, as the ADM evaluator reads them: written and read a batch at a time."""

import math
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np

from cca_ray.errors import ConfigError, reading
from cca_ray.evaluation.protocol import SHARD
from cca_ray.storage.arrays import read_header, refuse_large

MOST_PACKED = 1032  # bytes that deflate makes of one: a header that claims more cannot be true


class NpzWriter:
    """Writes `arr_0` [N, H, W, 3] uint8 a batch at a time, for 50,000 images of 256 pixels are 10 GB."""

    def __init__(self, path: Path, shape: tuple[int, ...]):
        self.archive = zipfile.ZipFile(path, "w", allowZip64=True)
        self.array = self.archive.open("arr_0.npy", "w", force_zip64=True)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(self.array, header)  # the evaluator streams this version

    def add(self, images: np.ndarray) -> None:
        self.array.write(np.ascontiguousarray(images).data)

    def close(self, labels: np.ndarray) -> None:
        """Ends the file with the labels [N]."""
        self.array.close()
        with self.archive.open("labels.npy", "w") as file:
            np.save(file, labels)
        self.archive.close()


def open_images(path: Path, size: int | None = None) -> tuple[int, Iterator[np.ndarray]]:
    """How many images an `.npz` holds in `arr_0`, and these, [n, H, W, 3] uint8, a shard at a time.

    ConfigError, naming the file, if there is no such array or, where `size` is given, of other pixels.
    """
    with reading(path, "not an .npz with arr_0"):
        file = zipfile.ZipFile(path).open("arr_0.npy")  # noqa: SIM115 (read by the iterator that is returned)
        shape, fortran, dtype = read_header(file)
    side = size or "S"
    square = len(shape) == 4 and shape[1] == shape[2] and shape[3] == 3 and shape[1] == (size or shape[1])
    if dtype != np.uint8 or not square or shape[0] < 2:
        raise ConfigError(
            f"{path}: arr_0 is {dtype} {list(shape)}; expected uint8 [N, {side}, {side}, 3], N at least 2"
        )
    try:
        refuse_large((SHARD, *shape[1:]), dtype)  # what is in memory at a time
        refuse_large(shape, dtype, MOST_PACKED * path.stat().st_size)
        if fortran:  # its images are scattered over the whole file
            refuse_large(shape, dtype)
            return shape[0], in_memory(path, file, shape)
    except ValueError as error:
        hint = "; save it in C's order" if fortran else ""
        raise ConfigError(f"{path}: arr_0: {error}{hint}") from None

    def batches() -> Iterator[np.ndarray]:
        for start in range(0, shape[0], SHARD):
            count = min(SHARD, shape[0] - start) * shape[1] * shape[2] * 3
            content = read(path, file, count)
            if len(content) < count:
                raise ConfigError(f"{path}: ends after {start} of {shape[0]} images")
            yield np.frombuffer(content, np.uint8).reshape(-1, *shape[1:])

    return shape[0], batches()


def read(path: Path, file: IO[bytes], count: int) -> bytes:
    """ConfigError if what is packed there is damaged."""
    with reading(path, "arr_0 cannot be read; make or copy it again"):
        return file.read(count)


def in_memory(path: Path, file: IO[bytes], shape: tuple[int, ...]) -> Iterator[np.ndarray]:
    """The images of an array in Fortran's order, a shard at a time; `file` stands at its first byte."""
    content = read(path, file, math.prod(shape))
    if len(content) < math.prod(shape):
        raise ConfigError(f"{path}: ends after {len(content):,} of {math.prod(shape):,} bytes")
    images = np.frombuffer(content, np.uint8).reshape(shape, order="F")
    return (np.ascontiguousarray(images[i : i + SHARD]) for i in range(0, shape[0], SHARD))
