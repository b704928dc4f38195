"""The same images as class folders, a tar and Parquet shards: the same labels in the same order, whatever the names."""

import io
import os
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import example, given
from hypothesis import strategies as st

from cca_ray.data.image_files import read_entry
from cca_ray.data.listing import Listing, list_images, look
from cca_ray.data.tar_shards import hidden
from cca_ray.errors import ConfigError

LETTERS = st.sampled_from(
    [*"abAB019_-. ,:;#%?*'\"\\{}~@é", "e\u0301", "λ", "n01440764", "shard", ".tar", ".png", ".cls"]
)
NAMES = (
    st.lists(LETTERS | st.text(st.characters(exclude_categories=["Cs"]), max_size=2), min_size=1, max_size=5)
    .map("".join)
    .filter(lambda name: name not in ("", ".", "..") and not hidden(name) and not set(name) & {"/", "\0"})
)
SUFFIXES = st.sampled_from([".png", ".jpg", ".JPEG", ".webp"])


@dataclass(frozen=True)
class Image:
    """A file below its class folder. `link`: which earlier image it is a link to, by its number, and how."""

    path: str
    content: bytes
    link: tuple[int, str] | None = None


@st.composite
def collections(draw: st.DrawFn) -> list[Image]:
    """Images of at least two classes, sorted as torchvision sorts them: class, folder, file."""
    names = draw(st.lists(NAMES, min_size=2, max_size=4, unique_by=lambda name: look(name).casefold()))
    paths: set[str] = set()
    for name in names:
        for _ in range(draw(st.integers(1, 3))):
            folders = draw(st.lists(st.sampled_from(["x", "y z", "deep", "0"]), max_size=2))
            paths.add("/".join([name, *folders, draw(NAMES) + draw(SUFFIXES)]))
    found: list[Image] = []
    order = sorted(paths, key=lambda path: (PurePosixPath(path).parts[0], PurePosixPath(path).parent, path))
    for number, path in enumerate(order):
        link = None
        if number and draw(st.integers(0, 4)) == 0:
            target = draw(st.integers(0, number - 1))
            # A hard link to a soft one is a soft link of the same words, which lead elsewhere from another folder.
            soft = found[target].link is not None and found[target].link[1] == "soft"
            link = target, "soft" if soft else draw(st.sampled_from(["hard", "soft"]))
        found.append(Image(path, found[link[0]].content if link else f"image {number}".encode() * (number + 1), link))
    return found


def as_folder(images: list[Image], root: Path) -> Path:
    for image in images:
        path = root / image.path
        path.parent.mkdir(parents=True, exist_ok=True)
        if image.link is None:
            path.write_bytes(image.content)
        elif image.link[1] == "hard":
            path.hardlink_to(root / images[image.link[0]].path)
        else:
            path.symlink_to(os.path.relpath(root / images[image.link[0]].path, path.parent))
    return root


def as_tar(images: list[Image], path: Path, kind: int) -> Path:
    with tarfile.open(path, "w", format=kind) as archive:
        for image in images:
            member = tarfile.TarInfo(image.path)
            if image.link is None:
                member.size = len(image.content)
            else:
                target = images[image.link[0]].path
                member.type = tarfile.LNKTYPE if image.link[1] == "hard" else tarfile.SYMTYPE
                soft = os.path.relpath(target, PurePosixPath(image.path).parent)
                member.linkname = target if image.link[1] == "hard" else soft
            archive.addfile(member, io.BytesIO(image.content))
    return path


def as_parquet(images: list[Image], folder: Path, labels: list[int] | list[str], cut: int) -> Path:
    """Two shards, cut at this row, of small row groups."""
    folder.mkdir()
    for number, part in enumerate((slice(None, cut), slice(cut, None))):
        table = pa.table({"image": [image.content for image in images[part]], "label": labels[part]})
        if len(table):
            pq.write_table(table, folder / f"{number}.parquet", row_group_size=2)
    return folder


def read(listing: Listing) -> list[bytes]:
    return [read_entry(listing.where, e.path, e.start, e.length) for e in listing.entries]


@contextmanager
def scratch() -> Iterator[Path]:
    with TemporaryDirectory() as folder:
        yield Path(folder)


SMALL = [Image("a/x.png", b"1"), Image("a/b/x.png", b"2"), Image("b/b/y.png", b"1", (0, "soft"))]


@given(collections(), st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]), st.integers(0, 6))
@example(SMALL, tarfile.PAX_FORMAT, 1)
def test_the_same_images_have_the_same_labels_in_the_same_order_however_they_are_kept(
    images: list[Image], kind: int, cut: int
):
    classes = [PurePosixPath(image.path).parts[0] for image in images]
    names = sorted(set(classes))
    labels = [names.index(name) for name in classes]
    with scratch() as root:
        kept = [
            as_folder(images, root / "folder"),
            as_tar(images, root / "shard.tar", kind),
            as_parquet(images, root / "names", classes, cut),
            as_parquet(images, root / "numbers", labels, cut),
        ]
        for where in kept:
            listing = list_images(str(where))
            assert listing.labels.tolist() == labels, where
            assert read(listing) == [image.content for image in images], where
            if where.name != "numbers":
                assert list(listing.class_names) == names, where
            given_names = names[::-1]
            if where.name != "numbers":
                turned = list_images(str(where), classes=given_names)
                assert [given_names[label] for label in turned.labels] == classes, where


@given(st.lists(st.integers(0, 2000), min_size=2, max_size=5, unique=True), st.booleans())
def test_classes_that_are_numbers_sort_as_text_or_as_numbers(numbers: list[int], numeric: bool):
    names = sorted(map(str, numbers), key=int if numeric else str)
    images = [Image(f"{name}/x.png", name.encode()) for name in sorted(names)]
    with scratch() as root:
        for where in (as_folder(images, root / "folder"), as_tar(images, root / "shard.tar", tarfile.PAX_FORMAT)):
            listing = list_images(str(where), numeric_classes=numeric)
            assert list(listing.class_names) == names
            assert [names[label].encode() for label in listing.labels] == read(listing)
            assert bool(listing.surprise) == (not numeric and sorted(names, key=int) != names)


@given(st.data())
def test_a_tar_that_is_cut_short_or_damaged_is_refused_or_whole(data: st.DataObject):
    images = [Image("a/x.png", b"1" * 600), Image("b/x.png", b"2" * 20), Image("b/y.png", b"", (0, "hard"))]
    with scratch() as root:
        path = as_tar(images, root / "shard.tar", tarfile.PAX_FORMAT)
        content = path.read_bytes()
        if data.draw(st.booleans()):
            content = content[: data.draw(st.integers(0, len(content)))]
        else:
            at = data.draw(st.integers(0, 512 * 6))
            content = content[:at] + data.draw(st.binary(min_size=1, max_size=3)) + content[at + 1 :]
        path.write_bytes(content)
        try:
            listing = list_images(str(path))
        except ConfigError as error:
            refused = str(path) in str(error)
            assert refused
        else:
            assert len(read(listing)) == 3
