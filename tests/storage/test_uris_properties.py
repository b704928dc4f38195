"""Paths and URIs of any characters: each has one local place, below its folder, and one name; or is refused."""

import shlex
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import sqlalchemy
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from mlflow.utils.file_utils import local_file_uri_to_path
from pyarrow import fs

from cca_ray.errors import ConfigError
from cca_ray.space_file import fault_of_name
from cca_ray.storage.mirror import snapshot
from cca_ray.storage.uris import (
    COPIES,
    cache_folder,
    command_line,
    copy_of,
    database_uri,
    local_path,
    naming_uris,
    refuse_unprintable,
    to_uri,
)
from cca_ray.tune import folder_of

ODD = st.sampled_from([*"?#%{}&=;+ '\"$`\\!*~:@,λé\u200d🜚-.", "%41", "%2F", "..", "a", "?uri=true", "{0}", "file:"])
NAMES = (
    st.lists(ODD | st.text(max_size=2), min_size=1, max_size=6)
    .map("".join)
    .filter(lambda name: name not in ("", ".", "..") and not set(name) & {"/", "\0"} and len(name) < 60)
)


def printable(path: str) -> bool:
    try:
        refuse_unprintable(path)
    except ConfigError:
        return False
    return True


@given(st.lists(NAMES.filter(printable), min_size=1, max_size=3))
@example(["a?b", "study.db"])
@example(["{x}%41", "λ#"])
def test_a_database_lies_where_its_path_says_and_nowhere_else(names: list[str]):
    with TemporaryDirectory() as root:
        path = Path(root, *names)
        path.parent.mkdir(parents=True, exist_ok=True)
        uri = database_uri(path).format(SCHEMA_VERSION=12)  # as Optuna does to every URI
        engine = sqlalchemy.create_engine(uri)
        with engine.begin() as connection:
            connection.execute(sqlalchemy.text("create table t (x)"))
        engine.dispose()
        assert [found for found in Path(root).rglob("*") if found.is_file()] == [path]
        with closing(sqlite3.connect(path)) as database:
            assert database.execute("select name from sqlite_master").fetchall() == [("t",)]
        with TemporaryDirectory() as scratch:
            assert snapshot(path, Path(scratch)).read_bytes() == path.read_bytes()


@given(st.lists(NAMES.filter(printable), min_size=1, max_size=3))
def test_a_path_is_what_it_was_after_it_was_a_uri(names: list[str]):
    path = Path("/", *names)
    assert Path(local_file_uri_to_path(path.as_uri())) == path
    assert Path(fs.FileSystem.from_uri(path.as_uri())[1]) == path
    assume(not names[0].startswith("~"))
    assert local_path(path) == path
    place = cache_folder() / COPIES / "s3" / "bucket" / Path(*names)
    assert local_path(to_uri(place)) == place


@given(
    st.builds(
        "{}://{}/{}{}".format,
        st.sampled_from(["s3", "gs", "file", "hdfs", "", "..", "a b"]) | st.text(max_size=4),
        NAMES | st.sampled_from(["", "..", ".", "-", "bucket", "h:99", "[::1", "a@b"]),
        st.lists(NAMES | st.just(".."), max_size=3).map("/".join),
        st.sampled_from(["", "?scheme=http", "?a=b&c=/../..", "?", "#x", "?endpoint_override=localhost:9000"]),
    )
)
@example("s3://../x")
@example("s3://-/x")
@example("..://../../x")
@example("s3://bucket/%2e%2e/x")
def test_a_uri_has_one_place_in_the_cache_or_is_refused(uri: str):
    try:
        path = local_path(uri)
    except ConfigError:
        return
    root = cache_folder() / COPIES
    assert ".." not in path.parts
    assert path.is_relative_to(root)
    assert copy_of(path) is not None
    assert local_path(to_uri(path)) == path
    assert local_path(to_uri(path / "y")) == path / "y"


@given(
    st.lists(NAMES.filter(lambda name: printable(name) and not set(name) & set(" '\".:,;)")), min_size=1, max_size=3)
)
def test_what_is_said_of_a_copy_names_its_uri(names: list[str]):
    uri = to_uri(cache_folder() / COPIES / "s3" / "bucket" / Path(*names))
    place = local_path(uri)
    assert naming_uris(f"{place}: no such file; or is '{place}.bak' it, or {place}?") == (
        f"{uri}: no such file; or is '{to_uri(f'{place}.bak')}' it, or {to_uri(f'{place}?')}"
    )
    full = f"{place}: No space left on device"
    assert naming_uris(full) == full


@given(st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])), min_size=1, max_size=4))
def test_a_command_is_the_same_words_again_in_a_shell(words: list[str]):
    assert shlex.split(command_line("printf", "%s", *words)) == ["printf", "%s", *words]


@settings(max_examples=30)  # each starts a process
@given(st.lists(NAMES, min_size=1, max_size=4))
def test_a_real_shell_reads_the_same_words(words: list[str]):
    shell = ["/bin/sh", "-c", command_line("printf", r"%s\0", *words)]
    told = subprocess.run(shell, capture_output=True, check=True).stdout
    assert told.decode(errors="surrogateescape").split("\0")[:-1] == words


@given(st.text(max_size=30) | NAMES)
@example("..")
@example(".")
@example("-x")
@example("mlflow.db")
@example("λ" * 100)
def test_a_study_of_any_name_has_its_own_folder_or_is_refused(name: str):
    with TemporaryDirectory() as root:
        storage = Path(root, "runs")
        try:
            folder = folder_of(storage, name, fresh=False)
        except ConfigError:
            assert not storage.exists()
            return
        assert folder == storage.resolve() / name
        assert [path for path in Path(root).rglob("*") if path.is_dir()] == [storage, folder]
        assert fault_of_name(name) == ""
        assert len(f"{name}-control-0000-checkpoint.pt.partial-1234567".encode()) < 255


@given(st.lists(NAMES, min_size=1, max_size=2))
def test_a_storage_of_any_name_is_itself_or_is_refused(names: list[str]):
    with TemporaryDirectory() as root:
        storage = Path(root, *names)
        try:
            folder = folder_of(local_path(storage), "s", fresh=False)
        except ConfigError:
            assert not printable(str(storage))
            assert list(Path(root).iterdir()) == []
            return
        assert folder.samefile(storage / "s")
