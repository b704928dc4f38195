"""Collections of images: where each lies and what it shows.

A collection is an ImageFolder tree (one subfolder per class), or `.tar` or `.parquet` shards; on a disk or at any
URI that pyarrow reads, such as s3://bucket/imagenet.
"""

import hashlib
import json
import tarfile
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
from pyarrow import fs

from cca_ray.data.image_files import Entry, below, is_image, is_shard, open_files, parquet_images
from cca_ray.data.images import KINDS
from cca_ray.data.odd_names import refuse_odd_name, refuse_odd_paths
from cca_ray.data.parquet_shards import has_images, list_rows
from cca_ray.data.tar_shards import CAPTION_SUFFIXES, hidden, list_tar
from cca_ray.errors import ConfigError, first_line

COMPRESSED = (".gz", ".tgz", ".zip", ".zst", ".xz", ".bz2", ".7z", ".rar")
MOST_CLASSES, LONGEST_NAME = 65_536, 1_000


@dataclass(frozen=True)
class Listing:
    """All images of a collection, in an order that depends on their names alone; labels [N] int64."""

    where: str
    entries: tuple[Entry, ...]
    labels: np.ndarray
    class_names: tuple[str, ...]
    passed_over: tuple[tuple[str, int], ...] = ()  # suffixes of files that are no images by their names, and how many

    @property
    def surprise(self) -> str:
        """What to tell of the order of classes that are numbers by their names; empty if it is the usual one."""
        names = self.class_names
        if not all(name.isascii() and name.isdecimal() for name in names) or list(names) == sorted(names, key=int):
            return ""
        return (
            f"classes are sorted as text, as torchvision does: {', '.join(names[:3])}, ... have the labels 0, 1, 2, "
            "...; --numeric-classes sorts them as numbers"
        )

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
            "place": [e.place for e in entries],
            "start": [e.start for e in entries],
            "length": [e.length for e in entries],
        }
        return pa.table(columns)


def list_images(
    where: str,
    classes: Sequence[str] | None = None,
    each: Callable[..., Iterable[Any]] = map,
    labelled: bool = True,
    label_key: str | None = None,
    numeric_classes: bool = False,
    allow_empty: bool = False,
) -> Listing:
    """Find all images; hidden files and folders are passed over. Without `labelled`, images in no class folder will do.

    `classes`: the names in the order of their labels; otherwise those found, sorted. `label_key`: the field of the
    `.json` beside an image in a tar, or the column of a Parquet file, that holds its class. `numeric_classes`: names
    that are numbers are sorted as numbers, not as text. `allow_empty`: labels may leave numbers out.
    `each(function, where, paths)` lists several shards at a time.  ConfigError, naming the place, if there is
    nothing, an empty class folder, a label below the largest without an image, a class that is not among `classes`, or
    a shard that cannot be read.
    """
    parquet_images.cache_clear()  # of files that may have been made again
    filesystem, root = open_files(where)
    info = filesystem.get_file_info(root)
    if info.type == fs.FileType.NotFound:
        raise ConfigError(f"{where}: no such folder or file")
    if info.is_file:
        infos = [info]
    else:
        refuse_odd_paths(where, filesystem, root)
        found = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        infos = [i for i in found if not hidden(str(below(i.path, root)))]
    paths = [i.path for i in infos if i.is_file]
    shards = sorted(filter(is_shard, paths))
    loose = list(filter(is_image, paths))
    if shards and loose:
        raise ConfigError(
            f"{where}: both shards and loose images, such as {shards[0]} and {loose[0]}; expected one kind"
        )
    others = [path for path in paths if not is_image(path) and not is_shard(path)]
    passed_over = Counter(PurePosixPath(path).suffix.lower() for path in others)
    if shards:
        found_shards = list_shards(where, shards, classes, each, label_key if labelled else None, labelled)
        entries = [entry for shard in found_shards for entry in shard.entries]
        passed_over += sum((shard.passed_over for shard in found_shards), Counter[str]())
    else:
        if label_key and labelled:
            raise ConfigError(f"{where}: --label-key is for .tar and .parquet; the classes of a tree are its folders")
        entries = list_folder(where, root, infos, labelled)
        if labelled and not classes:
            refuse_numbered_shards(where, entries, paths)
    if not entries:
        packed = next((i.path for i in infos if i.path.lower().endswith(COMPRESSED)), None)
        hint = f"; {packed} is compressed: unpack it first" if packed else ""
        raise ConfigError(f"{where}: no images here ({', '.join(sorted(KINDS))}, .tar or .parquet){hint}")
    listing = replace(
        with_labels(where, entries, classes, numeric_classes), passed_over=tuple(sorted(passed_over.items()))
    )
    if labelled and len(found_labels := set(listing.labels.tolist())) < 2:
        name = listing.class_names[found_labels.pop()]
        raise ConfigError(
            f"{where}: all images are of one class, {name!r}; expected at least 2, because "
            "negatives come from the others"
        )
    if labelled and not classes and not allow_empty:
        refuse_gaps(listing)
    return listing


def refuse_gaps(listing: Listing) -> None:
    """ConfigError if the numbers of classes leave some out: those would be drawn from, untrained."""
    counts = np.bincount(listing.labels, minlength=len(listing.class_names))
    if len(empty := np.flatnonzero(counts == 0)):
        raise ConfigError(
            f"{listing.where}: labels go from {listing.labels.min()} to {listing.labels.max()}, but there is no image "
            f"of class {empty[0]}{f' and {len(empty) - 1:,} more' * (len(empty) > 1)}; number the classes from 0, "
            "without gaps (prepare also takes --classes FILE, which names all, or --allow-empty-classes)"
        )


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
    stray = [i.path for i in infos if i.is_file and is_image(i.path) and len(below(i.path, root).parts) == 1]
    if len(folders) > 1 and stray:
        raise ConfigError(f"{where}: {stray[0]} lies beside the class folders, not in one; put it into one")
    if len(folders) < 2 and (folders or any(is_image(info.path) for info in infos)):
        raise ConfigError(f"{where}: expected one subfolder per class, at least 2; found {len(folders)}")
    return sorted(entries, key=lambda e: (e.key, PurePosixPath(e.path).parent, e.path))


def refuse_numbered_shards(where: str, entries: list[Entry], paths: list[str]) -> None:
    """ConfigError if the folders look like img2dataset's: numbers, and a caption beside each image."""
    captions = {PurePosixPath(p).with_suffix("") for p in paths if PurePosixPath(p).suffix in CAPTION_SUFFIXES}
    if entries and all(str(e.key).isdecimal() and PurePosixPath(e.path).with_suffix("") in captions for e in entries):
        raise ConfigError(
            f"{where}: the folders are numbers, such as {entries[0].key}, and a caption lies beside each image: "
            "shards, not classes? If they are classes, list them with --classes"
        )


@dataclass(frozen=True)
class Shard:
    """The images of one file; of what else is in it, how many by suffix. root: see `tar_shards.Found`."""

    entries: tuple[Entry, ...]
    passed_over: Counter[str]
    root: str | None = None


def list_shards(
    where: str, paths: list[str], classes: Sequence[str] | None, each: Callable[..., Iterable[Any]],
    label_key: str | None, labelled: bool,
) -> list[Shard]:  # fmt: skip
    """The images of all `.tar` and `.parquet` files."""
    tars = {PurePosixPath(path).with_suffix("") for path in paths if path.lower().endswith(".tar")}
    beside = [PurePosixPath(path).with_suffix("") in tars for path in paths]
    wanted = [(where, path, tar, classes, label_key, labelled) for path, tar in zip(paths, beside, strict=True)]
    found = list(each(list_shard, *zip(*wanted, strict=True)))
    refuse_roots_in_roots({shard.root: path for shard, path in zip(found, paths, strict=True)})
    return found


def list_shard(
    where: str, path: str, beside_tar: bool, classes: Sequence[str] | None, label_key: str | None, labelled: bool
) -> Shard:
    """The images of one `.tar` or `.parquet` file. img2dataset leaves a table of captions and URLs beside each tar."""
    filesystem, _ = open_files(where)
    try:
        with filesystem.open_input_file(path) as file:
            if not path.lower().endswith(".tar"):
                if beside_tar and not has_images(file):
                    return Shard((), Counter({".parquet": 1}))
                rows = enumerate(list_rows(file, path, label_key, labelled))
                entries = (Entry(path, row.row, row.group, row.key, f"row {number}") for number, row in rows)
                return Shard(tuple(entries), Counter())
            found = list_tar(file, path, is_image, frozenset(classes or ()), label_key, labelled)
            images = (Entry(path, image.start, image.length, image.key, image.name) for image in found.images)
            return Shard(tuple(images), found.passed_over, found.root)
    except (tarfile.TarError, pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not a readable shard ({first_line(error)})") from None


def refuse_roots_in_roots(shards: dict[str | None, str]) -> None:
    """ConfigError if the root of class folders of one shard lies below that of another: a class's folder, perhaps."""
    for root, path in shards.items():
        for above in map(str, PurePosixPath(root or "").parents):
            if other := shards.get("" if above == "." else above):
                raise ConfigError(
                    f"{path}: its images lie in {root}, and the class folders of {other} in {above}: which folder is "
                    "the class? Put x.cls beside each x.jpg, or pack all without folders above or below the classes"
                )


def with_labels(
    where: str, entries: list[Entry], classes: Sequence[str] | None, numeric_classes: bool = False
) -> Listing:
    """Numbers for the classes. Names are equal if they look equal: Unicode has two forms of `é` (NFC, NFD)."""
    keys = {entry.key for entry in entries}
    if len({type(key) for key in keys}) > 1:
        raise ConfigError(f"{where}: some classes are numbers, others names")
    if all(isinstance(key, int) for key in keys):
        most = min(max(int(key) for key in keys), MOST_CLASSES)
        names = tuple(classes or (str(i) for i in range(most + 1)))
        number: dict[str | int, int] = {i: i for i in range(len(names))}
    else:
        for name in sorted(str(key) for key in keys):
            refuse_odd_name(where, name)
            if len(name) > LONGEST_NAME:
                raise ConfigError(
                    f"{where}: the class '{name[:40]}...' has {len(name):,} characters; "
                    f"expected at most {LONGEST_NAME:,}"
                )
            if numeric_classes and not classes and not (name.isascii() and name.isdecimal()):
                raise ConfigError(f"{where}: --numeric-classes, but the class {name!r} is not a number")
        names = tuple(classes or sorted((str(key) for key in keys), key=int if numeric_classes else None))
        by_look = {look(name): i for i, name in enumerate(names)}
        if len(by_look) < len(names):
            raise ConfigError(f"{where}: two {'of the given ' if classes else ''}classes have the same name")
        number = {key: by_look[look(str(key))] for key in keys if look(str(key)) in by_look}
    if unknown := sorted(key for key in keys if key not in number):
        raise ConfigError(f"{where}: class {unknown[0]!r} is not among the {len(names)} given classes")
    labels = np.array([number[entry.key] for entry in entries], dtype=np.int64)
    return Listing(where, tuple(entries), labels, names)


def look(name: str) -> str:
    return unicodedata.normalize("NFC", name)
