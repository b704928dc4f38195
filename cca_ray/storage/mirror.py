"""Storage at a URI: every process works on local copies in its node's cache (`uris` says where).

Who writes a file pushes it, who reads one pulls it; what travels between nodes travels by its URI. A path that is
nobody's copy is what it is: then all this does nothing.
"""

import errno
import fcntl
import json
import logging
import os
import shutil
import sqlite3
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from functools import lru_cache
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any, TextIO
from urllib.parse import quote

import pyarrow as pa
from pyarrow import fs

from cca_ray.errors import ConfigError
from cca_ray.storage.uris import COPIES, cache_folder, copy_of, is_copy, named

RECORDS = "records"  # below the cache: of each copy, which version it is
PATIENCE_S = (1.0, 2.0, 4.0, 8.0)  # waits between tries
CHUNK = 2**24  # bytes of a request
AT_ONCE = 8  # requests
SIDE_FILES = ("-journal", "-wal")  # what SQLite mends a database with whose writer was killed

REASONS = {  # what S3's errors mean, by what is in them
    "NO_SUCH_BUCKET": "no such bucket; make it first, or mend the name",
    "' not found": "no such bucket; make it first, or mend the name",
    "ACCESS_DENIED": "access denied; the node needs a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for it",
    "INVALID_ACCESS_KEY": "no such access key; see AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the access key's secret is wrong; see AWS_SECRET_ACCESS_KEY",
    "NO_CREDENTIALS": "no credentials; the node needs a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "resolve host": "no such host; see endpoint_override in the URI, or AWS_ENDPOINT_URL",
    "NETWORK_CONNECTION": "does not answer; see endpoint_override in the URI, or AWS_ENDPOINT_URL",
}


class Unreachable(OSError):
    """A URI that cannot be read or written, after all patience."""


def patiently(do: Callable[[], object]) -> None:
    """Try again for a quarter of a minute: a full disk is emptied, a server comes back. Then the OSError."""
    for wait in PATIENCE_S:
        try:
            do()
            return
        except Unreachable:  # was tried for as long
            raise
        except OSError as error:
            logging.getLogger(__name__).warning("%s; trying again in %g s", error, wait)
            time.sleep(wait)
    do()


@lru_cache(maxsize=16)
def filesystem(root: str) -> tuple[fs.FileSystem, str]:
    """Of a bucket's URI, and the bucket's path in it."""
    files, path = fs.FileSystem.from_uri(root)
    return files, path.rstrip("/")


def remote(path: Path) -> tuple[fs.FileSystem, str]:
    """The file system that a copy is of, and its path there."""
    found = copy_of(path)
    assert found is not None
    scheme, authority, below, query = found
    with telling(path):
        files, root = filesystem(f"{scheme}://{authority}/{f'?{query}' if query else ''}")
    return files, f"{root}/{below}".rstrip("/") or "/"


def reason(error: BaseException) -> str:
    """What is wrong and what to do, in a line."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    return next((said for sign, said in REASONS.items() if sign in text), text[:300])


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """What the file system raises as an OSError that names the URI."""
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or error.filename):
            raise  # this node's own disk; or told already
        raise OSError(errno.EIO, reason(error), named(path)) from None


def trying(do: Callable[[], object]) -> None:
    """`patiently`, and nobody else need be patient once more."""
    try:
        patiently(do)
    except OSError as error:
        raise Unreachable(*error.args, error.filename) if error.filename else error from None


def state(path: Path) -> fs.FileInfo:
    """Of the file at the URI."""
    with telling(path):
        files, name = remote(path)
        return files.get_file_info(name)


def version(info: fs.FileInfo) -> list[int]:
    return [info.size, info.mtime_ns]


@contextmanager
def record(path: Path) -> Iterator[TextIO]:
    """The file that says which version a copy is. It is locked: a node's processes come one after the other."""
    kept = cache_folder() / RECORDS / path.relative_to(cache_folder() / COPIES)
    kept = kept.with_name(f"{kept.name}.json")  # a folder and a file may have the same name
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with kept.open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file


def recorded(file: TextIO) -> dict[str, Any]:
    """`version` of the copy, and `changed`: when the local file of a database was pushed last changed; or nothing."""
    file.seek(0)
    try:
        return dict(json.loads(file.read() or "{}"))
    except ValueError:  # torn: as if it were not there
        return {}


def keep(file: TextIO, content: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    file.write(json.dumps(content))
    file.flush()


def upload(path: Path, source: Path) -> None:
    """Put `source` at the path's URI: whole, or not at all."""
    with telling(path):
        files, name = remote(path)
        object_store = files.type_name not in ("local", "hdfs")  # an object appears when it is complete
        if not object_store:
            files.create_dir(str(PurePosixPath(name).parent))
        target = name if object_store else f"{name}.partial-{os.getpid()}"
        with source.open("rb") as file, files.open_output_stream(target) as stream:
            shutil.copyfileobj(file, stream, CHUNK)
        if not object_store:
            files.move(target, name)


def download(path: Path, target: Path) -> fs.FileInfo:
    """Bring what is at the path's URI to `target`; which version it was."""
    while True:
        info = state(path)
        with telling(path):
            files, name = remote(path)
            with files.open_input_file(name) as source, target.open("wb") as file:

                def part(start: int, source: Any = source, file: Any = file) -> None:
                    content = source.read_at(CHUNK, start)
                    if os.pwrite(file.fileno(), content, start) < len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

                with ThreadPoolExecutor(AT_ONCE) as pool:
                    list(pool.map(part, range(0, info.size, CHUNK)))
        if version(state(path)) == version(info):  # else it was replaced in the meantime, and this may be of both
            return info


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
        info = state(path)
        if partial:
            partial.replace(path)
        keep(file, {"version": version(info)})


def pull(path: Path) -> bool:
    """Bring a file, or all of a folder, here, if it is not here in the version at the URI; whether it is here then.

    What was here and is no more at the URI goes here too. What was never there stays. Raises Unreachable.
    """
    if not is_copy(path):
        return path.exists()
    found: list[fs.FileInfo] = []

    def look() -> None:
        with telling(path):
            files, name = remote(path)
            info = files.get_file_info(name)
            whole = info.type == fs.FileType.Directory
            found[:] = files.get_file_info(fs.FileSelector(name, recursive=True)) if whole else [info]

    trying(look)
    top = PurePosixPath(remote(path)[1])
    there = {path / PurePosixPath(i.path).relative_to(top): i for i in found if i.type == fs.FileType.File}
    gone = {file for file in (path.rglob("*") if path.is_dir() else [path]) if not file.is_dir()} - set(there)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda pair: pull_file(*pair), there.items()))
    for file in gone:
        forget(file)
    return path.exists()


def pull_file(path: Path, info: fs.FileInfo) -> None:
    """`info`: of the file at the URI."""
    with record(path) as file:
        if path.exists() and recorded(file).get("version") == version(info):
            return
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
        try:
            trying(lambda: keep(file, {"version": version(download(path, partial))}))
            for suffix in SIDE_FILES:  # of the database that was here
                path.with_name(path.name + suffix).unlink(missing_ok=True)
            partial.replace(path)
        except BaseException:
            keep(file, {})
            raise
        finally:
            partial.unlink(missing_ok=True)


def forget(path: Path) -> None:
    """Of a file that is no more at the URI: the copy, if it ever was there."""
    with record(path) as file:
        if recorded(file):
            path.unlink(missing_ok=True)
            keep(file, {})


def exists(path: Path) -> bool:
    """Whether there is a file or a folder, at the URI if it has one."""
    return state(path).type != fs.FileType.NotFound if is_copy(path) else path.exists()


def written_at(path: Path) -> float:
    """When a file was last written, by the clock of the storage; 0 if it is not there."""
    if is_copy(path):
        return (state(path).mtime_ns or 0) / 1e9
    return path.stat().st_mtime if path.exists() else 0.0


def remove(path: Path) -> None:
    """A file, also at its URI; it need not be there."""
    path.unlink(missing_ok=True)
    if is_copy(path):
        with record(path) as file, telling(path):
            files, name = remote(path)
            with suppress(FileNotFoundError):
                files.delete_file(name)
            keep(file, {})


def drop(path: Path) -> None:
    """Make room: a copy is at its URI, and comes back when it is wanted."""
    if is_copy(path):
        path.unlink(missing_ok=True)


def listed(folder: Path, pattern: str) -> dict[Path, float]:
    """The files in a folder whose names match, and when each was last written; at the URI, if it has one."""
    if not is_copy(folder):
        return {path: path.stat().st_mtime for path in folder.glob(pattern)}
    with telling(folder):
        files, name = remote(folder)
        found = files.get_file_info(fs.FileSelector(name, allow_not_found=True))
    names = {info.base_name: info.mtime_ns / 1e9 for info in found if info.type == fs.FileType.File}
    return {folder / name: at for name, at in names.items() if PurePosixPath(name).match(pattern)}


def folders(folder: Path) -> list[Path]:
    """Those in a folder, by name; at the URI, if it has one."""
    if not is_copy(folder):
        return sorted(path for path in folder.iterdir() if path.is_dir())
    with telling(folder):
        files, name = remote(folder)
        # In Google's buckets pyarrow sees only folders that were made as such, not those that are parts of names.
        found = files.get_file_info(fs.FileSelector(name, allow_not_found=True, recursive=files.type_name == "gcs"))
    inside = [(PurePosixPath(info.path).relative_to(name).parts, info.type) for info in found]
    return sorted({folder / parts[0] for parts, type_ in inside if len(parts) > 1 or type_ == fs.FileType.Directory})


def reach(folder: Path, write: bool = False) -> None:
    """ConfigError, naming the URI, if it cannot be read, or written: no such host, bucket or right."""
    if not is_copy(folder):
        return
    try:
        state(folder)
        if write:
            probe = folder / f"probe-{uuid.uuid4().hex[:8]}"
            upload(probe, Path(os.devnull))
            remove(probe)
    except OSError as error:
        raise ConfigError(f"{named(folder)}: {error.strerror}") from None


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
        if recorded(file).get("changed") == changed:
            return
        taken = snapshot(path, Path(scratch))
        trying(lambda: upload(path, taken))
        keep(file, {"version": version(state(path)), "changed": changed})
