"""Local copies of what is at a URI: on a folder, and on real servers that speak S3 and Google's protocol."""

import json
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from threading import Event
from typing import TextIO

import numpy as np
import pytest

from cca_ray.errors import ConfigError
from cca_ray.storage import mirror, remote
from cca_ray.storage.files import atomically
from cca_ray.storage.lease import LEASE, leased
from cca_ray.storage.mirror import (
    Unreachable,
    exists,
    folders,
    listed,
    pull,
    push,
    push_database,
    reach,
    record,
    remove,
    written_at,
)
from cca_ray.storage.uris import is_copy, local_path, to_uri
from tests.storage.conftest import UriOf


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, own_node: None) -> None:
    monkeypatch.setattr(mirror, "PATIENCE_S", ())


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Go on as the node of this name, which has a cache of its own; "" is the first."""
    return lambda node: monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / f"cache{node}"))


@pytest.mark.parametrize(
    "uri",
    [
        "s3://bucket/runs/a%20b/study.db",
        "s3://bucket/runs?scheme=http&endpoint_override=localhost%3A9000&region=x",
        "gs://anonymous@bucket/x",
        "file:///data/runs",
        "hdfs://host:8020/x",
    ],
)
def test_a_uri_has_one_local_path_which_names_it(uri: str):
    assert to_uri(local_path(uri)) == uri
    assert is_copy(local_path(uri))
    assert to_uri(local_path(uri) / "y") == uri.replace("?", "/y?") if "?" in uri else f"{uri}/y"


def test_a_local_path_stays_what_it_is(tmp_path: Path):
    path = tmp_path / "file"
    assert local_path(path) == path
    assert to_uri(path) == str(path)
    assert not pull(path)
    path.write_text("x")
    push(path)
    assert pull(path)
    assert written_at(path) == path.stat().st_mtime
    remove(path)
    assert not exists(path)
    assert list(tmp_path.iterdir()) == []


def test_credentials_in_a_uri_are_refused_and_not_repeated():
    for uri in ("s3://key:hidden@bucket/runs", "abfs://files@account/runs?client_id=x&client_secret=hidden",
                "abfs://files@account/runs?sv=2024&sig=hidden", "s3://b/x?X-Amz-Signature=hidden"):  # fmt: skip
        with pytest.raises(ConfigError, match="credentials") as error:
            local_path(uri)
        assert "hidden" not in str(error.value)
    with pytest.raises(ConfigError, match=r"with '\.\.'"):
        local_path("s3://bucket/../../etc")


def test_what_one_node_pushed_another_pulls(uri_of: UriOf, elsewhere: Callable[[str], None]):
    folder, content = local_path(uri_of("runs/tiny")), os.urandom(3 * 2**20)
    atomically(folder / "a.bin", lambda partial: partial.write_bytes(content))
    (folder / "sub").mkdir()
    (folder / "sub" / "empty").touch()
    push(folder / "sub")
    assert [path.name for path in folder.iterdir() if "partial" in path.name] == []

    elsewhere("2")
    folder = local_path(uri_of("runs/tiny"))
    assert not folder.exists()
    assert exists(folder)
    assert folders(folder.parent) == [folder]
    assert pull(folder / "a.bin")
    assert (folder / "a.bin").read_bytes() == content
    assert pull(folder)
    assert (folder / "sub" / "empty").read_bytes() == b""
    assert not pull(folder / "none")
    assert list(listed(folder, "a.*")) == [folder / "a.bin"]
    assert listed(folder, "a.*")[folder / "a.bin"] == written_at(folder / "a.bin") > 0


def test_a_file_larger_than_a_request_arrives_whole(
    uri_of: UriOf, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(remote, "CHUNK", 1000)
    content = np.arange(5001, dtype=np.uint16).tobytes()
    atomically(local_path(uri_of("large")), lambda partial: partial.write_bytes(content))
    elsewhere("2")
    assert pull(local_path(uri_of("large")))
    assert local_path(uri_of("large")).read_bytes() == content


def test_only_another_version_is_brought(uri_of: UriOf, elsewhere: Callable[[str], None]):
    path = local_path(uri_of("file"))
    atomically(path, lambda partial: partial.write_text("one"))
    path.write_text("changed here alone")
    assert pull(path)
    assert path.read_text() == "changed here alone"
    elsewhere("2")
    atomically(local_path(uri_of("file")), lambda partial: partial.write_text("three"))
    elsewhere("")
    assert pull(path)
    assert path.read_text() == "three"


def test_a_file_that_follows_within_the_second_is_brought_and_an_old_one_is_not(
    uri_of: UriOf, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    path, times = local_path(uri_of("file")), list[float]()

    def write(content: str) -> None:
        elsewhere("2")
        atomically(local_path(uri_of("file")), lambda partial: partial.write_text(content))
        elsewhere("")
        assert pull(path)
        assert path.read_text() == content
        times.append(written_at(path))

    for _ in range(5):
        time.sleep(1 - time.time() % 1)  # both within one second, if the machine is not too slow
        for content in ("one", "two"):
            write(content)
        if int(times[-1]) == int(times[-2]):
            break
    assert int(times[-1]) == int(times[-2])

    monkeypatch.setattr(mirror, "download", None)
    assert pull(path)  # it is known again
    monkeypatch.setattr(remote, "YOUNG_S", 0.0)
    assert pull(path)
    monkeypatch.setattr(mirror, "tag_of", None)
    assert pull(path)  # now without a question
    assert path.read_text() == "two"


@pytest.mark.parametrize("uri_of", ["server"], indirect=True)
def test_a_young_file_without_a_tag_is_brought_again_and_again(
    uri_of: UriOf, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    for module in (mirror, remote):
        monkeypatch.setattr(module, "tag_of", lambda path: "")
    elsewhere("2")
    atomically(local_path(uri_of("file")), lambda partial: partial.write_text("there"))
    elsewhere("")
    path = local_path(uri_of("file"))
    path.parent.mkdir(parents=True)
    for _ in range(2):
        path.write_text("here")
        assert pull(path)
        assert path.read_text() == "there"
    monkeypatch.setattr(remote, "YOUNG_S", 0.0)
    assert pull(path)
    path.write_text("here")
    assert pull(path)
    assert path.read_text() == "here"
    elsewhere("2")
    remove(local_path(uri_of("file")))
    elsewhere("")
    assert not pull(path)


def test_what_was_removed_there_goes_here_but_not_what_never_was_there(uri_of: UriOf, elsewhere: Callable[[str], None]):
    folder = local_path(uri_of("runs"))
    for name in ("a", "b"):
        atomically(folder / name, lambda partial: partial.write_text("x"))
    (folder / "mine").write_text("x")
    elsewhere("2")
    remove(local_path(uri_of("runs")) / "a")
    remove(local_path(uri_of("runs")) / "never")
    elsewhere("")
    assert pull(folder)
    assert sorted(path.name for path in folder.iterdir()) == ["b", "mine"]
    elsewhere("2")
    remove(local_path(uri_of("runs")) / "b")
    elsewhere("")
    assert not pull(folder / "b")


def rows(path: Path) -> list[int]:
    with closing(sqlite3.connect(path)) as database:
        return [row[0] for row in database.execute("select n from t")]


def test_a_database_that_is_open_arrives_as_it_was_at_its_last_write(uri_of: UriOf, elsewhere: Callable[[str], None]):
    path = local_path(uri_of("study.db"))
    path.parent.mkdir(parents=True)
    with closing(sqlite3.connect(path)) as database:
        database.execute("create table t (n)")
        database.execute("insert into t values (1)")
        database.commit()
        push_database(path)
        first = written_at(path)
        push_database(path)
        assert written_at(path) == first  # nothing has changed
        database.execute("insert into t values (2)")
        database.commit()
        assert pull(path)  # is ahead of what was pushed
        assert rows(path) == [1, 2]
        push_database(path)
        database.execute("insert into t values (3)")  # not committed
        elsewhere("2")
        copy = local_path(uri_of("study.db"))
        copy.parent.mkdir(parents=True)
        copy.write_bytes(b"an older one")
        copy.with_name("study.db-journal").write_bytes(b"of the older one")
        assert pull(copy)
        assert rows(copy) == [1, 2]


@pytest.mark.parametrize("uri_of", ["folder"], indirect=True)
@pytest.mark.parametrize("before", [0, 1], ids=["its first push", "a later push"])
def test_who_looked_during_a_push_leaves_the_database_that_is_open(
    uri_of: UriOf, monkeypatch: pytest.MonkeyPatch, before: int
):
    path, upload, pushing, waits = local_path(uri_of("study.db")), mirror.upload, Event(), Event()
    path.parent.mkdir(parents=True)

    def slowly(path: Path, source: Path) -> None:
        pushing.set()
        assert waits.wait(60)
        upload(path, source)

    @contextmanager
    def waited_for(path: Path) -> Iterator[TextIO]:
        if pushing.is_set():
            waits.set()  # it has looked, and waits for the record now
        with record(path) as file:
            yield file

    with closing(sqlite3.connect(path, isolation_level=None)) as database, ThreadPoolExecutor(1) as pool:
        database.execute("create table t (n)")
        for _ in range(before):
            push_database(path)
        database.execute("insert into t values (1)")
        monkeypatch.setattr(mirror, "upload", slowly)
        monkeypatch.setattr(mirror, "record", waited_for)
        pushed = pool.submit(push_database, path)
        assert pushing.wait(60)
        assert pull(path)
        pushed.result()
        database.execute("insert into t values (2)")
    assert rows(path) == [1, 2]


def test_a_study_has_one_driver_also_of_two_machines(uri_of: UriOf, elsewhere: Callable[[str], None]):
    folder = local_path(uri_of("runs/tiny"))
    folder.mkdir(parents=True)
    with leased(folder):
        elsewhere("2")
        message = rf"in use by process {os.getpid()} on .*, which was seen \d s ago"
        with pytest.raises(ConfigError, match=message), leased(local_path(uri_of("runs/tiny"))):
            pass
        elsewhere("")
    assert not exists(folder / LEASE)


def test_who_died_is_followed_at_once_here_and_after_a_while_elsewhere(
    uri_of: UriOf, elsewhere: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
):
    folder = local_path(uri_of("runs/tiny"))
    folder.mkdir(parents=True)
    lease = leased(folder)
    lease.__enter__()
    content = json.loads((folder / LEASE).read_text())
    lease.__exit__(None, None, None)
    atomically(folder / LEASE, lambda partial: partial.write_text(json.dumps(content)))  # as a kill leaves it
    with leased(folder):
        assert json.loads((folder / LEASE).read_text())["id"] != content["id"]
    atomically(folder / LEASE, lambda partial: partial.write_text(json.dumps(content)))
    elsewhere("2")
    monkeypatch.setattr("cca_ray.storage.lease.STALE_S", -1.0)
    with leased(local_path(uri_of("runs/tiny"))):
        assert exists(local_path(uri_of("runs/tiny")) / LEASE)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("studies/", "nowhere/"), "no such bucket; create it first"),
        (("127.0.0.1", "nowhere.invalid"), "no such host; see endpoint_override"),
    ],
    ids=["bucket", "host"],
)
def test_a_uri_that_cannot_be_used_is_told_in_a_line_that_names_it(change: tuple[str, str], message: str, server: str):
    uri = server.format("runs").replace(*change)
    with pytest.raises(ConfigError, match=f"^{re.escape(f'{uri}: {message}')}"):
        reach(local_path(uri), write=True)
    path = local_path(uri) / "file"
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(Unreachable, match=message):
        push(path)


def test_a_local_folder_that_could_not_be_written_is_told_before_anything_begins(tmp_path: Path):
    (tmp_path / "file").touch()
    reach(tmp_path / "new" / "runs", write=True)
    reach(tmp_path / "file" / "runs")  # to read it; that there is none is told by who reads
    with pytest.raises(ConfigError, match=r"^\S+file/runs: cannot be written: \S+/file is a file$"):
        reach(tmp_path / "file" / "runs", write=True)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_read_only_folder_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)  # root may write anywhere
    with pytest.raises(ConfigError, match=rf"new: cannot be written: {tmp_path} is read-only$"):
        reach(tmp_path / "new", write=True)
