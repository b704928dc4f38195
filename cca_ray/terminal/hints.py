"""In a notebook, Ray and tqdm ask for ipywidgets when they are imported; nothing here would use them."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def without_hints() -> Iterator[None]:
    """Meanwhile they do not."""
    ray = logging.getLogger("ray.widgets.util")
    before = ray.level
    ray.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            yield
    finally:
        ray.setLevel(before)
