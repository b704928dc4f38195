import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.cluster.placement import Load, ways_by_arithmetic
from cca_ray.evaluation.sampler import Decoding, sample_tokens
from cca_ray.models.condition import TextFeatures, Texts, nulled
from cca_ray.models.dropout import Dropout
from cca_ray.models.files import load_state
from cca_ray.models.likelihood import Scorer
from cca_ray.models.llamagen_t2i import LlamaGenT2I, LlamaGenT2IConfig
from cca_ray.models.llamagen_t2i_family import FAMILY
from cca_ray.models.official import build, configure, load_official, parameters
from cca_ray.space_file import load_config
from tests.cluster.placements import in_words
from tests.conftest import golden, golden_state
from tests.traffic import traffic

ROOT = Path(__file__).resolve().parents[2]

TINY = LlamaGenT2IConfig(
    dim=64, n_layer=2, n_head=4, vocab_size=64, block_size=16, multiple_of=32, cls_token_num=120, caption_dim=16
)
PROMPTS = [0, 1, 2, 4]  # of the official samples: of 120, 1, 30 and 7 words
CONTENT = golden("llamagen_t2i_tiny.npz")
TOKENS = torch.from_numpy(CONTENT["tokens"])


def text(null: bool | None = None) -> TextFeatures:
    """Of the golden file; all or none of it the null condition, if that is said."""
    features, mask, masked = (torch.from_numpy(CONTENT[name]) for name in ("features", "mask", "null"))
    return TextFeatures(features, mask, masked if null is None else torch.full_like(masked, null))


def some(of: TextFeatures, rows: list[int]) -> TextFeatures:
    return of.each(lambda tensor: tensor[rows])


@pytest.fixture(scope="module")
def tiny() -> LlamaGenT2I:
    model = LlamaGenT2I(TINY)
    load_state(model, golden_state(CONTENT), "golden")
    return model.requires_grad_(False)


def test_logits_are_the_official_ones(tiny: LlamaGenT2I):
    """Null conditions, in two of six rows, see as much of the null text as their captions have words."""
    logits = tiny(text(), TOKENS)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, CONTENT["logits"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Scorer(tiny)(text(), TOKENS), CONTENT["logps"].sum(1), rtol=1e-5)
    np.testing.assert_allclose(-Scorer(tiny)(text(), TOKENS).sum() / TOKENS.numel(), CONTENT["loss"], rtol=1e-5)


@pytest.mark.parametrize("scale", [1.0, 2.0, 7.5])
def test_greedy_samples_are_the_official_ones(tiny: LlamaGenT2I, scale: float):
    tokens = sample_tokens(
        tiny, some(text(null=False), PROMPTS), torch.rand(4, 16, dtype=torch.float64), Decoding(scale, top_k=1)
    )
    np.testing.assert_array_equal(tokens, CONTENT[f"greedy_cfg{scale}"])


def test_names_and_shapes_are_the_official_ones(tiny: LlamaGenT2I):
    """Of the published size too, whose two files, for 256 and 512 pixels, differ in neither."""
    expected = json.loads(str(CONTENT["manifest"]))
    assert {name: list(tensor.shape) for name, tensor in tiny.state_dict().items()} == expected
    for side, length in ((256, 256), (512, 1024)):
        with torch.device("meta"):
            model = build("llamagen_t2i", "XL", image_size=side)
        expected = json.loads(str(CONTENT["manifest_XL"]))
        assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == expected
        assert parameters(model) == CONTENT["params_XL"]
        assert (model.config.block_size, model.takes) == (length, Texts(120, 2048))


def test_an_official_file_says_what_its_model_is_and_is_loaded_strictly(tmp_path):
    state, more = golden_state(CONTENT), dict(n_head=4, multiple_of=32, n_layer=2, dim=64)
    torch.save({"model": state, "steps": 5}, tmp_path / "t2i.pt")
    assert LlamaGenT2IConfig(n_head=4, multiple_of=32, block_size=16, **FAMILY.content_of(state)) == TINY
    load = dict(family="llamagen_t2i", size="S", checkpoint=tmp_path / "t2i.pt", length=16)
    with pytest.raises(ValueError, match=r"t2i\.pt: its dim is 64, not the 16 of llamagen_t2i S"):
        load_official(**load)
    model = load_official(**load, **more)
    np.testing.assert_allclose(Scorer(model)(text(), TOKENS).detach(), CONTENT["logps"].sum(1), rtol=1e-5)
    torch.save({"model": {**state, "cls_embedding.extra": torch.zeros(1)}}, tmp_path / "t2i.pt")
    with pytest.raises(ValueError, match=r"unexpected cls_embedding\.extra"):
        load_official(**load, **more)
    with pytest.raises(ValueError, match=r"missing cls_embedding\.embedding_table\.weight"):
        load_official(**{**load, "family": "llamagen"}, **more)


def whole_file(folder: Path, **changes: list[int] | None) -> Path:
    """With the names and shapes of XL's official file, but every tensor is one zero. `changes`: None leaves it out."""
    shapes = {**json.loads(str(CONTENT["manifest_XL"])), **changes}
    state = {name: torch.zeros(1).expand(shape) for name, shape in shapes.items() if shape is not None}
    torch.save({"model": state, "steps": 5}, path := folder / "t2i_XL.pt")
    return path


@pytest.mark.parametrize("length", [256, 1024])
def test_both_official_files_of_xl_are_loaded_strictly(tmp_path: Path, length: int):
    """Of 256 and of 512 pixels, which only the number of tokens tells apart."""
    model = load_official("llamagen_t2i", "XL", whole_file(tmp_path), length=length)
    assert (model.config.block_size, parameters(model)) == (length, CONTENT["params_XL"])
    assert {name: list(tensor.shape) for name, tensor in model.state_dict().items()} == json.loads(
        str(CONTENT["manifest_XL"])
    )
    assert not any(parameter.is_meta for parameter in model.parameters())


@pytest.mark.parametrize("length", [256, 1024])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers.35.attention.wo.weight": None}, "missing layers.35.attention.wo.weight"),
        ({"layers.35.attention.wo.bias": [1280]}, "unexpected layers.35.attention.wo.bias"),
        ({"layers.7.feed_forward.w1.weight": [3413, 1280]}, "layers.7.feed_forward.w1.weight is [3413, 1280], not"),
        ({"cls_embedding.cap_proj.fc1.weight": [1280, 4096]}, "cap_proj.fc1.weight is [1280, 4096], not [1280, 2048]"),
    ],
)
def test_a_file_of_xl_that_differs_in_one_tensor_is_refused(
    tmp_path: Path, length: int, changes: dict[str, list[int] | None], message: str
):
    with pytest.raises(ValueError, match=re.escape(message)):
        load_official("llamagen_t2i", "XL", whole_file(tmp_path, **changes), length=length)


def test_what_stands_in_empty_positions_is_seen_by_nobody(tiny: LlamaGenT2I):
    given = text()
    noise = torch.randn(given.features.shape, generator=torch.Generator().manual_seed(0))
    other = replace(given, features=torch.where(given.mask[..., None], given.features, noise))
    torch.testing.assert_close(tiny(other, TOKENS), tiny(given, TOKENS))
    shorter = replace(given, mask=given.mask & (torch.arange(120) == 119))
    assert not torch.allclose(tiny(shorter, TOKENS)[0], tiny(given, TOKENS)[0])


def test_the_null_condition_reads_no_word(tiny: LlamaGenT2I):
    given = nulled(text(), tiny.null_label)
    assert isinstance(given, TextFeatures)
    other = replace(given, features=torch.zeros_like(given.features))
    assert torch.equal(tiny(other, TOKENS), tiny(given, TOKENS))
    assert not torch.allclose(tiny(text(null=False), TOKENS), tiny(given, TOKENS))


def test_a_model_begins_as_the_official_one_does():
    model = LlamaGenT2I(TINY)
    model.initialize(torch.Generator().manual_seed(1))
    null = model.get_buffer("cls_embedding.uncond_embedding")
    assert null.std().item() == pytest.approx(16**-0.5, rel=0.1)
    assert model.get_parameter("cls_embedding.cap_proj.fc1.weight").std().item() == pytest.approx(0.02, rel=0.1)
    assert not model.output.weight.any()
    assert "cls_embedding.uncond_embedding" not in dict(model.named_parameters())  # nothing trains it


@pytest.mark.parametrize("fields", [{"num_classes": 10}, {"cls_token_num": 0}, {"caption_dim": 0}])
def test_settings_that_build_no_model_are_refused(fields: dict):
    with pytest.raises(ValueError, match="texts, not classes"):
        replace(TINY, **fields)


def bytes_of_training(layers: int, rows: int) -> int:
    """In bfloat16, with dropout, of all but products of matrices and attention."""
    own = dict(dim=768, n_head=12, n_layer=layers, multiple_of=256, vocab_size=32, block_size=16)
    model = build("llamagen_t2i", "S", **own, caption_dim=16, cls_token_num=24)
    condition, tokens = model.takes.blank(rows, torch.device("cpu")), torch.zeros(rows, 16).long()
    dropout = Dropout(0.1, torch.arange(rows, dtype=torch.int32))

    def there_and_back() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.hidden(condition, tokens, dropout)
        hidden.sum().backward()

    return traffic(there_and_back).bytes


def test_a_layer_moves_as_many_bytes_as_the_hours_of_the_documentation_count():
    two, one = (bytes_of_training(layers, 4) - bytes_of_training(layers, 2) for layers in (2, 1))
    assert (two - one) / (2 * (24 + 16 - 1) * 768) == pytest.approx(1001, rel=0.002)
    assert "1,001 bytes a channel, layer and position" in (ROOT / "docs" / "captions.md").read_text()


@pytest.mark.parametrize(("pixels", "codes"), [(256, 256), (512, 1024)])
def test_the_documentation_and_the_file_have_the_ways_of_the_arithmetic(pixels: int, codes: int):
    """Text takes positions too."""
    shape = configure("llamagen_t2i", "XL", block_size=codes)
    with torch.device("meta"):
        count = parameters(LlamaGenT2I(shape))
    load = Load(count, 36, 1280, 120 + codes, activation_bytes=FAMILY.kept_bytes(shape))
    found = {way.type: way for way in ways_by_arithmetic(load, 256)}
    cells = [in_words(found[type_], load) for type_ in ("A40", "L40S", "A100", "H100")]
    page = (ROOT / "docs" / "captions.md").read_text()
    assert f"| {pixels} pixels | {' | '.join(cells)} |" in page
    if pixels == 256:
        config = load_config(path := ROOT / "search_spaces" / "llamagen_t2i_xl.yaml")
        assert config.placement.accelerators == tuple(found.values())
        assert f"({count / 1e6:.1f} M parameters" in path.read_text()
