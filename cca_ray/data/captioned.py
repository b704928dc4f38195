"""Collections of images with captions: the text of each image, and where the features of each text are to lie.

A caption stands in `x.txt` beside `x.jpg`, in a folder or a `.tar`; in a column of a Parquet shard; or in a table of
loose images: a `.csv`, `.json`, `.jsonl` or `.parquet` file, or a folder of `.jsonl` files, as LlamaGen's scripts read.
"""

import csv
import hashlib
import io
import json
import posixpath
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from cca_ray.data.contents import READERS
from cca_ray.data.image_files import below, is_shard, open_files
from cca_ray.data.listing import Listing, list_images, look
from cca_ray.data.tar_shards import members_of
from cca_ray.errors import ConfigError, first_line, reading
from cca_ray.space_file import is_uri

TEXT_KEYS = ("text", "caption")
IMAGE_KEYS = ("file_name", "image_path", "image", "path")
MOST_BYTES = 2**20  # of a caption's own file


@dataclass(frozen=True)
class Caption:
    """Of one image. place: of its features, below the folder that holds those of all, without an ending."""

    text: str
    place: str


@dataclass(frozen=True)
class CaptionedImages:
    """images: the label of each is the number of its caption. captions [K]: each text once, in the texts' order."""

    images: Listing
    captions: tuple[Caption, ...]

    @property
    def texts(self) -> list[str]:
        return [caption.text for caption in self.captions]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([[c.text, c.place] for c in self.captions]).encode()).hexdigest()[:16]


def list_captioned(
    where: str, table: str | None = None, key: str | None = None, each: Callable[..., Iterable[Any]] = map
) -> CaptionedImages:
    """Find all images and their captions. `table`: what holds those of loose images, if not files beside them.

    `key`: the field or column of the caption, `text/1` where it is the second of a list; by default `text` or
    `caption`. Of files beside images it is a field of `x.json`, in the place of `x.txt`. `each`: see `list_images`.
    ConfigError, naming the place, if an image has no caption, or all have the same.
    """
    images = list_images(where, each=each, labelled=False)
    in_shards = is_shard(images.entries[0].path)
    if table is not None and in_shards:
        raise ConfigError(f"--captions {table}: is for images in folders; shards hold their own captions")
    if table is not None:
        captions = of_table(images, table, key)
    elif in_shards:
        captions = of_shards(images, key, each)
    else:
        captions = beside(images, key)
    return numbered(images, captions)


def numbered(images: Listing, captions: Sequence[Caption]) -> CaptionedImages:
    """Equal texts are one caption, whose features are those of the first image that has it."""
    first: dict[str, Caption] = {}
    for caption in captions:
        first.setdefault(look(caption.text), caption)
    if len(first) < 2:
        raise ConfigError(
            f"{images.where}: all images have the caption {captions[0].text!r}; expected at least 2, because negatives "
            "are the captions of other images"
        )
    numbers = {text: i for i, text in enumerate(sorted(first))}
    labels = np.array([numbers[look(caption.text)] for caption in captions], np.int64)
    # What held the captions was not passed over.
    passed = tuple(item for item in images.passed_over if item[0] not in (".txt", ".json", ".csv", ".jsonl"))
    listing = replace(images, labels=labels, class_names=(), passed_over=passed)
    return CaptionedImages(listing, tuple(first[text] for text in numbers))


def text_of(row: object, key: str | None, place: str) -> str:
    """The caption in a row of a table. ConfigError, saying what is there, if there is none."""
    if key is None:
        key = next((name for name in TEXT_KEYS if isinstance(row, dict) and name in row), TEXT_KEYS[0])
    found: Any = row
    for name in key.split("/"):
        if isinstance(found, dict) and name in found:
            found = found[name]
        elif isinstance(found, list) and name.isdecimal() and int(name) < len(found):
            found = found[int(name)]
        else:
            names = ", ".join(map(str, islice(found, 8))) or "nothing" if isinstance(found, dict) else ""
            has = f"it has {names}" if names else f"it is a {type(found).__name__}"
            raise ConfigError(f"{place}: no field {key!r} ({has}); see --caption-key")
    if isinstance(found, list):
        raise ConfigError(f"{place}: {key!r} is a list of {len(found)}; --caption-key {key}/0 takes the first of it")
    return whole(found, place)


def whole(text: object, place: str) -> str:
    """The text without space around it. ConfigError, saying where it stands, if it is empty, or no Unicode."""
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"{place}: expected a caption, found {str(text)[:40]!r}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{place}: the caption {text[:40]!r} holds {text[error.start]!r}, which is half of a character; mend it"
        ) from None
    return text.strip()


def decoded(content: bytes, place: str, key: str | None) -> str:
    """The caption in a file of its own: the whole text, or with a key a field of JSON."""
    if len(content) > MOST_BYTES:
        raise ConfigError(f"{place}: more than {MOST_BYTES:,} bytes; expected a caption")
    with reading(place, "not UTF-8 text" if key is None else "not JSON"):
        text = content.decode("utf-8-sig")
        row = None if key is None else json.loads(text)
    return whole(text, place) if key is None else text_of(row, key, place)


def stem(path: str) -> str:
    return str(PurePosixPath(path).with_suffix(""))


def place_below(path: str, root: str) -> str:
    """Without its ending; of a collection that is one file its name."""
    return stem(PurePosixPath(path).name if path == root else str(below(path, root)))


def beside(images: Listing, key: str | None) -> list[Caption]:
    """Of loose images, from a file beside each."""
    filesystem, root = open_files(images.where)
    ending = ".txt" if key is None else ".json"

    def read(path: str) -> Caption:
        place = stem(path) + ending
        try:
            with filesystem.open_input_file(place) as file:
                text = decoded(file.read(MOST_BYTES + 1), place, key)
        except FileNotFoundError:
            raise ConfigError(
                f"{path}: no caption: there is no {PurePosixPath(place).name} beside it; see --captions"
            ) from None
        return Caption(text, place_below(path, root))

    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(read, [entry.path for entry in images.entries]))


def of_shards(images: Listing, key: str | None, each: Callable[..., Iterable[Any]]) -> list[Caption]:
    """Of images in `.tar` or Parquet files, which come one file after the other."""
    names: dict[str, list[str]] = {}
    for entry in images.entries:
        names.setdefault(entry.path, []).append(entry.name)
    root = open_files(images.where)[1]  # here: a relative path leads elsewhere on a node
    folders = [place_below(path, root) for path in names]
    arguments = [[images.where] * len(names), list(names), folders, list(names.values()), [key] * len(names)]
    return [caption for captions in each(of_shard, *arguments) for caption in captions]


def of_shard(where: str, path: str, folder: str, names: Sequence[str], key: str | None) -> list[Caption]:
    """Of the images of one file, in order; their features lie in this folder."""
    filesystem, _ = open_files(where)
    try:
        with filesystem.open_input_file(path) as file:
            if not path.lower().endswith(".tar"):
                rows = rows_of_parquet(file, path, key)
                return [Caption(text_of(row, key, f"{path}: row {i}"), f"{folder}/{i}") for i, row in enumerate(rows)]
            return [Caption(text, f"{folder}/{stem(name)}") for name, text in of_members(file, path, names, key)]
    except (tarfile.TarError, pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: not a readable shard ({first_line(error)})") from None


def of_members(file: Any, path: str, names: Sequence[str], key: str | None) -> Iterator[tuple[str, str]]:
    """(name, caption) of these images of an archive."""
    members, ending = members_of(file, path), ".txt" if key is None else ".json"
    for name in names:
        member = members.get(stem(name) + ending)
        if member is None:
            raise ConfigError(f"{path}: {name} has no {stem(name)}{ending} beside it, which would be its caption")
        file.seek(member.start)
        yield name, decoded(file.read(min(member.length, MOST_BYTES + 1)), f"{path}: {member.name}", key)


def rows_of_parquet(file: Any, path: str, key: str | None, also: str | None = None) -> list[dict[str, Any]]:
    """The column of captions, and another one, row by row."""
    parquet = pq.ParquetFile(file)
    has = parquet.schema_arrow.names
    wanted = [key.split("/")[0]] if key else [name for name in TEXT_KEYS if name in has][:1]
    if not wanted or wanted[0] not in has:
        raise ConfigError(f"{path}: no column {key or ' or '.join(TEXT_KEYS)}; it has {', '.join(has)}")
    rows: list[dict[str, Any]] = parquet.read(columns=wanted + ([also] if also else [])).to_pylist()
    return rows


@dataclass(frozen=True)
class Row:
    """Of a table: which image, its caption, and where in the table it stands."""

    image: str
    text: str
    place: str
    features: str | None  # None: as the image


def of_table(images: Listing, table: str, key: str | None) -> list[Caption]:
    """Of loose images, by their paths below the root of all, by whole ones, or by URIs."""
    filesystem, root = open_files(images.where)
    uri = f"file://{root}" if isinstance(filesystem, fs.LocalFileSystem) else plain(images.where).rstrip("/")
    by_image: dict[str, Row] = {}
    for row in rows_of(table, key):
        named = plain(row.image).removeprefix(f"{uri}/") if is_uri(row.image) else row.image
        path = named if named.startswith(root + "/") else posixpath.join(root, named)
        if (other := by_image.setdefault(posixpath.normpath(path), row)) is not row:
            raise ConfigError(f"{row.place}: a second caption of {row.image}, which has one at {other.place}")
    paths = [entry.path for entry in images.entries]
    if missing := [path for path in paths if path not in by_image]:
        raise ConfigError(f"{table}: has no caption of {missing[0]}{more(missing)}; expected one of each image")
    if strange := [by_image[path] for path in sorted(by_image.keys() - set(paths))]:
        raise ConfigError(f"{strange[0].place}: no image {strange[0].image} in {images.where}{more(strange)}")
    rows = [by_image[path] for path in paths]
    return [Caption(row.text, row.features or place_below(path, root)) for path, row in zip(paths, rows, strict=True)]


def plain(uri: str) -> str:
    """Without what says how to get there, and with no character written as a number."""
    return unquote(uri.partition("?")[0])


def more(found: Sequence[object]) -> str:
    return f" and {len(found) - 1:,} more" * (len(found) > 1)


def rows_of(table: str, key: str | None) -> Iterator[Row]:
    """Of one file; of a folder, of all its `.jsonl` files."""
    filesystem, path = open_files(table)
    info = filesystem.get_file_info(path)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"--captions {table}: no such file or folder")
    paths = [path]
    if not info.is_file:
        found = filesystem.get_file_info(fs.FileSelector(path))
        if not (paths := sorted(i.path for i in found if i.is_file and i.path.endswith(".jsonl"))):
            raise ConfigError(f"--captions {table}: no .jsonl file in this folder")
    for one in paths:
        with filesystem.open_input_file(one) as file:
            found_rows = rows_of_file(file, one, key)
        for number, row in enumerate(found_rows):
            place = f"{one}: row {number}"
            image = next((row[name] for name in IMAGE_KEYS if isinstance(row, dict) and name in row), None)
            if not isinstance(image, str) or not image:
                raise ConfigError(f"{place}: names no image; expected a field {' or '.join(IMAGE_KEYS)}")
            # As LlamaGen's script leaves them: by the file's name and the line, from 0.
            features = f"{PurePosixPath(one).stem}/{number}" if one.lower().endswith(".jsonl") else None
            yield Row(image, text_of(row, key, place), place, features)


def rows_of_file(file: Any, path: str, key: str | None) -> list[Any]:
    """Each an object, which names an image and holds its caption. ConfigError if the file is no table."""
    ending = PurePosixPath(path).suffix.lower()
    if ending == ".parquet":
        with reading(path, "not a table of captions"):
            columns = pq.ParquetFile(file).schema_arrow.names
        return rows_of_parquet(file, path, key, next((name for name in IMAGE_KEYS if name in columns), None))
    if ending not in (".csv", ".json", ".jsonl"):
        raise ConfigError(f"--captions {path}: expected .csv, .json, .jsonl or .parquet, or a folder of .jsonl files")
    with reading(path, "not a table of captions"):
        content = file.read().decode("utf-8-sig")
        if ending == ".csv":
            return list(csv.DictReader(io.StringIO(content), strict=True))
        if ending == ".jsonl":
            return [json.loads(line) for line in content.removesuffix("\n").split("\n")]
        rows = json.loads(content)
    if isinstance(rows, dict):  # by image
        text = (key or TEXT_KEYS[0]).split("/")[0]
        return [{IMAGE_KEYS[0]: image, text: caption} for image, caption in rows.items()]
    if not isinstance(rows, list):
        raise ConfigError(f"{path}: expected captions by image, or a list of objects that name an image and a caption")
    return rows
