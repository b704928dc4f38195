"""Files that are complete or not there."""

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from cca_ray.storage.mirror import push

MEGABYTE = 2**20


def fingerprint(path: Path) -> str:
    """Sixteen hexadecimal digits that tell a file of weights from others: of its size and of three of its megabytes.

    Empty if there is no such file. Two trainings differ everywhere, so this is as good as all bytes, and reads none of
    the gigabytes between.
    """
    if not path.is_file():
        return ""
    size, digest = path.stat().st_size, hashlib.sha256()
    digest.update(str(size).encode())
    with path.open("rb") as file:
        for start in (0, (size - MEGABYTE) // 2, size - MEGABYTE):
            file.seek(max(0, start))
            digest.update(file.read(MEGABYTE))
    return digest.hexdigest()[:16]


State = tuple[int, int]  # when a file was written, in nanoseconds, and its bytes


def state_of(path: Path) -> State:
    """Tells a file that was written again from what it was; zeros if there is none."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_mtime_ns, found.st_size


def atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a file beside the path, then put it in its place, first at its URI: complete or not at all.

    Raises OSError, also where torch.save has an error of its own for a write that failed.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    try:
        write(partial)
        push(path, partial)
    except RuntimeError as error:
        if "PytorchStreamWriter" not in str(error):
            raise
        raise OSError(errno.ENOSPC, "cannot be written; is the disk full?", str(path)) from None
    finally:
        partial.unlink(missing_ok=True)
