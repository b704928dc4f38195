"""Images that were made again at the same places: a token set begun of those of before is not gone on with."""

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cca_ray.data.contents import contents_of, digest_of_some
from cca_ray.data.encode import CONTENTS, claim
from cca_ray.data.listing import list_images
from cca_ray.errors import ConfigError
from tests.data.made_images import picture, png, write_class_tars, write_parquet, write_tree, write_webdataset


def in_place(path: Path) -> None:
    """Other bytes, as many."""
    content = bytearray(path.read_bytes())
    content[600] ^= 1  # of the first image, after the header of a tar's member
    path.write_bytes(content)


def repaired(folder: Path) -> None:
    table = pq.read_table(folder / "1.parquet")
    images = [{"bytes": png(picture(99)), "path": "0.png"}, *table["image"].to_pylist()[1:]]
    pq.write_table(pa.table({"image": images, "label": table["label"]}), folder / "1.parquet")


@pytest.mark.parametrize(
    ("write", "again"),
    [
        (write_tree, lambda folder: in_place(folder / "dog" / "1.png")),
        (write_webdataset, lambda folder: in_place(folder / "shard-1.tar")),
        (write_class_tars, lambda folder: in_place(folder / "dog.tar")),
        (write_parquet, repaired),
    ],
)
def test_images_made_again_in_place_are_others(
    tmp_path: Path, write: Callable[[Path], Path], again: Callable[[Path], None]
):
    folder, copy = write(tmp_path / "photos"), write(tmp_path / "copy")
    before = list_images(str(folder))
    assert contents_of(list_images(str(copy))) == contents_of(before)
    digest = contents_of(before)
    again(folder)
    after = list_images(str(folder))
    assert after.digest == before.digest
    assert contents_of(after) != digest


def test_an_image_that_is_gone_has_no_bytes_but_a_storage_that_does_not_answer_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("time.sleep", lambda pause_s: None)
    listing = list_images(str(write_tree(tmp_path / "photos")))
    digest, first = contents_of(listing), Path(listing.entries[0].path)
    first.unlink()
    assert contents_of(listing) != digest
    first.mkdir()  # what pyarrow cannot open, time after time
    with pytest.raises(ConfigError, match="cannot be read"):
        contents_of(listing)


def test_some_of_many_are_looked_at_the_first_and_the_last_among_them():
    seen: list[int] = []

    def read(number: int) -> bytes:
        seen.append(number)
        return b"%d" % number

    assert digest_of_some(read, range(1000)) != digest_of_some(read, range(1, 1001))
    assert len(seen) == 128
    assert {0, 999, 1000} <= set(seen)
    assert len(digest_of_some(read, [])) == 16


def test_a_token_set_of_images_made_again_is_not_gone_on_with(tmp_path: Path):
    plan = {"images": "a", CONTENTS: "x"}
    assert claim(tmp_path / "tokens", plan) is None
    assert claim(tmp_path / "tokens", plan) is None
    with pytest.raises(ConfigError, match=r"holds another token set \(contents of images differs\); use another --out"):
        claim(tmp_path / "tokens", plan | {CONTENTS: "y"})


def test_a_token_set_begun_by_a_version_that_did_not_look_is_gone_on_with(tmp_path: Path):
    assert claim(tmp_path / "tokens", {"images": "a", CONTENTS: "x"}) is None
    (tmp_path / "tokens" / "plan.json").write_text('{"images": "a"}')
    assert claim(tmp_path / "tokens", {"images": "a", CONTENTS: "x"}) is None
    with pytest.raises(ConfigError, match="images differs"):
        claim(tmp_path / "tokens", {"images": "b", CONTENTS: "x"})
