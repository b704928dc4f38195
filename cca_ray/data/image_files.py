"""Files of images, on a disk or at any URI that pyarrow reads: how they are opened, and the bytes of one image."""

import time
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath

import pyarrow as pa
from pyarrow import fs

from cca_ray.data.images import KINDS
from cca_ray.data.parquet_shards import images_of_group
from cca_ray.errors import ConfigError, first_line
from cca_ray.space_file import is_uri
from cca_ray.storage.uris import local_path, refuse_empty, to_uri

MOST_IMAGE_BYTES = 2**28  # of a file that is one image, undecoded


@dataclass(frozen=True)
class Entry:
    """An image in a file. In a folder the file is the image; in a tar, `length` bytes from `start`; in a Parquet
    file, row `start` of row group `length`. `key` is its class: a name, or a number from 0."""

    path: str
    start: int
    length: int
    key: str | int
    name: str = ""  # of the member or row, where the path is a shard's

    @property
    def place(self) -> str:
        """For people: which image it is."""
        return f"{self.path}: {self.name}" if self.name else self.path


@lru_cache(maxsize=8)
def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
    # By way of the local path, which refuses credentials: they would be said and kept with what is made.
    filesystem, path = fs.FileSystem.from_uri(to_uri(local_path(uri)))
    return filesystem, path


def open_files(where: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it; of a relative path, from where the process stands now."""
    refuse_empty(where)
    try:
        if is_uri(where):
            return open_uri(where)
        return fs.LocalFileSystem(), str(local_path(where).absolute())
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{where}: not a path or URI that can be opened ({first_line(error)})") from None


def is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in KINDS


def is_shard(path: str) -> bool:
    return path.lower().endswith((".tar", ".parquet"))


def below(path: str, root: str) -> PurePosixPath:
    return PurePosixPath(path).relative_to(root)


@lru_cache(maxsize=2)
def parquet_images(where: str, path: str, group: int, run: str) -> list[bytes]:
    """The images of one row group, kept for its next rows. `run`: see `read_entry`."""
    with open_files(where)[0].open_input_file(path) as file:
        return images_of_group(file, path, group)


def read_entry(where: str, path: str, start: int, length: int, run: str = "") -> bytes:
    """The image's file, undecoded. `run`: names a run in which files stay what they are; nothing is kept for another.

    ValueError if it is gone, not allowed or too large; a ConfigError, which stops all, if the storage does not answer
    thrice.
    """
    for pause_s in (1.0, 5.0, None):
        try:
            if path.lower().endswith(".parquet"):
                return parquet_images(where, path, length, run)[start]
            if length > MOST_IMAGE_BYTES:  # before room is made for it
                raise ValueError(f"has {length:,} bytes; an image has at most {MOST_IMAGE_BYTES:,}")
            with open_files(where)[0].open_input_file(path) as file:
                return bytes(file.read_at(length, start))
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(f"cannot be read ({error.strerror or error})") from None
        except (OSError, pa.ArrowException) as error:
            if pause_s is None:
                raise ConfigError(f"{path}: cannot be read: {first_line(error)}") from None
            time.sleep(pause_s)
    raise AssertionError("unreachable")
