"""Small files that would become large ones in memory, or would never end: refused in a line that names the file."""

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
import pytest
import torch
from PIL import Image

from cca_ray.data.images import FORMATS, KINDS, decode
from cca_ray.data.listing import MOST_IMAGE_BYTES, list_images, read_entry
from cca_ray.data.tokens import MANIFEST, read_token_set
from cca_ray.errors import ConfigError
from cca_ray.evaluation.reference import Reference
from cca_ray.models.files import read_checkpoint
from cca_ray.space_file import load_config, read_yaml


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """What Python and NumPy allocate stays small."""
    tracemalloc.start()
    yield
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**24


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


@pytest.mark.parametrize("name", ["mu", "sigma_s", "features"])
def test_statistics_that_unpack_to_more_than_any_are_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "reference.npz"
    monkeypatch.setattr("cca_ray.evaluation.reference.MOST_BYTES", 2**23)  # for a test that takes no seconds
    np.savez(path, **{key: np.ones((2,) * n) for key, n in (("mu", 1), ("sigma", 2)) if key != name})
    archive = zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1)
    with archive, archive.open(f"{name}.npy", "w", force_zip64=True) as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": (2**20,)})
        for _ in range(2**3):
            file.write(bytes(2**20))
    with pytest.raises(ValueError, match=rf"{name}\.npy unpacks to [\d,]+ bytes") as error:
        Reference.load(path)
    assert one_line(error, "reference.npz")


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
