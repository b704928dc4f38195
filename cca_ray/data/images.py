"""Collections of images: where each lies and what it shows; pixels, cut as the official code cuts them.

A collection is an ImageFolder tree (one subfolder per class), or `.tar` or `.parquet` shards; on a disk or at any
URI that pyarrow reads, such as s3://bucket/imagenet.
"""

import hashlib
import io
import json
import os
import tarfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, UnidentifiedImageError
from pyarrow import fs

from cca_ray.errors import ConfigError
from cca_ray.space_file import is_uri
from cca_ray.storage.uris import here

SUFFIXES = {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"}
COLUMNS = {"image": ("image", "jpg", "png"), "label": ("label", "cls")}  # of Parquet shards
TEN_CROPS = {"ten-crop-1.1": 1.1, "ten-crop-1.05": 1.05}
MOST_CLASSES = 65_536
MOST_PIXELS = 2**26  # of an image that is resized
VAR_EDGE = 1.125
AUGMENTATIONS = ("centre", "flips", *TEN_CROPS, "var-random", "var-centre")


@dataclass(frozen=True)
class Entry:
    """An image in a file. In a folder the file is the image; in a tar, `length` bytes from `start`; in a Parquet
    file, row `start` of row group `length`. `key` is its class: a name, or a number from 0."""

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
        if is_uri(where):
            here(where)  # refuses one with credentials, which are said and kept with what is made
            filesystem, path = fs.FileSystem.from_uri(where)
            return filesystem, path
        return fs.LocalFileSystem(), str(Path(where).absolute())
    except (pa.ArrowInvalid, OSError) as error:
        raise ConfigError(f"{where}: not a path or URI that can be opened ({str(error).splitlines()[0]})") from None


def is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in SUFFIXES


def list_images(
    where: str,
    classes: Sequence[str] | None = None,
    each: Callable[..., Iterable[Any]] = map,
    labelled: bool = True,
) -> Listing:
    """Find all images; what begins with a dot is passed over. Without `labelled`, images in no class folder will do.

    `classes`: the names in the order of their labels; otherwise those found, sorted.
    `each(function, where, paths)` lists several shards at a time.  ConfigError, naming the place, if there is
    nothing, an empty class folder, a class that is not among `classes`, or a shard that cannot be read.
    """
    filesystem, root = open_files(where)
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"{where}: no such folder or file")
    if info.is_file:
        infos = [info]
    else:
        refuse_loops(where, filesystem, root)
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        infos = [i for i in found if not any(part.startswith(".") for part in below(i.path, root).parts)]
    shards = sorted(i.path for i in infos if i.is_file and i.path.endswith((".tar", ".parquet")))
    loose = [i.path for i in infos if i.is_file and is_image(i.path)]
    if shards and loose:
        raise ConfigError(f"{where}: both shards and loose images, such as {shards[0]} and {loose[0]}; want one kind")
    if shards:
        entries = [entry for of_shard in each(list_shard, [where] * len(shards), shards) for entry in of_shard]
    else:
        entries = list_folder(where, root, infos, labelled)
    if not entries:
        packed = next((i.path for i in infos if i.path.endswith((".tar.gz", ".tgz", ".zip"))), None)
        hint = f"; {packed} is compressed: unpack it first" if packed else ""
        raise ConfigError(f"{where}: no images here ({', '.join(sorted(SUFFIXES))}, .tar or .parquet){hint}")
    return with_labels(where, entries, classes)


def below(path: str, root: str) -> PurePosixPath:
    return PurePosixPath(path).relative_to(root)


def refuse_loops(where: str, filesystem: fs.FileSystem, root: str) -> None:
    """ConfigError if a link in a local folder leads nowhere, or to a folder that contains it: images without end."""
    if not isinstance(filesystem, fs.LocalFileSystem):
        return
    for folder, names, files in os.walk(root):
        for path in (Path(folder) / name for name in [*names, *files]):
            if path.is_symlink() and (not path.exists() or path.resolve() in Path(folder).resolve().parents
                                      or path.resolve() == Path(folder).resolve()):  # fmt: skip
                raise ConfigError(f"{where}: the link {path} leads nowhere, or back to a folder that contains it")


def list_folder(where: str, root: str, infos: list[fs.FileInfo], labelled: bool) -> list[Entry]:
    """An ImageFolder tree: the first folder below the root is the class, in the order of torchvision's."""
    entries, folders = [], set()
    for info in infos:
        parts = below(info.path, root).parts
        if info.type == fs.FileType.Directory or len(parts) > 1:  # a bucket may tell of no folders
            folders.add(parts[0])
        if info.is_file and is_image(info.path) and (len(parts) > 1 or not labelled):
            entries.append(Entry(info.path, 0, info.size, parts[0] if labelled else "any"))
    if not labelled:
        return sorted(entries, key=lambda e: e.path)
    if empty := sorted(folders - {str(entry.key) for entry in entries}):
        raise ConfigError(f"{where}: no image in the class folder {empty[0]}")
    if len(folders) < 2 and (folders or any(is_image(info.path) for info in infos)):
        raise ConfigError(f"{where}: want one subfolder per class, at least 2; found {len(folders)}")
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
                if not text.isdecimal() or int(text) >= MOST_CLASSES:
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
    schema = parquet.schema_arrow
    kind = schema.field(column(schema, "image", path)).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise ConfigError(f"{path}: its images are {kind}; want bytes, or a struct with bytes")
    labels = parquet.read(columns=[column(schema, "label", path)])[0].to_pylist()
    if bad := [row for row, key in enumerate(labels) if not isinstance(key, int | str)]:
        raise ConfigError(f"{path}: row {bad[0]} has no label")
    places = [(row, group) for group in range(parquet.num_row_groups)
              for row in range(parquet.metadata.row_group(group).num_rows)]  # fmt: skip
    return [Entry(path, row, group, key) for (row, group), key in zip(places, labels, strict=True)]


def with_labels(where: str, entries: list[Entry], classes: Sequence[str] | None) -> Listing:
    """Numbers for the classes."""
    keys = {entry.key for entry in entries}
    if len({type(key) for key in keys}) > 1:
        raise ConfigError(f"{where}: some classes are numbers, others names")
    if all(isinstance(key, int) for key in keys):
        most = min(max(int(key) for key in keys), MOST_CLASSES)
        names = tuple(classes or (str(i) for i in range(most + 1)))
        unknown = sorted(key for key in keys if not 0 <= int(key) < len(names))
        number: dict[str | int, int] = {i: i for i in range(len(names))}
    else:
        names = tuple(classes or sorted(str(key) for key in keys))
        if len(set(names)) < len(names):
            raise ConfigError(f"{where}: two of the given classes have the same name")
        number = {name: i for i, name in enumerate(names)}
        unknown = sorted(key for key in keys if key not in number)
    if unknown:
        raise ConfigError(f"{where}: class {unknown[0]!r} is not among the {len(names)} given classes")
    labels = np.array([number[entry.key] for entry in entries], dtype=np.int64)
    return Listing(where, tuple(entries), labels, names)


@lru_cache(maxsize=2)
def parquet_images(where: str, path: str, group: int) -> list[bytes]:
    """The images of one row group, kept for its next rows."""
    with open_files(where)[0].open_input_file(path) as file:
        parquet = pq.ParquetFile(file)
        name = column(parquet.schema_arrow, "image", path)
        values = parquet.read_row_group(group, columns=[name])[0].to_pylist()
    return [value["bytes"] if isinstance(value, dict) else value for value in values]


def read_entry(where: str, path: str, start: int, length: int) -> bytes:
    """The image's file, undecoded.

    ValueError if it is gone or not allowed; a ConfigError, which stops all, if the storage does not answer thrice.
    """
    for pause_s in (1.0, 5.0, None):
        try:
            if path.endswith(".parquet"):
                return parquet_images(where, path, length)[start]
            with open_files(where)[0].open_input_file(path) as file:
                return bytes(file.read_at(length, start))
        except (FileNotFoundError, PermissionError) as error:
            raise ValueError(f"cannot be read ({error.strerror or error})") from None
        except (OSError, pa.ArrowException) as error:
            if pause_s is None:
                raise ConfigError(f"{path}: cannot be read: {str(error).splitlines()[0]}") from None
            time.sleep(pause_s)
    raise AssertionError("unreachable")


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
    """The centre square, [size, size, 3] uint8, as ADM cuts it: halved by boxes, then resized bicubically.

    ValueError for a sliver, which would first be enlarged beyond all memory.
    """
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    width, height = round(image.width * scale), round(image.height * scale)
    if width * height > MOST_PIXELS:
        raise ValueError(f"too long: {image.width} x {image.height} pixels would become {width} x {height}")
    pixels = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC))
    top, left = (height - size) // 2, (width - size) // 2
    return pixels[top : top + size, left : left + size]


def lanczos(image: Image.Image, edge: int) -> np.ndarray:
    """The whole image, its shorter side `edge` pixels, as VAR resizes it (torchvision's Resize): [H, W, 3] uint8."""
    short, long = min(image.size), max(image.size)
    other = int(edge * long / short)
    if edge * other > MOST_PIXELS:
        raise ValueError(f"too long: {image.width} x {image.height} pixels would become {edge} x {other}")
    size = (edge, other) if image.width <= image.height else (other, edge)
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS))


@dataclass(frozen=True)
class Square:
    """What is cut from an image when it is read: `side` pixels.

    `adm`: the centre (see `centre_crop`); `centre`, `random`: of the image whose shorter side is `edge` pixels.
    """

    kind: Literal["adm", "centre", "random"]
    side: int
    edge: int = 0
    draw: int = 0  # tells the random ones apart

    @property
    def key(self) -> str:
        return f"pixels_{self.kind}_{self.side}_{self.draw}"

    def of(self, image: Image.Image, index: int) -> np.ndarray:
        """[side, side, 3] uint8. A random place is a function of the image's index and the draw."""
        if self.kind == "adm":
            return centre_crop(image, self.side)
        pixels = lanczos(image, self.edge)
        room = np.array(pixels.shape[:2]) - self.side
        if self.kind == "centre":
            top, left = (round(r / 2) for r in room.tolist())
        else:
            top, left = np.random.default_rng([index, self.draw]).integers(0, room + 1).tolist()
        return pixels[top : top + self.side, left : left + self.side]


@dataclass(frozen=True)
class Crop:
    """One view of an image: so many pixels cut at (top, left) from one of its squares, mirrored or not."""

    name: str
    square: Square
    top: int = 0
    left: int = 0
    mirrored: bool = False


def crops_of(augmentations: Sequence[str], size: int) -> list[Crop]:
    """The official views of `size` pixels, in the official order.

    LlamaGen: `centre`; `flips`: it and its mirror image; `ten-crop-1.1`: corners and centre of a square that is 1.1
    times as wide, then their mirror images (torchvision's TenCrop).  VAR: `var-random`, `var-centre`: of the image
    whose shorter side is 1.125 times as long.  ConfigError for an unknown one.
    """
    crops: list[Crop] = []
    for draw, name in enumerate(augmentations):
        if name not in AUGMENTATIONS:
            raise ConfigError(f"unknown augmentation {name!r}: any of {', '.join(AUGMENTATIONS)}")
        if name == "centre":
            crops.append(Crop(name, Square("adm", size)))
        elif name == "flips":
            crops += [Crop(f"flips/{i}", Square("adm", size), mirrored=bool(i)) for i in (0, 1)]
        elif name in TEN_CROPS:
            edge = int(size * TEN_CROPS[name])
            rest = edge - size
            middle = round(rest / 2)
            corners = [(0, 0), (0, rest), (rest, 0), (rest, rest), (middle, middle)]
            places = [(*corner, mirrored) for mirrored in (False, True) for corner in corners]
            crops += [Crop(f"{name}/{i}", Square("adm", edge), *place) for i, place in enumerate(places)]
        else:
            kind: Literal["centre", "random"] = "random" if name == "var-random" else "centre"
            crops.append(Crop(f"{name}/{draw}", Square(kind, size, round(size * VAR_EDGE), draw)))
    return crops


def cut(pixels: dict[str, np.ndarray], crop: Crop, size: int) -> np.ndarray:
    """A view of every image: `pixels[square's key]` [B, side, side, 3] -> [B, size, size, 3]."""
    source = pixels[crop.square.key]
    source = source[:, :, ::-1] if crop.mirrored else source
    return source[:, crop.top : crop.top + size, crop.left : crop.left + size]
