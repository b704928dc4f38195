import argparse
from pathlib import Path

import pytest
import torch

from cca_ray.models import build, build_tokenizer, load_official, load_tokenizer, read_checkpoint, save_official

SMALL = dict(num_classes=10, vocab_size=64, block_size=16)


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("vqgan", "S"), {}, "unknown family 'vqgan': one of llamagen"),
        (("llamagen", "XS"), {}, "unknown size 'XS' of llamagen: one of S, M, B, L, XL, XXL, 3B"),
        (("llamagen", "S"), {"depth": 3}, "unknown override 'depth'"),
        (("llamagen", "S"), {"block_size": 15}, "must be a square"),
        (("llamagen", "S"), {"dim": 18}, "multiple of 4 x n_head"),
    ],
)
def test_build_refuses_what_it_does_not_know(arguments: tuple[str, str], overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **overrides)


@pytest.mark.parametrize(("size", "pixels", "grid"), [("B", 256, 16), ("L", 384, 24), ("3B", 512, 32)])
def test_image_size_sets_the_grid(size: str, pixels: int, grid: int):
    with torch.device("meta"):
        assert build("llamagen", size, image_size=pixels).config.grid == grid


@pytest.mark.parametrize(
    "wrap", [lambda s: {"model": s}, lambda s: s, lambda s: {"model": {**s, "freqs_cis": s["norm.weight"]}}]
)
def test_official_files_of_every_form_are_read(tmp_path: Path, wrap):
    model = build("llamagen", "S", **SMALL)
    torch.save(wrap(model.state_dict()), tmp_path / "weights.pt")
    again = load_official("llamagen", "S", tmp_path / "weights.pt", **SMALL)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))


def test_our_own_files_need_no_overrides(tmp_path: Path):
    model = build("llamagen", "S", **SMALL)
    save_official(model, tmp_path / "model.pt")
    assert load_official("llamagen", "S", tmp_path / "model.pt").config == model.config
    assert set(torch.load(tmp_path / "model.pt")["model"]) == set(model.state_dict())
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt"]


def test_a_tokenizer_with_another_codebook_is_refused(tmp_path: Path):
    save_official(build("llamagen", "S", **SMALL), tmp_path / "model.pt")
    tokenizer = build_tokenizer("llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), z_channels=16, norm_groups=8)
    save_official(tokenizer, tmp_path / "tokenizer.pt")
    assert load_tokenizer("llamagen", tmp_path / "tokenizer.pt").config == tokenizer.config
    with pytest.raises(ValueError, match="not a VQ checkpoint"):
        load_tokenizer("llamagen", tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a LlamaGen checkpoint"):
        load_official("llamagen", "S", tmp_path / "tokenizer.pt")
    with pytest.raises(ValueError, match="not a VQ checkpoint"):
        load_tokenizer("llamagen", tmp_path / "model.pt")
    with pytest.raises(ValueError, match="not a LlamaGen checkpoint"):
        load_official("llamagen", "S", tmp_path / "tokenizer.pt")
    with pytest.raises(ValueError, match="32 codes, but the model has 64 tokens"):
        load_official("llamagen", "S", tmp_path / "model.pt", tmp_path / "tokenizer.pt")


def test_every_misfit_is_listed_in_one_error(tmp_path: Path):
    state = build("llamagen", "S", **SMALL).state_dict()
    state["output.weight"] = torch.zeros(3, 3)
    state["extra"] = state.pop("norm.weight")
    torch.save(state, tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"missing norm.weight; unexpected extra; output.weight is \[3, 3\], not"):
        load_official("llamagen", "S", tmp_path / "weights.pt", **SMALL)


@pytest.mark.parametrize("kind", ["absent", "empty", "text", "truncated", "pickle", "no tensors"])
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "weights.pt"
    if kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        torch.save(build("llamagen", "S", **SMALL).state_dict(), path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "pickle":
        torch.save({"model": argparse.Namespace}, path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"weights\.pt: ") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
