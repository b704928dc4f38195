"""What images a `.tar` shard holds, and where: the whole archive or an error, never a part of it.

Read are WebDataset shards (`x.jpg` beside `x.cls`, or beside `x.json` with a field for the label), trees of class
folders, ImageNet's tar a class, and the tar of such tars that is its official download.
"""

import io
import json
import posixpath
import re
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from cca_ray.data.odd_names import refuse_odd_name
from cca_ray.errors import ConfigError

BLOCK = tarfile.BLOCKSIZE
MOST_LABEL_BYTES = 2**20  # of a .cls or .json member
MOST_PADDING = 2**20  # zeros after the end: an archive fills its last record, of 10 KiB as a rule
CAPTION_SUFFIXES = {".json", ".txt"}
LABEL_SUFFIXES = {".cls", *CAPTION_SUFFIXES}  # of what lies beside the images of a WebDataset
SYNSET = re.compile(r"(?:^|_)(n\d{8})(?=_|$)")  # in the names of ImageNet's files
LABELS = (
    "labels are read from class folders, `x.cls` beside `x.jpg`, a field of `x.json` (--label-key), ImageNet's synset "
    "in the file name, or the tar's own name where --classes lists it"
)
COMPRESSED = {
    b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "zstd", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"PK\x03\x04": "a zip",
}  # fmt: skip


@dataclass(frozen=True)
class Member:
    """A file in an archive: its name there, and where its bytes lie in the outermost file."""

    name: str
    start: int
    length: int

    @property
    def stem(self) -> str:
        return self.name.rsplit(".", 1)[0]


@dataclass(frozen=True)
class Labelled:
    """An image in an archive. `key` is its class: a name, or a number from 0."""

    name: str
    start: int
    length: int
    key: str | int


@dataclass(frozen=True)
class Found:
    """The images of an archive; of its other files, but for those with labels, how many by suffix.

    root: the folder that holds the class folders, where those are the classes.
    """

    images: tuple[Labelled, ...]
    passed_over: Counter[str]
    root: str | None = None


class Window(io.RawIOBase):
    """A part of a file, as a file: a tar within a tar."""

    def __init__(self, file: BinaryIO, start: int, length: int):
        self.file, self.start, self.length, self.at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.at = {io.SEEK_SET: 0, io.SEEK_CUR: self.at, io.SEEK_END: self.length}[whence] + offset
        return self.at

    def tell(self) -> int:
        return self.at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self.length - self.at)
        self.file.seek(self.start + self.at)
        content = self.file.read(left if size < 0 else min(size, left))
        self.at += len(content)
        return content


def list_tar(
    file: Any,
    path: str,
    is_image: Callable[[str], bool],
    classes: frozenset[str],
    label_key: str | None,
    labelled: bool = True,
) -> Found:
    """The images of an archive, in its order; of several members of one name the last counts, as for `tar` itself.

    `file`: open for reading. `classes`: names that the user gave, or none. Not `labelled`: all get the class "any".
    ConfigError, naming the path and the member or offset, if the archive is not whole or an image has no label.
    """
    refuse_compressed(file, path)
    members = members_of(file, path)
    inner = [member for member in members.values() if member.name.lower().endswith(".tar")]
    images = [member for member in members.values() if is_image(member.name)]
    for member in inner + images:
        refuse_odd_name(path, member.name)
    if inner and images:
        raise ConfigError(f"{path}: holds both images, such as {images[0].name}, and archives, such as {inner[0].name}")
    if inner:
        return list_inner(
            file, path, inner, lambda window, name: list_tar(window, name, is_image, classes, label_key, labelled)
        )
    others = [PurePosixPath(m.name).suffix.lower() for m in members.values() if not is_image(m.name)]
    passed_over = Counter(suffix for suffix in others if suffix not in LABEL_SUFFIXES)
    if not labelled:
        return Found(tuple(Labelled(m.name, m.start, m.length, "any") for m in images), passed_over)
    root = root_of(images)
    keys = key_of_image(file, path, members, root, classes, label_key)
    found = tuple(Labelled(m.name, m.start, m.length, keys(m)) for m in images)
    by_folder = any(
        isinstance(image.key, str) and image.name.lstrip("/").startswith(posixpath.join(root, image.key, ""))
        for image in found
    )
    return Found(found, passed_over, root if by_folder and label_key is None else None)


def list_inner(file: Any, path: str, inner: list[Member], list_one: Callable[[Any, str], Found]) -> Found:
    """The images of the archives in an archive."""
    images, passed_over = [], Counter[str]()
    for member in inner:
        found = list_one(Window(file, member.start, member.length), f"{path}: {member.name}")
        images += [
            replace(image, name=f"{member.name}: {image.name}", start=member.start + image.start)
            for image in found.images
        ]
        passed_over += found.passed_over
    return Found(tuple(images), passed_over)


def refuse_compressed(file: Any, path: str) -> None:
    """ConfigError, saying what it is, if the file is compressed."""
    file.seek(0)
    start = file.read(6)
    file.seek(0)
    for magic, what in COMPRESSED.items():
        if start.startswith(magic):
            raise ConfigError(f"{path}: is {what}, not a plain tar; unpack it first, for images are read out of order")


def members_of(file: Any, path: str) -> dict[str, Member]:
    """All files of an archive by name, links followed; hidden ones are passed over, unless a link leads there.

    ConfigError if it holds nothing, does not end with an end-of-archive block, if more follows, or if a link leads
    out of it.
    """
    files: dict[str, Member] = {}
    links: dict[str, str] = {}
    order: dict[str, None] = {}  # of all names, by their last members
    with tarfile.open(fileobj=file, mode="r:") as archive:
        for entry in archive:
            name = posixpath.normpath(entry.name)
            files.pop(name, None)
            links.pop(name, None)
            order.pop(name, None)
            order[name] = None
            if entry.issym():
                links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), entry.linkname))
            elif entry.islnk() and (target := files.get(posixpath.normpath(entry.linkname))):
                files[name] = replace(target, name=name)  # now: a later member of the target's name is another file
            elif entry.islnk():
                links[name] = posixpath.normpath(entry.linkname)
            elif entry.isreg() and not is_sparse(entry, archive.offset):
                files[name] = Member(name, entry.offset_data, entry.size)
            elif entry.isreg() and not hidden(name):
                raise ConfigError(f"{path}: {entry.name} is stored sparse; pack it again without --sparse")
        check_end(file, archive.offset, path)
        if not archive.getmembers():
            raise ConfigError(f"{path}: an archive of zeros that holds nothing: a copy that never began? copy it again")
    linked = followed(path, files, links)
    whole = [member for name in order for member in linked.get(name, [files[name]] if name in files else [])]
    return {member.name: member for member in whole if not hidden(member.name)}


def is_sparse(entry: tarfile.TarInfo, end: int) -> bool:
    """An extended header can say a size without a map of the holes: then more is claimed than is there."""
    return entry.sparse is not None or entry.offset_data + entry.size > end


def hidden(name: str) -> bool:
    """Whether a path is none of the user's images: `._x.jpg` and __MACOSX are macOS's, @eaDir a Synology's."""
    parts = name.split("/")
    return any((part.startswith(".") and part not in (".", "..")) or part in ("__MACOSX", "@eaDir") for part in parts)


def check_end(file: Any, offset: int, path: str) -> None:
    """ConfigError unless a block of zeros stands here, and nothing else follows it."""
    file.seek(offset)
    block = file.read(BLOCK)
    if len(block) < BLOCK or block.count(0) < BLOCK:
        raise ConfigError(
            f"{path}: no end-of-archive mark at byte {offset}: it was cut short at a member's border, or is damaged; "
            "copy it again"
        )
    zeros = 0
    while rest := file.read(2**20):
        zeros += len(rest)
        if rest.count(0) < len(rest):
            raise ConfigError(
                f"{path}: more follows the end of the archive at byte {offset}: several archives joined? "
                "Keep each as a file of its own"
            )
    if zeros > MOST_PADDING:
        raise ConfigError(
            f"{path}: {zeros:,} bytes of zeros follow byte {offset}: a download that took its room and never ended? "
            "copy it again"
        )


def followed(path: str, files: dict[str, Member], links: dict[str, str]) -> dict[str, list[Member]]:
    """By link the file that it stands for, under the link's name; of a linked folder, all that is below it."""
    ends = {name: resolved(name, links) for name in links}
    of_files = {name: replace(files[end], name=name) for name, end in ends.items() if end in files}
    found = {name: [member] for name, member in of_files.items()}
    for name in [name for name in ends if name not in of_files]:
        below = [m for m in (files | of_files).values() if m.name.startswith(f"{ends[name]}/")]
        if not below and hidden(name):
            continue
        if not below or f"{name}/".startswith(f"{ends[name]}/"):
            raise ConfigError(
                f"{path}: the link {name} leads to {links[name]}, which is not in the archive; "
                "pack it again with --dereference"
            )
        found[name] = [replace(m, name=name + m.name.removeprefix(ends[name])) for m in below]
    return found


def resolved(name: str, links: dict[str, str]) -> str:
    """Where a link leads in the end; itself if in a circle."""
    seen = {name}
    while (target := links.get(name)) is not None:
        if target in seen:
            return target
        seen.add(target)
        name = target
    return name


def folder_of(image: Member) -> str:
    return posixpath.dirname(image.name).lstrip("/")


def root_of(images: list[Member]) -> str:
    """The folder that holds the class folders of all images, empty if the archive itself does.

    As for trees on a disk, whatever folder they were packed from. If all lie in one folder, that is a class's.
    """
    folders = {folder_of(image) for image in images} or {""}
    return posixpath.commonpath(folders) if len(folders) > 1 else posixpath.dirname(folders.pop())


def class_folder(root: str, path: str) -> Callable[[Member], str]:
    """The class folder of an image, empty if there is none: the first folder below the root."""

    def of(image: Member) -> str:
        folder = folder_of(image)
        if folder and folder == root:
            raise ConfigError(f"{path}: {image.name} lies beside the class folders, not in one; put it into one")
        return posixpath.relpath(folder, root or ".").split("/")[0] if folder else ""

    return of


def key_of_image(
    file: Any, path: str, members: dict[str, Member], root: str, classes: frozenset[str], label_key: str | None
) -> Callable[[Member], str | int]:
    """How the images of this archive get their classes: all in the same way. `root`: see `root_of`."""
    ending = ".json" if label_key else ".cls"
    beside: dict[str, str | int] = {}
    for member in members.values():
        if member.name.endswith(ending):
            content = bytes_of(file, path, member)
            beside[member.stem] = json_label(path, member, content, label_key) if label_key else number(
                path, member, content)  # fmt: skip
    captions = {m.stem for m in members.values() if PurePosixPath(m.name).suffix in CAPTION_SUFFIXES}
    own_name = PurePosixPath(path.rsplit(": ", 1)[-1]).stem
    class_folder_of = class_folder(root, path)

    def of(image: Member) -> str | int:
        if label_key or beside:
            if image.stem not in beside:
                raise ConfigError(f"{path}: {image.name} has no {image.stem}{ending} beside it")
            return beside[image.stem]
        folder, name = class_folder_of(image), PurePosixPath(image.name)
        if own_name in classes and folder in ("", own_name):
            return own_name
        is_shard = image.stem in captions  # its name is no class: img2dataset numbers them, with captions beside
        if folder and not (folder == own_name and is_shard):
            return folder
        synsets = set(SYNSET.findall(name.stem))
        if len(synsets) == 1:
            return str(synsets.pop())
        if name.name.startswith(f"{own_name}_") and not (is_shard or own_name[-1].isdigit()):
            return own_name
        raise ConfigError(f"{path}: {image.name} has no label; {LABELS}")

    return of


def bytes_of(file: Any, path: str, member: Member) -> bytes:
    """What a small member holds."""
    if member.length > MOST_LABEL_BYTES:
        raise ConfigError(f"{path}: {member.name} has {member.length:,} bytes; expected a label")
    file.seek(member.start)
    return bytes(file.read(member.length))


def number(path: str, member: Member, content: bytes) -> int:
    """What a .cls member holds."""
    text = content.decode(errors="replace").strip()
    if not (text.isascii() and text.isdecimal()) or int(text) >= 2**16:
        raise ConfigError(f"{path}: {member.name} holds {text[:20]!r}, not a class number")
    return int(text)


def json_label(path: str, member: Member, content: bytes, key: str) -> str | int:
    """The field of a .json member that holds the class: a number from 0, or a name."""
    try:
        found = json.loads(content)
        label = found[key]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ConfigError(f"{path}: {member.name} has no field {key!r}; see --label-key") from None
    if isinstance(label, bool) or not isinstance(label, int | str) or label == "":
        raise ConfigError(f"{path}: {member.name}: {key} is {str(label)[:40]}; expected a class number or name")
    refuse_odd_name(f"{path}: {member.name}", str(label))
    return label
