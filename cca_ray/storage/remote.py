"""What is at a URI: a file system of pyarrow's, behind plain values. It is imported when the first URI is met.

Paths are those of local copies; `uris` says of which URIs. Errors are OSErrors that name the URI.
"""

import errno
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from cca_ray.errors import first_line
from cca_ray.storage.proxies import proxy_to
from cca_ray.storage.term import confirm
from cca_ray.storage.uris import copy_of, path_below, to_uri

if TYPE_CHECKING:
    from pyarrow import fs

CHUNK = 2**24  # bytes of a request
AT_ONCE = 8  # requests
YOUNG_S = 3600.0  # no server answers a node whose clock is so far off; S3 allows a quarter of an hour

REASONS = {  # what the errors of S3 and of Google's storage mean, by what is in them
    "NO_SUCH_BUCKET": "no such bucket; create it first, or correct the name",
    "' not found": "no such bucket; create it first, or correct the name",
    "ACCESS_DENIED": "access denied; the node needs a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, for it",
    "INVALID_ACCESS_KEY": "no such access key; see AWS_ACCESS_KEY_ID",
    "SIGNATURE_DOES_NOT_MATCH": "the access key's secret is wrong; see AWS_SECRET_ACCESS_KEY",
    "NO_CREDENTIALS": "no credentials; the node needs a role, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "resolve host": "no such host; see endpoint_override in the URI, or AWS_ENDPOINT_URL",
    "NETWORK_CONNECTION": "does not answer; see endpoint_override in the URI, or AWS_ENDPOINT_URL",
    "CURL error": "does not answer; see endpoint_override in the URI, and http_proxy, https_proxy and no_proxy",
}


@dataclass(frozen=True)
class Entry:
    """A file or a folder at a URI. `tag`: `tag_of` one that is young, where that was asked."""

    is_folder: bool
    size: int
    mtime_ns: int
    tag: str = ""

    @staticmethod
    def of(info: "fs.FileInfo") -> "Entry":
        from pyarrow import fs

        return Entry(info.type == fs.FileType.Directory, info.size or 0, info.mtime_ns or 0)

    @property
    def version(self) -> list[int]:
        """Of a file: another content has another one, unless both are young."""
        return [self.size, self.mtime_ns]

    @property
    def young(self) -> bool:
        """Whether it may be followed by a file of the same version: S3's time is in whole seconds."""
        return self.mtime_ns % 10**9 == 0 and time.time() - self.mtime_ns / 1e9 < YOUNG_S


@lru_cache(maxsize=16)
def filesystem(root: str) -> tuple["fs.FileSystem", str]:
    """Of a bucket's URI, and the bucket's path in it."""
    from pyarrow import fs

    query = dict(parse_qsl(urlsplit(root).query))
    proxy_to(query.get("scheme", "https"), urlsplit(f"//{query.get('endpoint_override', '')}").hostname or "")
    files, path = fs.FileSystem.from_uri(root)
    return files, path.rstrip("/")


def remote(path: Path) -> tuple["fs.FileSystem", str]:
    """The file system that a copy is of, and its path there."""
    found = copy_of(path)
    assert found is not None
    scheme, authority, below, query = found
    with telling(path):
        files, root = filesystem(f"{scheme}://{authority}/{f'?{query}' if query else ''}")
    return files, f"{root}/{below}".rstrip("/") or "/"


def reason(error: BaseException) -> str:
    """What is wrong and what to do, in a line."""
    text = first_line(error)
    return next((said for sign, said in REASONS.items() if sign in text), text[:300])


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """What the file system raises as an OSError that names the URI."""
    import pyarrow as pa

    try:
        yield
    except (OSError, pa.ArrowException) as error:
        if isinstance(error, OSError) and (error.errno in (errno.ENOSPC, errno.EDQUOT) or error.filename):
            raise  # this node's own disk; or told already
        raise OSError(errno.EIO, reason(error), to_uri(path)) from None


def state(path: Path) -> Entry | None:
    """Of the file or folder at the URI; None if there is none."""
    from pyarrow import fs

    with telling(path):
        files, name = remote(path)
        info = files.get_file_info(name)
    return None if info.type == fs.FileType.NotFound else Entry.of(info)


def tag_of(path: Path) -> str:
    """What the storage calls the content of the file at the URI; empty if it has no names, or no such file."""
    with telling(path):
        files, name = remote(path)
        try:
            with files.open_input_file(name) as file:
                known = {key.lower(): value for key, value in (file.metadata() or {}).items()}
        except FileNotFoundError:
            return ""
    return known.get("etag", b"").decode()


def exact_state(path: Path) -> Entry | None:
    """`state`, with the tag of a file that is young."""
    entry = state(path)
    return replace(entry, tag=tag_of(path)) if entry and not entry.is_folder and entry.young else entry


def inside(folder: Path, recursive: bool = False) -> dict[PurePosixPath, Entry]:
    """What lies in a folder, by its path there; nothing if there is none. ConfigError for a name that leads out."""
    from pyarrow import fs

    with telling(folder):
        files, name = remote(folder)
        found = files.get_file_info(fs.FileSelector(name, allow_not_found=True, recursive=recursive))
    below = name.rstrip("/")
    return {path_below(folder, info.path.removeprefix(below).removeprefix("/")): Entry.of(info) for info in found}


def folders_in(folder: Path) -> set[str]:
    """Names of those in a folder."""
    with telling(folder):
        # In Google's buckets pyarrow sees only folders that were made as such, not those that are parts of names.
        found = inside(folder, recursive=remote(folder)[0].type_name == "gcs").items()
    return {name.parts[0] for name, entry in found if len(name.parts) > 1 or entry.is_folder}


def upload(path: Path, source: Path) -> None:
    """Put `source` at the path's URI: whole, or not at all. Ctrl-C is heard when it is there.

    Raises OSError. If it is a large source that could not be read to its end, nothing is at the URI then.
    """
    with ThreadPoolExecutor(1) as pool:  # signals break what the main thread does, and no other
        pool.submit(put, path, source).result()


def put(path: Path, source: Path) -> None:
    """See `upload`. An exception that a signal raises would leave a part of the file at the URI."""
    with telling(path):
        files, name = remote(path)
        object_store = files.type_name not in ("local", "hdfs")  # an object appears when it is complete
        if not object_store:
            files.create_dir(str(PurePosixPath(name).parent))
        target = name if object_store else f"{name}.partial-{os.getpid()}"
        confirm(path)  # first, as some stores empty the object now
        with source.open("rb") as file:
            part = file.read(CHUNK)  # of most files all: what cannot be read leaves the URI as it was
            with files.open_output_stream(target) as stream:
                try:
                    while part:
                        stream.write(part)
                        part = file.read(CHUNK)
                except BaseException:
                    stream.close()  # fails if the storage did; else a part is there, for pyarrow can only complete it
                    files.delete_file(target)
                    raise
                confirm(path)  # last, as a large file takes minutes; if nobody can say, what appears is whole
        if not object_store:
            files.move(target, name)


def download(path: Path, target: Path) -> Entry:
    """Bring what is at the path's URI to `target`; which version it was."""
    while True:
        before = exact_state(path)
        with telling(path):
            files, name = remote(path)
            with files.open_input_file(name) as source, target.open("wb") as file:
                size = before.size if before else 0

                def part(start: int, source: Any = source, file: Any = file) -> None:
                    content = source.read_at(CHUNK, start)
                    if os.pwrite(file.fileno(), content, start) < len(content):
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))

                with ThreadPoolExecutor(AT_ONCE) as pool:
                    list(pool.map(part, range(0, size, CHUNK)))
        if before and before == exact_state(path):  # else it was replaced in the meantime, and this may be of both
            return before


def delete(path: Path) -> None:
    """The file at the URI; it need not be there."""
    with telling(path):
        files, name = remote(path)
        confirm(path)
        with suppress(FileNotFoundError):
            files.delete_file(name)
