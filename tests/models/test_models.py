from dataclasses import replace
from pathlib import Path

import pytest
import torch

from cca_ray.models.family import Parts
from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.models.llamagen_family import LlamaGenFamily
from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig
from cca_ray.models.official import build, build_tokenizer, load_official, load_tokenizer, parameters, save_official
from cca_ray.registry import FAMILIES

SMALL = dict(num_classes=10, vocab_size=64, block_size=16)


@pytest.mark.parametrize(
    ("arguments", "overrides", "message"),
    [
        (("vqgan", "S"), {}, "unknown family 'vqgan': one of llamagen, "),
        (("llamagen", "XS"), {}, "unknown size 'XS' of llamagen: one of S, M, tiny, mini, small, medium, large, B, "),
        (("llamagen", "S"), {"depth": 3}, "unknown override 'depth'"),
        (("llamagen", "S"), {"block_size": 15}, "must be a square"),
        (("llamagen", "S"), {"image_size": 250}, "multiple of 16 pixels"),
        (("llamagen", "S"), {"dim": 18}, "multiple of 4 x n_head"),
    ],
)
def test_build_refuses_what_it_does_not_know(arguments: tuple[str, str], overrides: dict, message: str):
    with pytest.raises(ValueError, match=message):
        build(*arguments, **overrides)


@pytest.mark.parametrize(
    ("size", "count"),
    [("B", 110_888_448), ("L", 342_910_976), ("XL", 774_699_520), ("XXL", 1_410_972_672), ("3B", 3_096_659_200)],
)
@pytest.mark.parametrize(("pixels", "grid"), [(256, 16), (384, 24), (512, 32)])
def test_the_five_official_sizes_at_three_resolutions(size: str, count: int, pixels: int, grid: int):
    with torch.device("meta"):
        model = build("llamagen", size, image_size=pixels)
    assert parameters(model) == count
    assert (model.config.grid, model.config.block_size) == (grid, grid**2)
    assert model.rope.shape[0] == grid**2 + 1


class Tied(LlamaGen):
    def __init__(self, config: LlamaGenConfig):
        super().__init__(config)
        self.output.weight = self.tok_embeddings.weight


class SharedBlock(LlamaGenVQ):
    def __init__(self, config: VQConfig):
        super().__init__(config)
        self.decoder.norm_out = self.encoder.norm_out


class Tying(LlamaGenFamily):
    name = "tying"

    def parts(self) -> Parts:
        return replace(super().parts(), model=Tied, tokenizer=SharedBlock)


def test_tied_weights_which_loading_would_untie_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(FAMILIES.found, "tying", Tying())
    tied = r"family tying: Tied ties output\.weight to tok_embeddings\.weight, and loading unties them: give each"
    with pytest.raises(ValueError, match=tied) as error:
        build("tying", "S", **SMALL)
    assert "\n" not in str(error.value)
    save_official(build("llamagen", "S", **SMALL), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=tied):
        load_official("tying", "S", tmp_path / "model.pt")
    tokenizer = build_tokenizer("llamagen", codebook_size=32, ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
    save_official(tokenizer, tmp_path / "tokenizer.pt")
    with pytest.raises(ValueError, match=r"SharedBlock ties decoder\.norm_out\.weight to encoder\.norm_out\.weight"):
        load_tokenizer("tying", tmp_path / "tokenizer.pt")


def test_an_official_file_says_its_classes_codes_and_tokens(tmp_path: Path):
    state = build("llamagen", "S", **SMALL).state_dict()
    torch.save({"model": {**state, "freqs_cis": torch.zeros(17, 4, 2)}}, tmp_path / "weights.pt")
    model = load_official("llamagen", "S", tmp_path / "weights.pt")
    assert (model.config.num_classes, model.config.vocab_size, model.config.block_size) == (10, 64, 16)
    torch.testing.assert_close(model.rope, build("llamagen", "S", **SMALL).rope)
    with pytest.raises(ValueError, match=r"weights\.pt: its block_size is 16, not the 576 of llamagen S"):
        load_official("llamagen", "S", tmp_path / "weights.pt", image_size=384)
    with pytest.raises(ValueError, match=r"weights\.pt: its dim is 16, not the 24 of llamagen M"):
        load_official("llamagen", "M", tmp_path / "weights.pt")
    with pytest.raises(ValueError, match=r"its n_layer is 2, not the 12 of llamagen B"):
        load_official("llamagen", "B", tmp_path / "weights.pt")


def test_a_family_that_needs_its_tokenizer_asks_for_it(tmp_path: Path):
    save_official(build("var", "M", num_classes=10, vocab_size=32, patch_nums=(1, 2, 4)), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt: a model of var also needs its tokenizer's checkpoint"):
        load_official("var", "M", tmp_path / "model.pt")


def test_our_own_files_need_no_overrides(tmp_path: Path):
    model = build("llamagen", "S", **SMALL)
    save_official(model, tmp_path / "model.pt")
    save_official(model, tmp_path / "model.safetensors")
    again = load_official("llamagen", "S", tmp_path / "model.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    (tmp_path / "model.safetensors").unlink()
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
    with pytest.raises(ValueError, match="32 codes, but the model has 64 tokens"):
        load_official("llamagen", "S", tmp_path / "model.pt", tmp_path / "tokenizer.pt")
