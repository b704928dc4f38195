"""Collections of images: where each lies and what it shows; pixels, cut as the official code cuts them.

A collection is an ImageFolder tree (one subfolder per class), or `.tar` or `.parquet` shards; on a disk or at any
URI that pyarrow reads, such as s3://bucket/imagenet.
"""

import hashlib
import io
import json
import tarfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pyarrow import fs

from cca_ray.config import ConfigError

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
COLUMNS = {"image": ("image", "jpg", "png"), "label": ("label", "cls")}  # of Parquet shards
TEN_CROPS = {"ten-crop-1.1": 1.1, "ten-crop-1.05": 1.05}
AUGMENTATIONS = ("centre", "flips", *TEN_CROPS)


@dataclass(frozen=True)
class Entry:
    """An image in a file. In a folder the file is the image; in a tar, `length` bytes from `start`; in a Parquet
    file, row `start`. `key` is its class: a name, or a number from 0."""

    path: str
    start: int
    length: int
    key: str | int


@dataclass(frozen=True)
class Listing:
    """All images of a collection, in an order that depends on their names alone; labels [N] int64."""

    where: str
    entries: tuple[Entry, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        """Names the images by their places and sizes."""
        root = open_files(self.where)[1]
        content = [[e.path.removeprefix(root), e.start, e.length, int(label)]
                   for e, label in zip(self.entries, self.labels, strict=True)]  # fmt: skip
        return hashlib.sha256(json.dumps([content, self.class_names]).encode()).hexdigest()[:16]

    def table(self, index: np.ndarray) -> pa.Table:
        """Rows for the workers: index, label, path, start, length."""
        entries = [self.entries[i] for i in index]
        columns = {
            "index": index,
            "label": self.labels[index],
            "path": [e.path for e in entries],
            "start": [e.start for e in entries],
            "length": [e.length for e in entries],
        }
        return pa.table(columns)


@lru_cache(maxsize=8)
def open_files(where: str) -> tuple[fs.FileSystem, str]:
    """The file system of a path or URI, and the path in it."""
    try:
        if "://" in where:
            filesystem, path = fs.FileSystem.from_uri(where)
            return filesystem, path
        return fs.LocalFileSystem(), str(Path(where).absolute())
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{where}: not a path or URI that can be opened ({str(error).splitlines()[0]})") from None


def is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def list_images(where: str, classes: Sequence[str] | None = None, each: Callable[..., Iterable[Any]] = map) -> Listing:
    """Find all images. `classes`: the names in the order of their labels; otherwise those found, sorted.

    `each(function, where, paths)` lists several shards at a time.  ConfigError, naming the place, if there is
    nothing, an empty class folder, a class that is not among `classes`, or a shard that cannot be read.
    """
    filesystem, root = open_files(where)
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"{where}: no such folder or file")
    infos = [info] if info.is_file else filesystem.get_file_info(fs.FileSelector(root, recursive=True))
    files = sorted(i.path for i in infos if i.is_file)
    shards = [path for path in files if path.endswith((".tar", ".parquet"))]
    if shards:
        entries = [entry for found in each(list_shard, [where] * len(shards), shards) for entry in found]
    else:
        entries = list_folder(where, root, infos)
    if not entries:
        raise ConfigError(f"{where}: no images here ({', '.join(sorted(SUFFIXES))}, .tar or .parquet)")
    return with_labels(where, entries, classes)


def list_folder(where: str, root: str, infos: list[fs.FileInfo]) -> list[Entry]:
    """An ImageFolder tree: the first folder below the root is the class, in the order of torchvision's."""
    entries, folders = [], set()
    for info in infos:
        parts = PurePosixPath(info.path).relative_to(root).parts
        if any(part.startswith(".") for part in parts):
            continue
        if info.type == fs.FileType.Directory and len(parts) == 1:
            folders.add(parts[0])
        elif info.is_file and len(parts) > 1 and is_image(info.path):
            entries.append(Entry(info.path, 0, info.size, parts[0]))
    if empty := sorted(folders - {str(entry.key) for entry in entries}):
        raise ConfigError(f"{where}: no image in the class folder {empty[0]}")
    if folders and len(folders) < 2:
        raise ConfigError(f"{where}: want one subfolder per class, at least 2; found 1")
    return sorted(entries, key=lambda e: (e.key, PurePosixPath(e.path).parent, e.path))


def list_shard(where: str, path: str) -> list[Entry]:
    """The images of one `.tar` or `.parquet` file."""
    filesystem, _ = open_files(where)
    try:
        with filesystem.open_input_file(path) as file:
            return list_tar(file, path) if path.endswith(".tar") else list_parquet(file, path)
    except (tarfile.TarError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable shard ({str(error).splitlines()[0]})") from None


def list_tar(file: Any, path: str) -> list[Entry]:
    """WebDataset shards (`x.jpg` beside `x.cls`), trees, and ImageNet's tar per class (its name is the class)."""
    images: list[tarfile.TarInfo] = []
    numbers: dict[str, int] = {}
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for member in archive:
            stem = member.name.rsplit(".", 1)[0]
            if member.isfile() and is_image(member.name):
                images.append(member)
            elif member.isfile() and member.name.endswith(".cls"):
                text = archive.extractfile(member).read().decode().strip()  # type: ignore[union-attr]
                if not text.isdigit():
                    raise ConfigError(f"{path}: {member.name} holds {text[:20]!r}, not a class number")
                numbers[stem] = int(text)
    entries = []
    for member in images:
        parent = PurePosixPath(member.name).parent.name
        key: str | int = parent or PurePosixPath(path).stem
        if numbers:
            stem = member.name.rsplit(".", 1)[0]
            if stem not in numbers:
                raise ConfigError(f"{path}: {member.name} has no {stem}.cls beside it")
            key = numbers[stem]
        entries.append(Entry(path, member.offset_data, member.size, key))
    return entries


def column(schema: pa.Schema, what: str, path: str) -> str:
    found = [name for name in COLUMNS[what] if name in schema.names]
    if not found:
        raise ConfigError(f"{path}: no column {' or '.join(COLUMNS[what])}; it has {', '.join(schema.names)}")
    return found[0]


def list_parquet(file: Any, path: str) -> list[Entry]:
    """Rows of `image` (bytes, or a struct with `bytes`, as of Hugging Face) and `label` (number or name)."""
    parquet = pq.ParquetFile(file)
    column(parquet.schema_arrow, "image", path)
    labels = parquet.read(columns=[column(parquet.schema_arrow, "label", path)])[0].to_pylist()
    if bad := [row for row, key in enumerate(labels) if not isinstance(key, int | str)]:
        raise ConfigError(f"{path}: row {bad[0]} has no label")
    return [Entry(path, row, 0, key) for row, key in enumerate(labels)]


def with_labels(where: str, entries: list[Entry], classes: Sequence[str] | None) -> Listing:
    """Numbers for the classes."""
    keys = {entry.key for entry in entries}
    if len({type(key) for key in keys}) > 1:
        raise ConfigError(f"{where}: some classes are numbers, others names")
    if all(isinstance(key, int) for key in keys):
        names = tuple(classes or (str(i) for i in range(max(int(key) for key in keys) + 1)))
        unknown = sorted(key for key in keys if not 0 <= int(key) < len(names))
        number: dict[str | int, int] = {i: i for i in range(len(names))}
    else:
        names = tuple(classes or sorted(str(key) for key in keys))
        number = {name: i for i, name in enumerate(names)}
        unknown = sorted(key for key in keys if key not in number)
    if unknown:
        raise ConfigError(f"{where}: class {unknown[0]!r} is not among the {len(names)} given classes")
    labels = np.array([number[entry.key] for entry in entries], dtype=np.int64)
    return Listing(where, tuple(entries), labels, names)


@lru_cache(maxsize=2)
def parquet_images(where: str, path: str) -> list[bytes]:
    """The images of one file, kept for its next rows."""
    with open_files(where)[0].open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        values = parquet.read(columns=[column(parquet.schema_arrow, "image", path)])[0].to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


def read_entry(where: str, path: str, start: int, length: int) -> bytes:
    """The image's file, undecoded. OSError if it cannot be read."""
    if path.endswith(".parquet"):
        return parquet_images(where, path)[start]
    with open_files(where)[0].open_input_file(path) as file:
        return bytes(file.read_at(length, start))


def decode(content: bytes | None) -> Image.Image:
    """RGB, whatever it was: grey, palette, transparent, CMYK, 16-bit. ValueError if it is no image."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image: Image.Image = Image.open(io.BytesIO(content or b""))
            if image.mode.startswith("I"):  # 16-bit grey: keep the high byte
                image = Image.fromarray((np.asarray(image).astype(np.uint32) >> 8).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except UnidentifiedImageError:
        raise ValueError("not an image of any known kind") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ValueError(f"not a readable image ({error})") from None


def centre_crop(image: Image.Image, size: int) -> np.ndarray:
    """The centre square, [size, size, 3] uint8, as ADM cuts it: halved by boxes, then resized bicubically."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


@dataclass(frozen=True)
class Crop:
    """One view of an image: a square cut at (top, left) from its centre square of `edge` pixels, mirrored or not."""

    name: str
    edge: int
    top: int = 0
    left: int = 0
    mirrored: bool = False


def crops_of(augmentations: Sequence[str], size: int) -> list[Crop]:
    """The official views of `size` pixels, in the official order.

    `centre`; `flips`: it and its mirror image; `ten-crop-1.1`: corners and centre of a square that is 1.1 times
    as wide, then their mirror images (torchvision's TenCrop).  ConfigError for an unknown one.
    """
    crops: list[Crop] = []
    for name in augmentations:
        if name not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {name!r}: any of {', '.join(AUGMENTATIONS)}")
        if name == "centre":
            crops.append(Crop(name, size))
        elif name == "flips":
            crops += [Crop("flips/0", size), Crop("flips/1", size, mirrored=True)]
        else:
            edge = int(size * TEN_CROPS[name])
            rest = edge - size
            middle = round(rest / 2)
            corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)]
            places = [(*corner, mirrored) for mirrored in (False, True) for corner in corners]
            crops += [Crop(f"{name}/{i}", edge, *place) for i, place in enumerate(places)]
    return crops


def cut(pixels: dict[int, np.ndarray], crop: Crop, size: int) -> np.ndarray:
    """A view of every image: `pixels[edge]` [B, edge, edge, 3] -> [B, size, size, 3]."""
    source = pixels[crop.edge]
    source = source[:, :, ::-1] if crop.mirrored else source
    return source[:, crop.top : crop.top + size, crop.left : crop.left + size]
