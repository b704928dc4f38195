"""Files that are complete or not there."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

from cca_ray.storage.mirror import push


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
