"""Others' names and folders: an object's name that leads out of the cache, a cache that someone else has set up."""

import json
import os
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, urlsplit

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cca_ray.data.tokens import MANIFEST, read_token_set
from cca_ray.errors import ConfigError
from cca_ray.storage.mirror import folders, listed, pull, record
from cca_ray.storage.uris import COPIES, cache_folder, local_path, own_cache, path_below
from tests.buckets import BUCKET, s3_server

PARTS = st.sampled_from(["", ".", "..", "a", "b c", "\0", "..a", "a..", "%2e%2e", "\\..", "~", "é"])


@pytest.fixture(autouse=True)
def environment(own_node: None) -> None:
    """Every test has a node of its own."""


@given(st.lists(PARTS | st.text(max_size=8), max_size=6).map("/".join))
def test_a_name_is_a_path_below_the_folder_or_refused(name: str):
    folder = Path("/a/folder")
    try:
        path = folder / path_below(folder, name)
    except ConfigError:
        assert "\0" in name or PurePosixPath(name).is_absolute() or {"", ".", ".."} & set(name.split("/"))
        return
    assert os.path.normpath(path) == str(path) == f"{folder}/{name}"
    assert path != folder


def test_an_object_that_leads_out_of_the_cache_is_refused_and_nothing_is_written(tmp_path: Path):
    mine = tmp_path / "mine"
    mine.write_text("mine")
    with s3_server() as template:
        endpoint = parse_qs(urlsplit(template).query)["endpoint_override"][0]
        client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")

        def folder_with(name: str, number: int = 0) -> Path:
            client.put_object(Bucket=BUCKET, Key=f"{number}/{name}", Body=b"theirs")
            return local_path(template.format(number))

        folder_with("")  # as consoles mark a folder
        folder = folder_with("a/b.txt")
        assert pull(folder)
        assert (folder / "a" / "b.txt").read_text() == "theirs"
        up = "/".join([".."] * len(folder.relative_to(tmp_path).parts))
        for number, name in enumerate([f"{up}/mine", f"x/../{up}/mine", str(mine), "..", "x/..", "x//y"], start=1):
            bad = folder_with(name, number)
            for look in (pull, folders, lambda path: listed(path, "*")) if number in (1, 3) else (pull,):
                with pytest.raises(ConfigError, match=r"whose name is no path below it") as error:
                    look(bad)
                assert f"/{number}?" in str(error.value)
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "mine"]


@pytest.mark.parametrize("uri", ["s3://b/%2e%2e/x", "s3://../x", "s3://b/a%00b", "gs://b/x/..", "file:///../etc"])
def test_a_uri_that_leads_out_of_the_cache_is_refused(uri: str):
    with pytest.raises(ConfigError, match=r"with '\.\.'|control character"):
        local_path(uri)


def test_the_record_of_a_copy_lies_among_the_records():
    with pytest.raises(ConfigError, match="no path below it"), record(own_cache() / COPIES / "s3" / ".." / ".." / "id"):
        pass


@pytest.mark.parametrize("change", [{"digest": "../../theirs"}, {"parts": [{"name": "../x", "rows": 1, "sha256": ""}]}])
def test_a_token_set_names_no_file_outside_of_it(change: dict[str, object], tmp_path: Path):
    meta = {"tokenizer": "t", "codebook_size": 8, "length": 1, "crops": 1, "image_size": 8, "augmentations": ["centre"],
            "class_names": ["a"]}  # fmt: skip
    part = {"name": "part-00000.parquet", "rows": 1, "sha256": ""}
    (tmp_path / MANIFEST).write_text(json.dumps({"digest": "0" * 16, "meta": meta, "parts": [part], **change}))
    with pytest.raises(ValueError, match=r"not a token manifest \(.*no path below it"):
        read_token_set(tmp_path, large=0)


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A temporary folder as /tmp is; the default cache lies there."""
    monkeypatch.delenv("CCA_RAY_CACHE")
    folder = tmp_path / "tmp"
    folder.mkdir()
    folder.chmod(0o1777)
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    return folder


def test_the_default_cache_is_its_users_alone(temporary: Path):
    copy = local_path("s3://bucket/x")
    assert copy.is_relative_to(temporary)
    assert cache_folder().stat().st_mode & 0o777 == 0o700
    cache_folder().chmod(0o755)  # as earlier versions made it
    assert local_path("s3://bucket/x") == copy
    assert cache_folder().stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("trap", ["link", "dangling link", "file", "open", "owner", "parent", "parent's owner"])
def test_a_cache_that_another_user_has_set_up_is_refused(trap: str, temporary: Path, tmp_path: Path):
    elsewhere, folder = tmp_path / "elsewhere", cache_folder()
    if trap == "link":
        elsewhere.mkdir()
    if "link" in trap:
        folder.symlink_to(elsewhere)
    elif trap == "file":
        folder.touch()
    else:
        folder.mkdir(mode=0o700)
    if trap == "open":
        folder.chmod(0o777)
    if trap == "parent":
        temporary.chmod(0o777)
    if "owner" in trap:
        if os.getuid():
            pytest.skip("only root can give a folder away")
        os.chown(temporary if "parent" in trap else folder, 12345, 12345)
    with pytest.raises(ConfigError, match="set CCA_RAY_CACHE to a folder of yours") as error:
        local_path("s3://bucket/x")
    assert "\n" not in str(error.value)
    assert not elsewhere.exists() or list(elsewhere.iterdir()) == []
