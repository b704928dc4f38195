import io
import os
import tarfile
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cca_ray.data.image_files import read_entry
from cca_ray.data.images import Crop, Square, centre_crop, crops_of, cut, decode
from cca_ray.data.listing import list_images
from cca_ray.errors import ConfigError
from tests.data.made_images import (
    add,
    damaged_avif,
    picture,
    pixels,
    png,
    write_class_tars,
    write_parquet,
    write_tree,
    write_tree_tar,
    write_webdataset,
)


@pytest.mark.parametrize("write", [write_tree, write_webdataset, write_class_tars, write_tree_tar, write_parquet])
def test_every_kind_of_collection_lists_the_same_images(tmp_path: Path, write: Callable[[Path], Path]):
    listing = list_images(str(write(tmp_path / "photos")))
    assert listing.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert listing.class_names in (("cat", "dog"), ("0", "1"))
    for found, seed in zip(pixels(listing), (0, 1, 2, 10, 11, 12), strict=True):
        np.testing.assert_array_equal(found, np.asarray(picture(seed)))


def test_a_uri_is_as_good_as_a_path(tmp_path: Path):
    folder = write_tree(tmp_path / "photos")
    by_path, by_uri = list_images(str(folder)), list_images(folder.as_uri())
    assert by_uri.digest == by_path.digest
    np.testing.assert_array_equal(pixels(by_uri)[4], pixels(by_path)[4])


def test_the_digest_knows_the_images_but_not_where_they_lie(tmp_path: Path):
    digests = [list_images(str(write_tree(tmp_path / name))).digest for name in ("a", "b")]
    assert digests[0] == digests[1]
    (tmp_path / "b" / "cat" / "3.png").write_bytes(png(picture(3)))
    assert list_images(str(tmp_path / "b")).digest != digests[0]


def test_without_labels_a_flat_folder_will_do(tmp_path: Path):
    broken("flat", tmp_path / "photos")
    assert len(list_images(str(tmp_path / "photos"), labelled=False).entries) == 1


def test_what_is_gone_or_torn_is_unreadable(tmp_path: Path):
    with pytest.raises(ValueError, match="cannot be read"):
        read_entry(str(tmp_path), str(tmp_path / "gone.png"), 0, 10)


def test_a_sliver_is_refused_before_it_fills_the_memory():
    with pytest.raises(ValueError, match="too long: 1 x 20000 pixels"):
        centre_crop(Image.new("RGB", (1, 20000)), 384)


def test_given_classes_decide_the_labels(tmp_path: Path):
    folder = str(write_tree(tmp_path / "photos"))
    listing = list_images(folder, ["emu", "dog", "cat"])
    assert listing.labels.tolist() == [2, 2, 2, 1, 1, 1]
    assert listing.class_names == ("emu", "dog", "cat")
    with pytest.raises(ConfigError, match="class 'dog' is not among the 2 given classes"):
        list_images(folder, ["cat", "emu"])


def broken(kind: str, folder: Path) -> None:
    if kind == "empty class":
        write_tree(folder)
        (folder / "emu").mkdir()
    elif kind == "one class":
        write_tree(folder)
        (folder / "dog").rename(folder / "cat" / "dog")
    elif kind == "nothing":
        folder.mkdir()
    elif kind == "torn tar":
        write_webdataset(folder)
        path = folder / "shard-0.tar"
        path.write_bytes(path.read_bytes()[:700])
    elif kind == "no cls":
        folder.mkdir()
        with tarfile.open(folder / "a.tar", "w") as archive:
            add(archive, "0.png", png(picture(0)))
            add(archive, "0.cls", b"0")
            add(archive, "1.png", png(picture(0)))
    elif kind == "odd cls":
        folder.mkdir()
        with tarfile.open(folder / "a.tar", "w") as archive:
            add(archive, "0.cls", b"cat")
    elif kind == "torn parquet":
        write_parquet(folder)
        (folder / "0.parquet").write_bytes(b"PAR1 no")
    elif kind == "no image column":
        folder.mkdir()
        pq.write_table(pa.table({"picture": [b"1"], "label": [0]}), folder / "0.parquet")
    elif kind == "no label":
        folder.mkdir()
        pq.write_table(pa.table({"image": [b"1"], "label": pa.array([None], pa.int64())}), folder / "0.parquet")
    elif kind == "empty label":
        folder.mkdir()
        pq.write_table(pa.table({"image": [b"1", b"2"], "label": ["cat", ""]}), folder / "0.parquet")
    elif kind == "fractions":
        folder.mkdir()
        pq.write_table(pa.table({"image": [b"1"], "label": [0.5]}), folder / "0.parquet")
    elif kind == "stray shard":
        write_tree(folder)
        with tarfile.open(folder / "left.tar", "w") as archive:
            add(archive, "x/0.png", png(picture(0)))
    elif kind == "compressed":
        folder.mkdir()
        (folder / "train.TAR.zst").touch()
    elif kind == "paths for images":
        folder.mkdir()
        pq.write_table(pa.table({"image": ["a.png"], "label": [0]}), folder / "0.parquet")
    elif kind == "huge number":
        folder.mkdir()
        with tarfile.open(folder / "a.tar", "w") as archive:
            add(archive, "0.cls", b"99999999999")
    elif kind == "loop":
        write_tree(folder)
        (folder / "cat" / "again").symlink_to(folder)
    elif kind == "broken link":
        write_tree(folder)
        (folder / "cat" / "9.png").symlink_to(folder / "nowhere.png")
    elif kind == "flat":
        folder.mkdir()
        (folder / "0.png").write_bytes(png(picture(0)))
    elif kind == "mixed":
        write_webdataset(folder)
        write_class_tars(folder / "more")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("absent", "no such folder or file"),
        ("nothing", "no images here"),
        ("empty class", "no image in the class folder emu"),
        ("one class", "at least 2; found 1"),
        ("torn tar", r"shard-0\.tar: not a readable shard"),
        ("no cls", r"a\.tar: 1\.png has no 1\.cls beside it"),
        ("odd cls", r"0\.cls holds 'cat', not a class number"),
        ("torn parquet", r"0\.parquet: not a readable shard"),
        ("no image column", r"no column image or jpg or png; it has picture, label"),
        ("no label", "row 0 has no label"),
        ("empty label", "row 1 has no label"),
        ("fractions", r"row 0 has the label 0\.5; expected a class number or name"),
        ("stray shard", r"both shards and loose images, such as .*left\.tar"),
        ("compressed", r"train\.TAR\.zst is compressed: unpack it first"),
        ("paths for images", "its images are string; expected bytes, or a struct with bytes"),
        ("huge number", "holds '99999999999', not a class number"),
        ("loop", "again leads nowhere, or back to a folder that contains it"),
        ("broken link", r"9\.png leads nowhere"),
        ("flat", "expected one subfolder per class, at least 2; found 0"),
        ("mixed", "some classes are numbers, others names"),
    ],
)
def test_a_bad_collection_is_one_line(tmp_path: Path, kind: str, message: str):
    broken(kind, tmp_path / "photos")
    with pytest.raises(ConfigError, match=message) as error:
        list_images(str(tmp_path / "photos"))
    assert "\n" not in str(error.value)


def test_an_empty_path_is_not_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As of a variable that is not set, for `prepare` and for `pretrain`."""
    monkeypatch.chdir(write_tree(tmp_path / "photos"))
    assert len(list_images(".").entries) == 6
    with pytest.raises(ConfigError, match=r"^an empty path: is a variable such as \$IMAGES not set\?"):
        list_images("")


def test_an_unknown_kind_of_uri_is_one_line():
    with pytest.raises(ConfigError, match="ftpx://a/b: not a path or URI"):
        list_images("ftpx://a/b")


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_images_of_every_mode_become_rgb(mode: str):
    buffer = io.BytesIO()
    picture(0).convert(mode).save(buffer, "TIFF" if mode == "CMYK" else "PNG")
    assert decode(buffer.getvalue()).mode == "RGB"


def test_a_cmyk_jpeg_as_in_imagenet_is_read():
    buffer = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 30, 30)).convert("CMYK").save(buffer, "JPEG")
    red, green, _ = decode(buffer.getvalue()).getpixel((8, 8))
    assert red > 180
    assert green < 60


def test_sixteen_bit_grey_keeps_its_range():
    ramp = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    image = np.asarray(decode(png(Image.fromarray(ramp))))
    np.testing.assert_array_equal(image[..., 0], ramp >> 8)


def test_floating_point_pixels_are_refused_for_what_is_white_is_not_known():
    buffer = io.BytesIO()
    Image.fromarray(np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)).save(buffer, "TIFF")
    with pytest.raises(ValueError, match=r"^its pixels are floating-point numbers; save it with 8 or 16 bits$"):
        decode(buffer.getvalue())


def test_a_parquet_file_that_was_made_again_is_read_again(tmp_path: Path):
    folder = write_parquet(tmp_path / "photos")
    pixels(list_images(str(folder)))
    images = [{"bytes": png(picture(20 + i)), "path": f"{i}.png"} for i in range(3)]
    pq.write_table(pa.table({"image": images, "label": [1] * 3}), folder / "1.parquet")
    np.testing.assert_array_equal(pixels(list_images(str(folder)))[5], np.asarray(picture(22)))


def test_a_relative_path_leads_on_from_where_the_process_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
        write_tree(tmp_path / name / "photos")
    (tmp_path / "there" / "photos" / "cat" / "3.png").write_bytes(png(picture(3)))
    counts = []
    for name in ("here", "there"):
        monkeypatch.chdir(tmp_path / name)
        counts.append(len(list_images("photos").entries))
    assert counts == [6, 7]


def test_an_image_that_is_only_a_path_says_that_it_has_no_bytes(tmp_path: Path):
    rows = [{"bytes": None, "path": "/data/0.JPEG"}, {"bytes": png(picture(0)), "path": "1.png"}]
    pq.write_table(pa.table({"image": rows, "label": [0, 1]}), tmp_path / "0.parquet")
    with pytest.raises(ValueError, match="no bytes"):
        pixels(list_images(str(tmp_path / "0.parquet")))


@pytest.mark.parametrize("content", [b"", None, b"no", png(picture(0))[:200]])
def test_what_is_no_image_is_one_line(content: Any):
    with pytest.raises(ValueError, match="not ") as error:
        decode(content)
    assert "\n" not in str(error.value)


def test_the_centre_crop_is_adms():
    """Halved by boxes while that keeps it large enough, then bicubic, then the middle."""
    image = picture(0, 140, 90)
    half = image.resize((70, 45), Image.Resampling.BOX)
    expected = np.asarray(half.resize((round(70 * 32 / 45), 32), Image.Resampling.BICUBIC))[:, 9:41]
    np.testing.assert_array_equal(centre_crop(image, 32), expected)
    assert centre_crop(picture(0, 10, 7), 32).shape == (32, 32, 3)


def test_ten_crops_are_the_official_ones():
    crops = crops_of(["ten-crop-1.1", "ten-crop-1.05"], 384)
    assert (len(crops), {crop.square.side for crop in crops}) == (20, {422, 403})
    assert [(c.top, c.left) for c in crops[:5]] == [(0, 0), (0, 38), (38, 0), (38, 38), (19, 19)]
    assert [c.mirrored for c in crops[:10]] == [False] * 5 + [True] * 5
    key = crops[0].square.key
    square = np.arange(422 * 422 * 3, dtype=np.int64).reshape(1, 422, 422, 3)
    np.testing.assert_array_equal(cut({key: square}, crops[1], 384)[0], square[0, :384, 38:])
    np.testing.assert_array_equal(cut({key: square}, crops[6], 384)[0], square[0, :, ::-1][:384, 38:])


def test_vars_views_are_cut_from_the_whole_image():
    """Shorter side 288 pixels by Lanczos; a place drawn by the image's index, or the middle."""
    image = picture(0, 400, 300)
    resized = np.asarray(image.resize((384, 288), Image.Resampling.LANCZOS))
    middle, first, second = crops_of(["var-centre", "var-random", "var-random"], 256)
    np.testing.assert_array_equal(middle.square.of(image, 5), resized[16:272, 64:320])
    windows = np.lib.stride_tricks.sliding_window_view(resized[..., 0], (256, 256))
    for crop in (first, second):
        view = crop.square.of(image, 5)
        assert any(np.array_equal(w, view[..., 0]) for row in windows for w in row)
        np.testing.assert_array_equal(crop.square.of(image, 5), view)
        assert not np.array_equal(crop.square.of(image, 6), view)
    assert not np.array_equal(first.square.of(image, 5), second.square.of(image, 5))
    assert first.square.of(picture(0, 30, 40), 0).shape == (256, 256, 3)


def test_flips_are_the_image_and_its_mirror_image():
    assert crops_of(["flips"], 8) == [
        Crop("flips/0", Square("adm", 8)), Crop("flips/1", Square("adm", 8), mirrored=True)
    ]  # fmt: skip
    with pytest.raises(ConfigError, match=r"unknown augmentation 'rotate': any of centre, flips, ten-crop-1\.1"):
        crops_of(["rotate"], 8)


@pytest.mark.parametrize("kind", ["GIF", "JPEG", "AVIF", "TIFF", "WEBP"])
def test_what_pillow_reads_is_taken_by_its_usual_endings(tmp_path: Path, kind: str):
    known = {"GIF": ["gif"], "JPEG": ["jpe", "jfif", "JPG"], "AVIF": ["avif"], "TIFF": ["tif"], "WEBP": ["webp"]}
    for label, name in enumerate(("cat", "dog")):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for ending in known[kind]:
            picture(label).save(tmp_path / "photos" / name / f"0.{ending}", kind)
    listing = list_images(str(tmp_path / "photos"))
    assert len(pixels(listing)) == 2 * len(known[kind])


def test_files_that_are_no_images_by_their_names_are_counted(tmp_path: Path):
    folder = write_tree(tmp_path / "photos")
    (folder / "cat" / "9.heic").write_bytes(b"")
    (folder / "dog" / "8.HEIC").write_bytes(b"")
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "0.png").write_bytes(b"")
    (folder / "@eaDir").mkdir()
    (folder / "@eaDir" / "0.png").write_bytes(b"")
    assert list_images(str(folder)).passed_over == ((".heic", 2), (".txt", 1))


@pytest.mark.parametrize("content", [b"", b"GIF89a", b"\x89PNG\r\n\x1a\n" + b"\0" * 40, b"BM" + b"\xff" * 60, None])
def test_whatever_a_decoder_raises_is_one_unreadable_image(content: bytes | None):
    with pytest.raises(ValueError, match=r"not a readable image|not an image"):
        decode(damaged_avif() if content is None else content)


def test_an_image_of_a_shard_says_which_it_is(tmp_path: Path):
    places = [e.place for e in list_images(str(write_webdataset(tmp_path / "w"))).entries]
    assert places[0].endswith("shard-0.tar: 00.png")
    places = [e.place for e in list_images(str(write_parquet(tmp_path / "p"))).entries]
    assert places[-1].endswith("1.parquet: row 2")
    places = [e.place for e in list_images(str(write_tree(tmp_path / "t"))).entries]
    assert places[0].endswith("cat/0.png")


@pytest.mark.parametrize("on_disk", ["NFC", "NFD"])
@pytest.mark.parametrize("given", ["NFC", "NFD"])
def test_class_names_are_equal_if_they_look_equal(tmp_path: Path, on_disk: str, given: str):
    for name in ("café", "thé"):
        folder = tmp_path / "photos" / unicodedata.normalize(on_disk, name)  # type: ignore[arg-type]  # one of four
        folder.mkdir(parents=True)
        (folder / "0.png").write_bytes(png(picture(0)))
    classes = [unicodedata.normalize(given, name) for name in ("thé", "café")]  # type: ignore[arg-type]  # one of four
    listing = list_images(str(tmp_path / "photos"), classes)
    assert listing.labels.tolist() == [1, 0]
    assert listing.class_names == tuple(classes)


def test_a_class_name_that_is_not_utf_8_is_made_visible(tmp_path: Path):
    for name in (b"caf\xe9", b"the"):
        folder = os.fsencode(tmp_path) + b"/photos/" + name
        os.makedirs(folder)
        with open(folder + b"/0.png", "wb") as file:
            file.write(png(picture(0)))
    with tarfile.open(tmp_path / "photos.tar", "w") as archive:
        archive.add(tmp_path / "photos", "photos")
    for where in (tmp_path / "photos.tar", tmp_path / "photos"):
        with pytest.raises(ConfigError, match=r"caf\\xe9.* is not UTF-8") as error:
            list_images(str(where))
        str(error.value).encode()


def test_the_order_of_numbers_is_told_where_it_surprises(tmp_path: Path):
    for number in (0, 2, 10):
        (tmp_path / "photos" / str(number)).mkdir(parents=True)
        (tmp_path / "photos" / str(number) / "0.png").write_bytes(png(picture(number)))
    as_text, as_numbers = (list_images(str(tmp_path / "photos"), numeric_classes=wanted) for wanted in (False, True))
    assert as_text.class_names == ("0", "10", "2")
    assert "0, 10, 2, ... have the labels 0, 1, 2" in as_text.surprise
    assert (as_numbers.class_names, as_numbers.surprise) == (("0", "2", "10"), "")
    assert list_images(str(write_tree(tmp_path / "words"))).surprise == ""
    with pytest.raises(ConfigError, match="--numeric-classes, but the class 'cat' is not a number"):
        list_images(str(tmp_path / "words"), numeric_classes=True)


def numbered(folder: Path, kind: str, labels: list[int]) -> Path:
    """Images of these labels, in a tar or in Parquet."""
    folder.mkdir()
    images = [png(picture(i)) for i in range(len(labels))]
    if kind == "parquet":
        pq.write_table(pa.table({"image": images, "label": labels}), folder / "0.parquet")
        return folder
    with tarfile.open(folder / "0.tar", "w") as archive:
        for i, label in enumerate(labels):
            add(archive, f"{i}.png", images[i])
            add(archive, f"{i}.{kind}", str(label).encode() if kind == "cls" else f'{{"label": {label}}}'.encode())
    return folder


@pytest.mark.parametrize("kind", ["parquet", "cls", "json"])
def test_numbers_of_classes_that_leave_some_out_are_refused(kind: str, tmp_path: Path):
    """As of sets that count from 1: a class that no image shows was made, and then sampled."""
    key = "label" if kind == "json" else None
    from_one, with_gaps = (numbered(tmp_path / name, kind, labels) for name, labels in
                           (("one", [1, 2, 3, 1]), ("gaps", [0, 5, 2])))  # fmt: skip
    with pytest.raises(ConfigError, match="from 1 to 3, but there is no image of class 0; number the") as error:
        list_images(str(from_one), label_key=key)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="there is no image of class 1 and 2 more; number the"):
        list_images(str(with_gaps), label_key=key)
    names = ["ant", "bee", "cat", "dog", "emu", "fox"]
    assert list_images(str(with_gaps), names, label_key=key).labels.tolist() == [0, 5, 2]  # a subset of theirs
    assert list_images(str(from_one), label_key=key, allow_empty=True).class_names == ("0", "1", "2", "3")
    assert len(list_images(str(from_one), labelled=False).entries) == 4
