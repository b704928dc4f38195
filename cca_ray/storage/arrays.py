"""Arrays in others' files, read within a limit: a header can claim any number, and a few bytes unpack to as many."""

import math
from pathlib import Path
from typing import IO
from zipfile import ZipFile

import numpy as np

MOST_BYTES = 2**30  # of an array that is held in memory
MOST_HEADER = 10_000  # bytes, as NumPy's own limit, which it looks at when it has read them all


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether it is in Fortran's order, and type, of a `.npy`; the file is at its first number then.

    ValueError if there is none, as for all that follows.
    """
    start = file.read(12)
    length = int.from_bytes(start[8 : 10 if start[6:7] == b"\1" else 12], "little")
    if length > MOST_HEADER:
        raise ValueError(f"its header claims {length:,} bytes, more than {MOST_HEADER:,}")
    file.seek(0)
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    return shape, fortran, dtype


def refuse_large(shape: tuple[int, ...], dtype: np.dtype, most: int | None = None) -> None:
    """By default more than `MOST_BYTES`."""
    claimed, limit = math.prod(shape) * dtype.itemsize, MOST_BYTES if most is None else most
    if claimed > limit:
        raise ValueError(f"it unpacks to {claimed:,} bytes, more than {limit:,}")


def read_array(file: IO[bytes], most: int | None = None) -> np.ndarray:
    """A `.npy` of at most so many bytes, by default `MOST_BYTES`."""
    shape, _, dtype = read_header(file)
    refuse_large(shape, dtype, most)
    file.seek(0)
    array: np.ndarray = np.lib.format.read_array(file, allow_pickle=False)
    return array


def read_arrays(path: str | Path | IO[bytes], wanted: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Of an `.npz`, those whose names begin so."""
    found: dict[str, np.ndarray] = {}
    with ZipFile(path) as archive:
        for member in archive.infolist():
            if member.filename.startswith(wanted):
                with archive.open(member) as file:
                    try:
                        found[member.filename.removesuffix(".npy")] = read_array(file)
                    except ValueError as error:
                        raise ValueError(f"{member.filename}: {error}") from None
    return found
