"""Small files that would become large ones in memory, or would never end: refused in a line that names the file."""

import hashlib
import io
import json
import os
import struct
import tarfile
import tracemalloc
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from cca_ray.data.image_files import MOST_IMAGE_BYTES, read_entry
from cca_ray.data.images import FORMATS, KINDS, decode
from cca_ray.data.listing import list_images
from cca_ray.data.official_npy import load_npy
from cca_ray.data.tokens import MANIFEST, read_token_set
from cca_ray.errors import ConfigError
from cca_ray.evaluation.npz import open_images
from cca_ray.evaluation.reference import Reference
from cca_ray.models.files import read_checkpoint
from cca_ray.space_file import load_config, read_yaml

POOL = pa.proxy_memory_pool(pa.default_memory_pool())  # counts; outlives whatever is made in it


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What Python, NumPy and Arrow allocate stays small."""
    before = pa.default_memory_pool()
    pa.set_memory_pool(POOL)
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pa.set_memory_pool(before)
    assert max(peak, POOL.max_memory()) < 2**24


def one_line(error: pytest.ExceptionInfo[ValueError], name: str) -> bool:
    return name in str(error.value) and "\n" not in str(error.value)


DOUBLING = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 24))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (DOUBLING, "aliases written out"),
        (DOUBLING.replace("[", "{k: ").replace(", ", ", l: ").replace("]", "}"), "aliases written out"),
        ("[" * 1_000, "nested too deeply"),
        ("{a: " * 1_000 + "1" + "}" * 1_000, "nested too deeply"),
        ("a: &a [*a]", "nested too deeply, or within itself"),
        ("#" * 2**21, "characters"),
    ],
    ids=["lists", "mappings", "open", "closed", "circle", "long"],
)
def test_yaml_that_explodes_is_refused(text: str, complaint: str, tmp_path: Path):
    (tmp_path / "space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=complaint) as error:
        load_config(tmp_path / "space.yaml")
    assert one_line(error, "space.yaml")


def test_aliases_that_a_person_writes_are_read():
    assert read_yaml("a: &a {b: 1}\nc: *a\nd: {<<: *a, e: 2}", "x") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }
    assert read_yaml("", "x") is None


@pytest.mark.parametrize("key", ["GNU.sparse.realsize", "GNU.sparse.size"])
def test_a_member_that_claims_more_than_is_there_is_refused(key: str, tmp_path: Path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("ant/0.png", "bee/1.png"):
            member = tarfile.TarInfo(name)
            member.pax_headers = {key: str(875 * 10**6)}
            member.size = 10
            archive.addfile(member, io.BytesIO(b"x" * 10))
    with pytest.raises(ConfigError, match=r"ant/0\.png is stored sparse") as error:
        list_images(str(tmp_path / "s.tar"))
    assert one_line(error, "s.tar")


def test_a_file_that_is_larger_than_any_image_is_not_read(tmp_path: Path):
    with (tmp_path / "x.png").open("wb") as file:
        os.truncate(file.fileno(), MOST_IMAGE_BYTES + 1)  # a hole: it takes no room on the disk
    with pytest.raises(ValueError, match="an image has at most"):
        read_entry(str(tmp_path), str(tmp_path / "x.png"), 0, MOST_IMAGE_BYTES + 1)


def test_an_image_that_unpacks_to_too_many_pixels_is_unreadable():
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    bomb = (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0" * 1000)) + chunk(b"IEND", b"")
    )
    with pytest.raises(ValueError, match=r"not a readable image .*DecompressionBomb"):
        decode(bomb)


def test_only_the_kinds_whose_names_are_read_are_decoded():
    for suffix, kind in KINDS.items():
        assert Image.registered_extensions()[suffix] == kind
    for kind in FORMATS:
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), "red").save(stream, kind)
        assert decode(stream.getvalue()).size == (16, 16)
    for kind in ("EPS", "PDF", "TGA", "ICO", "PCX", "SGI"):
        stream = io.BytesIO()
        Image.new("RGB", (16, 16), "red").save(stream, kind)
        with pytest.raises(ValueError, match="not an image of any known kind"):
            decode(stream.getvalue())


def npy(path: Path, name: str, shape: tuple[int, ...], mebibytes: int = 0, kind: str = "<f8", order: str = "C") -> None:
    """Add to an `.npz` an array that claims to be of this shape, and holds so much nothing, which packs well."""
    archive = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        header = {"descr": kind, "fortran_order": order == "F", "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for _ in range(mebibytes):
            file.write(bytes(2**20))


@pytest.mark.parametrize("shape", [(2**21,), (10**12,), (10**12, 10**12)])
@pytest.mark.parametrize("name", ["mu", "sigma_s", "features"])
def test_statistics_that_unpack_to_more_than_any_are_refused(
    name: str, shape: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "reference.npz"
    monkeypatch.setattr("cca_ray.storage.arrays.MOST_BYTES", 2**23)  # for a test that takes no seconds
    np.savez(path, **{key: np.ones((2,) * n) for key, n in (("mu", 1), ("sigma", 2)) if key != name})
    npy(path, name, shape, mebibytes=16)
    with pytest.raises(ValueError, match=rf"{name}\.npy: it unpacks to [\d,]+ bytes, more than 8,388,608") as error:
        Reference.load(path)
    assert one_line(error, "reference.npz")


@pytest.mark.parametrize(
    ("shape", "order", "complaint"),
    [
        ((10**12, 8, 8, 3), "C", "unpacks to 192,000,000,000,000 bytes"),
        ((2, 1_500, 1_500, 3), "C", "more than 8,388,608"),
        ((2**10, 64, 64, 3), "F", "more than 8,388,608; save it in C's order"),
    ],
    ids=["many", "large", "scattered"],
)
def test_images_that_are_more_than_the_file_can_hold_are_refused(
    shape: tuple[int, ...], order: str, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("cca_ray.storage.arrays.MOST_BYTES", 2**23)
    npy(tmp_path / "images.npz", "arr_0", shape, 16, "|u1", order)
    with pytest.raises(ConfigError, match=complaint) as error:
        open_images(tmp_path / "images.npz")
    assert one_line(error, "images.npz")


@pytest.mark.parametrize("header", ["shape", "length"])
def test_codes_that_claim_more_than_an_image_has_are_refused(header: str, tmp_path: Path):
    with (tmp_path / "0.npy").open("wb") as file:
        if header == "shape":
            np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": (10**11,)})
        else:  # of the header itself
            file.write(b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"))
        file.truncate(2**32)  # a hole: as if they were all there
    with pytest.raises(ConfigError, match=r"it unpacks to [\d,]+ bytes|its header claims") as error:
        load_npy(tmp_path / "0.npy")
    assert one_line(error, "0.npy")


def shard(path: Path, images: pa.Array, labels: pa.Array) -> str:
    pq.write_table(pa.table({"image": images, "label": labels}), path, compression="zstd", store_schema=False)
    return str(path)


@pytest.mark.parametrize("label", [0, "x" * 100_000])
def test_a_shard_that_claims_more_images_than_it_has_bytes_is_refused(label: int | str, tmp_path: Path):
    nothing = pa.array([b""]).dictionary_encode()
    many = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**20, np.int8)), nothing.dictionary)
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(2**20, np.int8)), pa.array([label]))
    path = shard(tmp_path / "s.parquet", many, names)
    assert os.path.getsize(path) < 2**20
    with pytest.raises(ConfigError, match="claims 1,048,576 images, which do not fit") as error:
        list_images(path)
    assert one_line(error, "s.parquet")


def test_a_name_of_a_class_that_is_long_and_comes_often_is_held_once_and_refused(tmp_path: Path):
    names = pa.DictionaryArray.from_arrays(pa.array(np.zeros(200, np.int8)), pa.array(["x" * 2**20]))
    images = pa.array([os.urandom(64) for _ in range(200)])
    path = shard(tmp_path / "s.parquet", images, names)
    with pytest.raises(
        ConfigError, match=r"the class 'x{40}\.\.\.' has 1,048,576 characters; expected at most 1,000"
    ) as error:
        list_images(path)
    assert one_line(error, "s.parquet")


def test_a_row_group_that_unpacks_to_many_times_its_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("cca_ray.data.parquet_shards.MOST_GROUP_BYTES", 2**22)
    images = pa.DictionaryArray.from_arrays(pa.array(np.zeros(10_000, np.int8)), pa.array([bytes(2**18)]))
    path = shard(tmp_path / "s.parquet", images, pa.array(range(10_000)))
    with pytest.raises(ConfigError, match="row group 0 unpacks to many times what the file holds") as error:
        read_entry(path, path, 0, 0)
    assert one_line(error, "s.parquet")


def test_a_token_set_whose_parts_hold_more_than_it_says_is_refused(tmp_path: Path):
    tokens = pa.FixedSizeListArray.from_arrays(pa.array(np.zeros(2**18, np.uint16)), 4)
    pq.write_table(
        pa.table({"label": pa.array(np.zeros(2**16, np.int32)), "tokens": tokens}), tmp_path / "part.parquet"
    )
    content = (tmp_path / "part.parquet").read_bytes()
    meta = {"tokenizer": "t", "codebook_size": 8, "length": 4, "crops": 1, "image_size": 8, "augmentations": ["centre"],
            "class_names": ["a"]}  # fmt: skip
    part = {"name": "part.parquet", "rows": 1, "sha256": hashlib.sha256(content).hexdigest()}
    (tmp_path / MANIFEST).write_text(json.dumps({"digest": "0" * 16, "meta": meta, "parts": [part]}))
    with pytest.raises(ValueError, match=r"has \[65536, 262144\] labels and tokens, not those") as error:
        read_token_set(tmp_path)
    assert one_line(error, "part.parquet")


def test_a_checkpoint_that_unpacks_is_refused(tmp_path: Path):
    torch.save({"w": torch.zeros(4)}, tmp_path / "plain.pt")
    assert read_checkpoint(tmp_path / "plain.pt")[0]["w"].tolist() == [0] * 4
    packed = zipfile.ZipFile(tmp_path / "packed.pt", "w", zipfile.ZIP_DEFLATED)
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, packed:
        for member in plain.infolist():
            packed.writestr(member.filename, plain.read(member) + bytes(2**20) * member.filename.endswith(".pkl"))
    with pytest.raises(ValueError, match=r"is compressed, which torch\.save does not do") as error:
        read_checkpoint(tmp_path / "packed.pt")
    assert one_line(error, "packed.pt")


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path):
    nested = "[" * 100_000 + "]" * 100_000
    (tmp_path / MANIFEST).write_text(nested)
    with pytest.raises(ValueError, match="not a token manifest") as error:
        read_token_set(tmp_path)
    assert one_line(error, MANIFEST)
    header = json.dumps(
        {"__metadata__": {"config": nested}, "w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    )
    content = len(header).to_bytes(8, "little") + header.encode() + bytes(4)
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="not a readable checkpoint") as error:
        read_checkpoint(tmp_path / "x.safetensors")
    assert one_line(error, "x.safetensors")
