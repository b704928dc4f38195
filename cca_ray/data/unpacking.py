"""A large token set's labels and tokens, unpacked once a node into files that all its processes map."""

import fcntl
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from cca_ray.errors import reading


def mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """A new `.npy` of uint16, mapped. Its room is claimed now: writing to a map on a full disk kills the process."""
    header = {"descr": "<u2", "fortran_order": False, "shape": shape}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
        try:
            os.posix_fallocate(file.fileno(), 0, start + 2 * math.prod(shape))
        except OSError as error:
            path.unlink()
            raise ValueError(
                f"{path}: no room for {2 * math.prod(shape) / 1e9:.1f} GB of unpacked tokens ({error.strerror}); "
                "set CCA_RAY_CACHE to a folder with more"
            ) from None
    return np.memmap(path, dtype="<u2", mode="r+", offset=start, shape=shape)


def unpacked(
    folder: Path, shape: tuple[int, ...], content: Callable[[], Iterator[tuple[np.ndarray, np.ndarray]]]
) -> tuple[np.ndarray, np.ndarray]:
    """labels, and tokens mapped from a file; the first process of the node writes it, the others wait."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    tokens_file, labels_file = folder / "tokens.npy", folder / "labels.npy"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not labels_file.exists():  # written last
            tokens = mapped(tokens_file, shape)
            labels, row = [], 0
            for part_labels, part_tokens in content():
                tokens[row : row + len(part_labels)] = part_tokens
                labels.append(part_labels.astype(np.int64))
                row += len(part_labels)
            del tokens  # written and unmapped
            partial = folder / "labels.partial.npy"
            np.save(partial, np.concatenate(labels))
            partial.replace(labels_file)
    with reading(folder, "damaged; delete it to unpack the token set again"):
        return np.load(labels_file), np.load(tokens_file, mmap_mode="r")
