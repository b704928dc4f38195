"""What is at a URI is whole, whatever happens as it is written: on a folder, and on real servers of buckets."""

import io
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cca_ray.storage import remote
from cca_ray.storage.remote import state, upload
from cca_ray.storage.term import HELD, Moment, Term
from cca_ray.storage.uris import local_path
from tests.storage.conftest import UriOf

CHUNK = 1000
EARLIER, LATER = b"earlier" * CHUNK, b"later" * CHUNK


@pytest.fixture
def path(uri_of: UriOf, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a copy in an empty place."""
    monkeypatch.setattr(remote, "CHUNK", CHUNK)
    return local_path(uri_of("file"))


class Source(type(Path())):  # type: ignore[misc]
    """A file that is read from memory; `happen` is called at the second reading."""

    content: bytes
    happen: Callable[[], None]

    def open(self, *args: object, **keywords: object) -> io.BytesIO:
        happen = self.happen

        class Opened(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if self.tell() == CHUNK:
                    happen()
                return super().read(size)

        return Opened(self.content)


def source(content: bytes, happen: Callable[[], None] = lambda: None) -> Path:
    made = Source("source")
    made.content, made.happen = content, happen
    return made


def there(path: Path, folder: Path) -> bytes | None:
    """The content at the path's URI, if there is any."""
    if state(path) is None:
        return None
    remote.download(path, folder / "target")
    return (folder / "target").read_bytes()


def break_down() -> None:
    raise OSError(5, os.strerror(5))


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Also where the tests run in the background of a shell, which has them ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_heard_when_the_file_is_whole(path: Path, tmp_path: Path, interruptible: None):
    heard = []

    def press() -> None:
        heard.append(there(path, tmp_path))
        os.kill(os.getpid(), signal.SIGINT)

    upload(path, source(EARLIER))
    with pytest.raises(KeyboardInterrupt):
        upload(path, source(LATER, press))
    assert heard == [EARLIER]
    assert there(path, tmp_path) == LATER


@pytest.mark.parametrize("earlier", [True, False])
def test_of_a_source_that_cannot_be_read_to_its_end_no_part_is_there(earlier: bool, path: Path, tmp_path: Path):
    if earlier:
        upload(path, source(EARLIER))
    with pytest.raises(OSError, match="Input/output error"):
        upload(path, source(LATER, break_down))
    assert there(path, tmp_path) in ([None, EARLIER] if earlier else [None])


def test_a_small_source_that_cannot_be_read_changes_nothing(path: Path, tmp_path: Path):
    upload(path, source(EARLIER))
    with pytest.raises(OSError, match="Input/output error"):
        upload(path, Path("/proc/self/mem"))
    assert there(path, tmp_path) == EARLIER


def test_what_is_replaced_within_the_second_as_it_is_brought_is_brought_again(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    one, two, times, left = b"one" * CHUNK, b"two" * CHUNK, list[int](), [0]

    def write(content: bytes) -> None:
        upload(path, source(content))
        found = state(path)
        assert found is not None
        times.append(found.mtime_ns // 10**9)

    def replaced(*arguments: int | bytes) -> int:
        if left[0]:
            left[0] -= 1
            write(two)
        return written(*arguments)

    written = os.pwrite
    monkeypatch.setattr(os, "pwrite", replaced)
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    for _ in range(5):
        left[0] = 1
        time.sleep(1 - time.time() % 1)  # both within one second, if the machine is not too slow
        write(one)
        remote.download(path, tmp_path / "target")
        assert (tmp_path / "target").read_bytes() == two
        if times[-1] == times[-2]:
            break
    assert times[-1] == times[-2]


@pytest.mark.parametrize("asked", [1, 2])
def test_if_nobody_can_say_who_holds_the_folder_what_is_there_is_whole(asked: int, path: Path, tmp_path: Path):
    """`asked`: which time the storage does not answer: before the first byte, after the last."""
    upload(path, source(EARLIER))
    left = [asked]

    def ask() -> None:
        left[0] -= 1
        if not left[0]:
            break_down()

    HELD[path.parent] = Term(-1.0, ask, Moment.now())
    try:
        with pytest.raises(OSError, match="Input/output error"):
            upload(path, source(LATER))
    finally:
        del HELD[path.parent]
    assert left == [0]
    assert there(path, tmp_path) in (EARLIER, LATER)
