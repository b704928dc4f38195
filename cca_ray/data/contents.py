"""Whether files are those of before, where their names and sizes do not tell: by the bytes of some of them."""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

import numpy as np

from cca_ray.data.image_files import Entry, open_files, read_entry
from cca_ray.data.listing import Listing
from cca_ray.data.parquet_shards import footer
from cca_ray.errors import ConfigError

T = TypeVar("T")
LOOKED_AT = 64  # files of a collection: enough where all were made again
READERS = 16  # files at a time, for most of it is waiting


def digest_of_some(read: Callable[[T], bytes], items: Sequence[T], most: int = LOOKED_AT) -> str:
    """Sixteen hexadecimal digits of what `read` gives of `most` of these, evenly spaced."""
    chosen = np.linspace(0, len(items) - 1, min(len(items), most)).round().astype(int).tolist()
    digest = hashlib.sha256()
    with ThreadPoolExecutor(READERS) as pool:
        for content in pool.map(read, [items[i] for i in chosen]):
            digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def contents_of(listing: Listing) -> str:
    """Sixteen hexadecimal digits of the bytes of some images; of Parquet shards, of the footers of all.

    A footer has the size of every piece of its file, so that images made again are told from those of before.
    """
    shards = sorted({entry.path for entry in listing.entries if entry.path.lower().endswith(".parquet")})
    if shards:
        return digest_of_some(partial(footer_of, listing.where), shards, most=len(shards))
    return digest_of_some(partial(image, listing.where), listing.entries)


def footer_of(where: str, path: str) -> bytes:
    with open_files(where)[0].open_input_file(path) as file:
        return footer(file)


def image(where: str, entry: Entry) -> bytes:
    """None of one that cannot be read, which is told later; a ConfigError if the storage does not answer."""
    try:
        return read_entry(where, entry.path, entry.start, entry.length)
    except ConfigError:  # of an outage: nothing is known of what the images are
        raise
    except ValueError:
        return b""
