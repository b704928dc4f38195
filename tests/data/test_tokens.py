import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from cca_ray.data import tokens
from cca_ray.data.tokens import (
    Counts,
    TokenMeta,
    count_images,
    encode_images,
    part_path,
    read_token_set,
    to_input,
    write_part,
    write_token_set,
)
from cca_ray.errors import ConfigError
from cca_ray.models.official import build_tokenizer

META = TokenMeta(
    tokenizer="abc", codebook_size=300, length=4, crops=2, image_size=8, augmentations=("a", "b"),
    class_names=("x", "y"),
)  # fmt: skip
RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 2, 10)
TOKENS = RNG.integers(0, 300, (10, 2, 4)).astype(np.uint16)


def write(folder: Path, meta: TokenMeta = META) -> str:
    return write_token_set(folder, [(LABELS[:6], TOKENS[:6]), (LABELS[6:], TOKENS[6:])], meta)


def test_images_move_as_bytes_and_the_next_while_some_are_encoded(monkeypatch: pytest.MonkeyPatch):
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    tokenizer = build_tokenizer("llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    events, real = list[tuple[Any, ...]](), tokenizer.encode

    def move(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        events.append(("moved", tensor.dtype, len(tensor)))
        return tensor

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        events.append(("encoded", len(pixels)))
        return real(pixels)

    monkeypatch.setattr(tokens, "moved", move)
    monkeypatch.setattr(tokenizer, "encode", encode)
    made = np.concatenate(list(encode_images(tokenizer, images[:, :, ::-1], 2)))
    sizes = [("moved", torch.uint8, 2), ("moved", torch.uint8, 2), ("encoded", 2), ("moved", torch.uint8, 1)]
    assert events == [*sizes, ("encoded", 2), ("encoded", 1)]
    np.testing.assert_array_equal(made, real(to_input(images[:, :, ::-1])))
    assert list(encode_images(tokenizer, images[:0], 2)) == []


def test_a_pixel_is_scaled_as_the_official_code_does():
    every = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    assert torch.equal(to_input(every)[0, 0].flatten(), torch.arange(256.0) / 127.5 - 1)


def test_what_is_written_is_read(tmp_path: Path):
    digest = write(tmp_path)
    data = read_token_set(tmp_path)
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(data.tokens, TOKENS)
    assert (data.tokens.dtype, data.meta, data.digest) == (np.uint16, META, digest)


def test_a_process_that_reads_a_set_and_ends_ends_well(tmp_path: Path):
    """pyarrow's dataset scanner aborted it, about once in two."""
    write(tmp_path)
    code = f"from cca_ray.data.tokens import read_token_set; read_token_set({str(tmp_path)!r})"
    for _ in range(4):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
        assert (done.returncode, done.stderr) == (0, "")


def test_a_large_set_is_unpacked_once_and_mapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    digest = write(tmp_path / "set")
    first = read_token_set(tmp_path / "set", large=10)
    (tmp_path / "set" / "part-00000.parquet").unlink()  # the second reading needs it no more
    second = read_token_set(tmp_path / "set", large=10)
    for data in (first, second):
        assert isinstance(data.tokens, np.memmap)
        np.testing.assert_array_equal(data.tokens, TOKENS)
        np.testing.assert_array_equal(data.labels, LABELS)
    assert sorted(p.name for p in (tmp_path / "cache" / digest).iterdir()) == ["labels.npy", "lock", "tokens.npy"]


def test_an_unpacking_that_was_cut_short_is_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CCA_RAY_CACHE", str(tmp_path / "cache"))
    digest = write(tmp_path / "set")
    folder = tmp_path / "cache" / digest
    folder.mkdir(parents=True)
    np.save(folder / "tokens.npy", np.zeros((10, 2, 4), np.uint16))
    np.testing.assert_array_equal(read_token_set(tmp_path / "set", large=10).tokens, TOKENS)


def test_every_part_says_what_its_tokens_mean(tmp_path: Path):
    write(tmp_path)
    schema = pq.read_schema(tmp_path / "part-00001.parquet")
    assert TokenMeta.model_validate_json(schema.metadata[b"cca_ray"]) == META
    assert str(schema.field("tokens").type.value_type) == "uint16"


def test_the_digest_follows_the_content(tmp_path: Path):
    assert write(tmp_path / "a") == write(tmp_path / "b")
    assert write(tmp_path / "a") != write(tmp_path / "c", META.model_copy(update={"tokenizer": "def"}))


def test_a_set_that_was_cut_short_is_never_read(tmp_path: Path):
    def breaks():
        yield LABELS[:6], TOKENS[:6]
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_token_set(tmp_path, breaks(), META)
    with pytest.raises(ValueError, match="no finished token set"):
        read_token_set(tmp_path)


@pytest.mark.parametrize("harm", ["remove", "truncate", "flip"])
def test_a_part_that_changed_is_an_error_that_names_it(tmp_path: Path, harm: str):
    write(tmp_path)
    part = tmp_path / "part-00001.parquet"
    content = bytearray(part.read_bytes())
    if harm == "remove":
        part.unlink()
    else:
        content[len(content) // 2] ^= 255
        part.write_bytes(content[:100] if harm == "truncate" else content)
    with pytest.raises(ValueError, match=r"part-00001\.parquet: missing, or not what the manifest says"):
        read_token_set(tmp_path)


def test_a_damaged_manifest_is_an_error_that_names_it(tmp_path: Path):
    write(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match=r"manifest\.json: not a token manifest"):
        read_token_set(tmp_path)


def parts_with(folder: Path, labels: list[int]) -> None:
    write_part(part_path(folder, 0), np.array(labels, dtype=np.int64), np.zeros((len(labels), 2, 4), np.uint16), META)


def test_what_became_of_the_images_is_counted(tmp_path: Path):
    parts_with(tmp_path, [0, 0, 0, 1])
    counts = count_images(tmp_path, META, 1, np.array([0, 0, 0, 0, 1, 1]), {".heic": 2}, allow_empty=False)
    assert counts == Counts(6, 4, 2, 1, "y", {".heic": 2})
    assert str(counts) == (
        "6 images: 4 taken, 2 unreadable; at least 1 a class (y); 2 files are no images by their names: 2 .heic"
    )


def test_a_set_that_lost_all_of_a_class_is_refused_unless_that_is_allowed(tmp_path: Path):
    parts_with(tmp_path, [0, 0])
    seen = np.array([0, 0, 1, 1])
    with pytest.raises(ConfigError, match="no image of the class 'y' can be read"):
        count_images(tmp_path, META, 1, seen, {}, allow_empty=False)
    counts = count_images(tmp_path, META, 1, seen, {}, allow_empty=True)
    assert (counts.fewest, counts.fewest_class) == (0, "y")


@pytest.mark.parametrize("allow_empty", [False, True])
def test_a_set_that_lost_all_images_is_refused(tmp_path: Path, allow_empty: bool):
    parts_with(tmp_path, [])
    with pytest.raises(ConfigError, match="not one of 4 images can be read"):
        count_images(tmp_path, META, 1, np.array([0, 0, 1, 1]), {}, allow_empty)
