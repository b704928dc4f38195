"""Where captions are found, whatever the form: the same images, texts and numbers."""

import csv
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cca_ray.data.captioned import Caption, CaptionedImages, list_captioned, of_table
from cca_ray.data.image_files import Entry, read_entry
from cca_ray.data.listing import Listing, list_images
from cca_ray.data.text_features import FeatureFiles
from cca_ray.errors import ConfigError
from tests.data.made_images import add

# By image; two share a caption, and one looks like another, which Unicode writes in two ways.
TEXTS = {
    "a/x.png": "two cats",
    "a/y.png": "one dog\n",
    "b/x.png": " two cats",
    "z.png": "caf\u00e9",
    "w.png": "cafe\u0301",
}
ORDER = sorted(TEXTS)  # a/x, a/y, b/x, w, z
NUMBERS = [2, 1, 2, 0, 0]


def png(number: int) -> bytes:
    made = io.BytesIO()
    Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(made, "PNG")
    return made.getvalue()


def images(folder: Path) -> Path:
    for number, name in enumerate(ORDER):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(png(number))
    return folder


def sidecars(folder: Path) -> CaptionedImages:
    for name, text in TEXTS.items():
        (images(folder) / name).with_suffix(".txt").write_text(text)
    return list_captioned(str(folder))


def json_beside(folder: Path) -> CaptionedImages:
    for name, text in TEXTS.items():
        (images(folder) / name).with_suffix(".json").write_text(json.dumps({"texts": ["no", text]}))
    return list_captioned(str(folder), key="texts/1")


def tar(folder: Path) -> CaptionedImages:
    folder.mkdir()
    with tarfile.open(folder / "00000.tar", "w") as archive:
        for number, name in enumerate(ORDER):
            for ending, content in ((".png", png(number)), (".txt", TEXTS[name].encode()), (".json", b"{}")):
                add(archive, name.removesuffix(".png") + ending, content)
    return list_captioned(str(folder))


def parquet(folder: Path) -> CaptionedImages:
    folder.mkdir()
    rows = pa.table({"image": [png(i) for i in range(len(ORDER))], "caption": [TEXTS[name] for name in ORDER]})
    pq.write_table(rows, folder / "p.parquet", row_group_size=2)
    return list_captioned(str(folder))


def csv_table(folder: Path) -> CaptionedImages:
    with (images(folder) / "metadata.csv").open("w", newline="") as file:  # as Hugging Face's image folders have it
        rows = csv.writer(file)
        rows.writerows([["file_name", "text"], *TEXTS.items()])
    return list_captioned(str(folder), str(folder / "metadata.csv"))


def json_table(folder: Path) -> CaptionedImages:
    (table := folder.with_suffix(".json")).write_text(json.dumps(TEXTS))
    return list_captioned(str(images(folder)), str(table))


def parquet_table(folder: Path) -> CaptionedImages:
    rows = pa.table({"path": list(TEXTS), "text": list(TEXTS.values())})
    pq.write_table(rows, table := folder.with_name("captions.parquet"))
    return list_captioned(str(images(folder)), str(table))


def llamagens(folder: Path) -> CaptionedImages:
    """As its scripts read them: several files, whole paths, several captions an image."""
    (lists := folder.with_name("lists")).mkdir()
    for part, names in (("0", ORDER[:2]), ("1", ORDER[2:])):
        lines = [json.dumps({"image_path": str(folder / n), "text": [TEXTS[n], "a long one"]}) + "\n" for n in names]
        (lists / f"{part}.jsonl").write_text("".join(lines))
    return list_captioned(str(images(folder)), str(lists), "text/0")


def uris(folder: Path) -> CaptionedImages:
    """Of files, whose folder is named by a path."""
    by_uri = {(folder / name).as_uri(): text for name, text in TEXTS.items()}
    (table := folder.with_suffix(".json")).write_text(json.dumps(by_uri))
    return list_captioned(str(images(folder)), str(table))


FORMS: list[tuple[Callable[[Path], CaptionedImages], list[str]]] = [
    (sidecars, ["w", "a/y", "a/x"]),
    (json_beside, ["w", "a/y", "a/x"]),
    (tar, ["00000/w", "00000/a/y", "00000/a/x"]),
    (parquet, ["p/3", "p/1", "p/0"]),
    (csv_table, ["w", "a/y", "a/x"]),
    (json_table, ["w", "a/y", "a/x"]),
    (parquet_table, ["w", "a/y", "a/x"]),
    (llamagens, ["1/1", "0/1", "0/0"]),
    (uris, ["w", "a/y", "a/x"]),
]


@pytest.mark.parametrize(("form", "places"), FORMS, ids=[form.__name__ for form, _ in FORMS])
def test_captions_are_found_in_every_form(form: Callable[[Path], CaptionedImages], places: list[str], tmp_path: Path):
    found = form(tmp_path / "images")
    assert found.texts == ["cafe\u0301", "one dog", "two cats"]
    assert found.images.labels.tolist() == NUMBERS
    assert found.images.class_names == ()
    assert [caption.place for caption in found.captions] == places  # of features: of the first image with each
    assert found.images.passed_over == ()


def test_images_in_a_bucket_are_named_by_their_uris_too(tmp_path: Path):
    """`prepare` of them said that the table had no caption of `b/my photos/a.jpg`."""
    entries = tuple(Entry(f"b/my photos/{name}", 0, 1, "any") for name in ("a.jpg", "c/d.jpg", "e.jpg"))
    listing = Listing("s3://b/my%20photos/?region=us-east-1", entries, np.zeros(3, np.int64), ("any",))
    names = ["s3://b/my%20photos/a.jpg", "s3://b/my photos/c/d.jpg?region=us-east-1", "b/my photos/e.jpg"]
    (table := tmp_path / "t.json").write_text(json.dumps({name: str(i) for i, name in enumerate(names)}))
    found = of_table(listing, str(table), None)
    assert found == [Caption("0", "a"), Caption("1", "c/d"), Caption("2", "e")]
    table.write_text(json.dumps(dict.fromkeys(("s3://other/a.jpg", *names[1:]), "x")))
    with pytest.raises(ConfigError, match=r"t\.json: has no caption of b/my photos/a\.jpg"):
        of_table(listing, str(table), None)


def test_another_text_or_another_number_is_another_collection(tmp_path: Path):
    found = sidecars(tmp_path / "images")
    assert sidecars(tmp_path / "images").digest == found.digest
    (tmp_path / "images" / "z.txt").write_text("cafes")
    assert list_captioned(str(tmp_path / "images")).digest != found.digest
    (tmp_path / "images" / "z.txt").write_text("one dog")
    other = list_captioned(str(tmp_path / "images")).images.digest
    assert other != found.images.digest


def test_parquet_files_of_images_alone_are_listed_where_no_class_is_wanted(tmp_path: Path):
    """For reference statistics, and to find the captions of their rows."""
    pq.write_table(pa.table({"image": [png(0), png(1)]}), tmp_path / "p.parquet")
    assert [entry.name for entry in list_images(str(tmp_path), labelled=False).entries] == ["row 0", "row 1"]
    with pytest.raises(ConfigError, match=r"p.parquet: no column label or cls; it has image"):
        list_images(str(tmp_path))


def altered(table: str, change: Callable[[list[dict[str, object]]], object]) -> Callable[[Path], CaptionedImages]:
    """A table in a file of this name, changed."""

    def make(folder: Path) -> CaptionedImages:
        rows: list[dict[str, object]] = [{"image": name, "text": text} for name, text in TEXTS.items()]
        change(rows)
        (path := folder.with_name(table)).write_text("\n".join(map(json.dumps, rows)))
        return list_captioned(str(images(folder)), str(path))

    return make


def without_one(folder: Path) -> CaptionedImages:
    sidecars(folder)
    (folder / "a" / "y.txt").unlink()
    return list_captioned(str(folder))


def with_(content: bytes, key: str | None = None) -> Callable[[Path], CaptionedImages]:
    """One caption's file holds this."""

    def make(folder: Path) -> CaptionedImages:
        (sidecars if key is None else json_beside)(folder)
        (folder / "w").with_suffix(".txt" if key is None else ".json").write_bytes(content)
        return list_captioned(str(folder), key=key)

    return make


def tar_without(folder: Path) -> CaptionedImages:
    tar(folder)
    return list_captioned(str(folder), key="caption")


def all_alike(folder: Path) -> CaptionedImages:
    for name in TEXTS:
        (images(folder) / name).with_suffix(".txt").write_text("a photo")
    return list_captioned(str(folder))


def of_shards_in_a_table(folder: Path) -> CaptionedImages:
    parquet(folder)
    return list_captioned(str(folder), "captions.csv")


def no_column(folder: Path) -> CaptionedImages:
    parquet(folder)
    return list_captioned(str(folder), key="label")


MISTAKES = [
    (without_one, "a/y.png: no caption: there is no y.txt beside it; see --captions"),
    (with_(b"  \n"), "w.txt: expected a caption, found '  \\n'"),
    (with_(b"\xff\xfe\x00"), "w.txt: not UTF-8 text"),
    (with_(b"x" * (2**20 + 1)), "w.txt: more than 1,048,576 bytes; expected a caption"),
    (with_(b"{}", "texts/1"), "w.json: no field 'texts/1' (it has nothing); see --caption-key"),
    (with_(b'{"texts": ["a", "b"]}', "texts"), "texts' is a list of 2; --caption-key texts/0 takes the first of it"),
    (with_(b"{", "texts/1"), "w.json: not JSON"),
    (tar_without, "00000.tar: a/x.json: no field 'caption' (it has nothing); see --caption-key"),
    (all_alike, "all images have the caption 'a photo'; expected at least 2, because negatives are the captions of"),
    (of_shards_in_a_table, "--captions captions.csv: is for images in folders; shards hold their own captions"),
    (no_column, "p.parquet: no column label; it has image, caption"),
    (altered("t.jsonl", lambda rows: rows.pop(0)), "t.jsonl: has no caption of "),
    (altered("t.jsonl", lambda rows: rows.append(rows[1])), "t.jsonl: row 5: a second caption of a/y.png"),
    (altered("t.jsonl", lambda rows: rows.append({"image": "q.png", "text": "q"})), "row 5: no image q.png in "),
    (altered("t.jsonl", lambda rows: rows[2].pop("image")), "t.jsonl: row 2: names no image; expected a field"),
    (altered("t.jsonl", lambda rows: rows[2].pop("text")), "t.jsonl: row 2: no field 'text' (it has image)"),
    (altered("t.jsonl", lambda rows: rows[2].update(text=["a", "b"])), "row 2: 'text' is a list of 2; --caption-key"),
    (altered("t.jsonl", lambda rows: rows[2].update(text="x \ud83d")), r"row 2: the caption 'x \ud83d' holds '\ud83d'"),
    (altered("t.json", len), "t.json: not a table of captions"),
    (altered("t.xlsx", len), "t.xlsx: expected .csv, .json, .jsonl or .parquet, or a folder of .jsonl files"),
]  # fmt: skip


@pytest.mark.parametrize(("make", "message"), MISTAKES, ids=range(len(MISTAKES)))
def test_a_caption_that_is_missing_is_one_line(
    make: Callable[[Path], CaptionedImages], message: str, tmp_path: Path
):  # fmt: skip
    with pytest.raises(ConfigError) as error:
        make(tmp_path / "images")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("form", [tar, parquet])
def test_shards_at_a_relative_path_are_read_from_another_folder(
    form: Callable[[Path], CaptionedImages], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """As a node's process reads them, which knows the path and not where the driver stands."""
    expected = form(tmp_path / "images")
    (tmp_path / "node").mkdir()

    def elsewhere(function: Callable[..., object], *arguments: Iterable[object]) -> list[object]:
        with monkeypatch.context() as there:
            there.chdir(tmp_path / "node")
            return [function(*values) for values in zip(*arguments, strict=True)]

    monkeypatch.chdir(tmp_path)
    found = list_captioned("images", each=elsewhere)
    assert found.captions == expected.captions
    entry = found.images.entries[1]
    arguments = [[value] for value in ("images", entry.path, entry.start, entry.length)]
    assert elsewhere(read_entry, *arguments) == [png(1)]


def test_the_table_that_img2dataset_leaves_beside_each_tar_is_passed_over(tmp_path: Path):
    tar(tmp_path / "images")
    columns = {"url": ["u"] * 5, "caption": ["c"] * 5, "key": ["0"] * 5}
    pq.write_table(pa.table(columns), tmp_path / "images" / "00000.parquet")
    found = list_captioned(str(tmp_path / "images"))
    assert (found.images.labels.tolist(), found.images.passed_over) == (NUMBERS, ((".parquet", 1),))
    # Not one that holds images, nor one beside no tar, which may be meant as a shard.
    pq.write_table(pa.table({"image": [png(0)], "caption": ["c"]}), tmp_path / "images" / "00000.parquet")
    assert len(list_captioned(str(tmp_path / "images")).images.entries) == 6
    pq.write_table(pa.table(columns), tmp_path / "images" / "00001.parquet")
    with pytest.raises(ConfigError, match=r"00001\.parquet: no column image or jpg or png; it has url, caption, key"):
        list_captioned(str(tmp_path / "images"))


def alike_but_for_their_endings(folder: Path) -> CaptionedImages:
    (images(folder) / "a/y.jpg").write_bytes(png(0))
    (table := folder.with_suffix(".json")).write_text(json.dumps({**TEXTS, "a/y.jpg": "a bus"}))
    return list_captioned(str(folder), str(table))


def a_tar_and_parquet_of_one_name(folder: Path) -> CaptionedImages:
    parquet(folder)
    with tarfile.open(folder / "p.tar", "w") as archive:
        for name, content in (("0.png", png(0)), ("0.txt", b"a bus")):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return list_captioned(str(folder))


@pytest.mark.parametrize("form", [alike_but_for_their_endings, a_tar_and_parquet_of_one_name])
def test_captions_whose_features_would_lie_in_one_file_are_refused_where_files_are_read(
    form: Callable[[Path], CaptionedImages], tmp_path: Path
):
    found = form(tmp_path / "images")  # which is right for a T5 that is run here
    assert "a bus" in found.texts
    with pytest.raises(ConfigError, match=r"(a/y|p/0)\.npy: would be the features of two captions"):
        FeatureFiles(str(tmp_path), found.captions)
