"""Storage at a URI: every process works on local copies in its node's cache (`uris` says where).

Who writes a file pushes it, who reads one pulls it; what travels between nodes travels by its URI. A path that is
nobody's copy is what it is: then all this does nothing.
"""

import fcntl
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TextIO, TypeVar
from urllib.parse import quote

from cca_ray.contracts import Contract
from cca_ray.errors import ConfigError
from cca_ray.storage.remote import (
    AT_ONCE,
    Entry,
    delete,
    download,
    exact_state,
    folders_in,
    inside,
    state,
    tag_of,
    upload,
)
from cca_ray.storage.uris import COPIES, cache_folder, is_copy, path_below, to_uri

T = TypeVar("T")
RECORDS = "records"  # below the cache: of each copy, which version it is
PATIENCE_S = (1.0, 2.0, 4.0, 8.0)  # waits between tries
SIDE_FILES = ("-journal", "-wal")  # what SQLite mends a database with whose writer was killed


class Unreachable(OSError):
    """A URI that cannot be read or written, after all patience."""


def patiently(do: Callable[[], T]) -> T:
    """Try again for a quarter of a minute: a full disk is emptied, a server comes back. Then the OSError."""
    for wait in PATIENCE_S:
        try:
            return do()
        except Unreachable:  # was tried for as long
            raise
        except OSError as error:
            logging.getLogger(__name__).warning("%s; trying again in %g s", error, wait)
            time.sleep(wait)
    return do()


def trying(do: Callable[[], T]) -> T:
    """`patiently`, and nobody else need be patient once more."""
    try:
        return patiently(do)
    except OSError as error:
        raise Unreachable(*error.args, error.filename) if error.filename else error from None


@contextmanager
def record(path: Path) -> Iterator[TextIO]:
    """The file that says which version a copy is. It is locked: a node's processes come one after the other."""
    root = cache_folder()
    kept = root / RECORDS / path_below(root / COPIES, str(path.relative_to(root / COPIES)))
    kept = kept.with_name(f"{kept.name}.json")  # a folder and a file may have the same name
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with kept.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


class Recorded(Contract):
    """What is known of a copy. `version`: none of one that was never at the URI, empty of one that may be outdated.

    `tag`: tells a young version from others that look alike. `changed`: when a database's local file had last changed
    as it was pushed; in ns.
    """

    version: list[int] | None = None
    tag: str = ""
    changed: int | None = None


def known_by(entry: Entry | None, changed: int | None = None) -> Recorded:
    """How the copy of this file is known again."""
    if entry is None:
        return Recorded(changed=changed)
    return Recorded(version=entry.version, tag=entry.tag, changed=changed)


def recorded(file: TextIO) -> Recorded:
    file.seek(0)
    try:
        return Recorded.model_validate_json(file.read() or "{}")
    except ValueError:  # torn: as if it were not there
        return Recorded()


def keep(file: TextIO, known: Recorded) -> None:
    file.seek(0)
    file.truncate()
    file.write(known.model_dump_json(exclude_defaults=True))
    file.flush()


def push(path: Path, partial: Path | None = None) -> None:
    """Bring a file, or all of a folder, to its URI.

    `partial`: a file that is moved to `path` then, so that what is here is there too. Raises Unreachable.
    """
    if not is_copy(path):
        if partial:
            partial.replace(path)
        return
    if path.is_dir():
        for below in sorted(path.rglob("*")):
            if below.is_file():
                push(below)
        return
    with record(path) as file:
        trying(lambda: upload(path, partial or path))
        entry = trying(lambda: exact_state(path))
        if partial:
            partial.replace(path)
        keep(file, known_by(entry))


def pull(path: Path) -> bool:
    """Bring a file, or all of a folder, here, if it is not here in the version at the URI; whether it is here then.

    What was here and is no more at the URI goes here too. What was never there stays. Raises Unreachable.
    """
    if not is_copy(path):
        return path.exists()
    there: dict[Path, Entry] = {}

    def look() -> None:
        entry = state(path)
        found = inside(path, recursive=True) if entry and entry.is_folder else {PurePosixPath(): entry}
        there.clear()
        there.update({path / below: e for below, e in found.items() if e and not e.is_folder})

    trying(look)
    gone = {file for file in (path.rglob("*") if path.is_dir() else [path]) if not file.is_dir()} - set(there)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda pair: pull_file(*pair), there.items()))
    for file in gone:
        forget(file)
    return path.exists()


def is_current(path: Path, entry: Entry, file: TextIO) -> bool:
    """Whether the copy, of which `file` is the record, is the file at the URI, of which `entry` is."""
    known = recorded(file)
    if not path.exists() or known.version != entry.version:
        return False
    if known.tag:
        if known.tag != trying(lambda: tag_of(path)):
            return False
        if not entry.young:  # nobody need ask again
            keep(file, known.model_copy(update={"tag": ""}))
    return True


def pull_file(path: Path, entry: Entry) -> None:
    """`entry`: of the file at the URI, before the record was locked."""
    with record(path) as file:
        if is_current(path, entry, file):
            return
        # Who held the record may have pushed what is here, such as a database that it has open: then it stays.
        if path.exists() and (now := trying(lambda: state(path))) and is_current(path, now, file):
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")

        def bring() -> None:
            brought = download(path, partial)
            known = known_by(brought)
            if brought.young and not brought.tag:  # nothing would tell it from the next: it is brought again
                known = known.model_copy(update={"version": []})
            keep(file, known)

        try:
            trying(bring)
            for suffix in SIDE_FILES:  # of the database that was here
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            partial.replace(path)
        except BaseException:
            keep(file, Recorded())
            raise
        finally:
            partial.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Of a file that is no more at the URI: the copy, if it ever was there."""
    with record(path) as file:
        if recorded(file) != Recorded() and trying(lambda: state(path)) is None:  # else it was pushed meanwhile
            path.unlink(missing_ok=True)
            keep(file, Recorded())


def exists(path: Path) -> bool:
    """Whether there is a file or a folder, at the URI if it has one."""
    return state(path) is not None if is_copy(path) else path.exists()


def written_at(path: Path) -> float:
    """When a file was last written, by the clock of the storage; 0 if it is not there."""
    if is_copy(path):
        entry = state(path)
        return entry.mtime_ns / 1e9 if entry else 0.0
    return path.stat().st_mtime if path.exists() else 0.0


def remove(path: Path) -> None:
    """A file, also at its URI; it need not be there."""
    path.unlink(missing_ok=True)
    if is_copy(path):
        with record(path) as file:
            delete(path)
            keep(file, Recorded())


def drop(path: Path) -> None:
    """Make room: a copy is at its URI, and comes back when it is wanted."""
    if is_copy(path):
        path.unlink(missing_ok=True)


def listed(folder: Path, pattern: str) -> dict[Path, float]:
    """The files in a folder whose names match, and when each was last written; at the URI, if it has one."""
    if not is_copy(folder):
        return {path: path.stat().st_mtime for path in folder.glob(pattern)}
    files = {name: entry for name, entry in inside(folder).items() if not entry.is_folder}
    return {folder / name: entry.mtime_ns / 1e9 for name, entry in files.items() if name.match(pattern)}


def sizes_below(folder: Path) -> dict[Path, int]:
    """All files in a folder and its folders, and their bytes; at the URI, if it has one."""
    if not is_copy(folder):
        return {path: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    found = inside(folder, recursive=True).items()
    return {folder / name: entry.size for name, entry in found if not entry.is_folder}


def folders(folder: Path) -> list[Path]:
    """Those in a folder, by name; at the URI, if it has one."""
    if not is_copy(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir())
    return sorted(folder / name for name in folders_in(folder))


def reach(folder: Path, write: bool = False) -> None:
    """ConfigError, naming it, if it cannot be read, or written: no such host, bucket or right. It need not be there."""
    if not is_copy(folder):
        above = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if write and not (above.is_dir() and os.access(above, os.W_OK)):
            which = "it" if above == folder else str(above)
            raise ConfigError(f"{folder}: cannot be written: {which} is {'read-only' if above.is_dir() else 'a file'}")
        return
    try:
        state(folder)
        if write:
            probe = folder / f"probe-{uuid.uuid4().hex[:8]}"
            upload(probe, Path(os.devnull))
            remove(probe)
    except OSError as error:
        raise ConfigError(f"{to_uri(folder)}: {error.strerror}") from None


def snapshot(path: Path, folder: Path) -> Path:
    """A consistent copy, in `folder`, of an SQLite file that may be written to at this moment."""
    copy = folder / path.name
    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=60)) as source,
            closing(sqlite3.connect(copy)) as target,
        ):
            source.backup(target)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname != "SQLITE_READONLY_ROLLBACK":
            raise
        # Its writer was killed in the middle of a write. SQLite mends that at the next opening: of the copy, here.
        copy.unlink(missing_ok=True)
        for suffix in ("", *SIDE_FILES):
            if (beside := path.with_name(path.name + suffix)).exists():
                shutil.copyfile(beside, folder / beside.name)
    return copy


def push_database(path: Path) -> None:
    """Bring a snapshot of an SQLite file to its URI, if the file has changed since the last. Raises Unreachable."""
    if not is_copy(path) or not path.exists():
        return
    with record(path) as file, TemporaryDirectory(prefix="cca_ray-") as scratch:
        changed = path.stat().st_mtime_ns
        if recorded(file).changed == changed:
            return
        taken = snapshot(path, Path(scratch))
        trying(lambda: upload(path, taken))
        keep(file, known_by(trying(lambda: exact_state(path)), changed))
