"""What every family promises to the sampler, the objective and the worker."""

from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.evaluation.sampler import Decoder, Decoding, GraphDecoder, decode_images, sample_tokens, uniforms
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import Model, Tokenizer, build, build_tokenizer, load_official, load_tokenizer, save_official
from cca_ray.models.likelihood import Scorer

SMALL = dict(ch=8, ch_mult=(1, 2), num_res_blocks=1, norm_groups=8)
TOKENIZERS = {
    "llamagen": dict(codebook_size=32, z_channels=16, **SMALL),
    "var": dict(vocab_size=32, z_channels=8, patch_nums=(1, 2, 4), **SMALL),
}
MODELS = {"llamagen": dict(block_size=16), "var": dict(code_dim=8, patch_nums=(1, 2, 4))}
LENGTH = {"llamagen": 16, "var": 21}
Pair = tuple[str, Model, Tokenizer]


@pytest.fixture(params=list(MODELS), scope="module")
def pair(request: pytest.FixtureRequest) -> Pair:
    """Random weights, the head's and the gains' too, so that everything matters."""
    family = request.param
    torch.manual_seed(0)
    tokenizer = build_tokenizer(family, **TOKENIZERS[family]).requires_grad_(False)
    model = build(family, "S", tokenizer, num_classes=10, vocab_size=32, **MODELS[family]).requires_grad_(False)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return family, model, tokenizer


def some(pair: Pair, count: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.arange(count) % 11, torch.randint(32, (count, LENGTH[pair[0]]), generator=generator)


def test_an_image_is_as_many_tokens_as_the_model_reads(pair: Pair):
    family, model, tokenizer = pair
    tokens = tokenizer.encode(torch.rand(2, 3, 8, 8) * 2 - 1)
    assert tokens.shape == (2, LENGTH[family])
    assert sum(model.decode_steps) == LENGTH[family] == tokenizer.config.length(8)
    assert tokenizer.config.codebook_size == 32
    assert tokenizer.decode(tokens).shape == (2, 3, 8, 8)
    assert decode_images(tokenizer, tokens).dtype == torch.uint8


def test_logits_have_a_row_for_every_token(pair: Pair):
    labels, tokens = some(pair)
    logits = pair[1](labels, tokens)
    assert logits.shape == (*tokens.shape, 32)
    assert logits.dtype == torch.float32


def test_a_token_changes_no_logit_of_its_own_step_or_an_earlier_one(pair: Pair):
    _, model, _ = pair
    labels, tokens = some(pair, 1)
    before, begin = model(labels, tokens), 0
    for count in model.decode_steps[:-1]:
        changed = tokens.clone()
        changed[0, begin] = (changed[0, begin] + 1) % 32
        after, begin = model(labels, changed), begin + count
        torch.testing.assert_close(after[:, :begin], before[:, :begin])
        assert not torch.allclose(after[:, begin], before[:, begin])


def test_the_null_label_is_a_condition_of_its_own(pair: Pair):
    _, model, _ = pair
    _, tokens = some(pair, 1)
    assert model.null_label == 10
    null, first = model(torch.tensor([10]), tokens), model(torch.tensor([0]), tokens)
    assert not torch.allclose(null, first)


def test_decoding_with_the_cache_equals_the_whole_sequence(pair: Pair):
    _, model, _ = pair
    labels, tokens = some(pair)
    cache, logits, begin, last = model.new_cache(len(labels)), [], 0, None
    for step, count in enumerate(model.decode_steps):
        logits.append(model.decode(labels, last, step, cache))
        last, begin = tokens[:, begin : begin + count], begin + count
    torch.testing.assert_close(torch.cat(logits, dim=1), model(labels, tokens), rtol=1e-4, atol=1e-4)


def test_guidance_of_scale_1_is_no_guidance(pair: Pair):
    _, model, _ = pair
    labels, noise = torch.arange(8), uniforms(0, np.arange(8), LENGTH[pair[0]])
    free = sample_tokens(model, labels, noise, Decoding(1.0))
    assert torch.equal(sample_tokens(model, labels, noise, Decoding(1.0 + 1e-12)), free)
    assert not torch.equal(sample_tokens(model, labels, noise, Decoding(3.0)), free)


def test_without_guidance_one_branch_is_run(pair: Pair):
    _, model, _ = pair
    rows = []
    embedding = model.cls_embedding.embedding_table if pair[0] == "llamagen" else model.class_emb
    handle = embedding.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    noise = uniforms(0, np.arange(3), LENGTH[pair[0]])
    sample_tokens(model, torch.arange(3), noise, Decoding(1.0))
    handle.remove()
    assert set(rows) == {3}


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_an_image_is_the_same_whatever_the_batch_and_the_room(pair: Pair, scale: float):
    _, model, _ = pair
    labels, noise = torch.arange(9), uniforms(0, np.arange(9), LENGTH[pair[0]])
    whole = sample_tokens(model, labels, noise, Decoding(scale, top_k=20, top_p=0.9))
    little = sample_tokens(model, labels, noise, Decoding(scale, top_k=20, top_p=0.9), cache=4 * model.cache_bytes)
    assert torch.equal(little, whole)
    assert torch.equal(sample_tokens(model, labels[4:5], noise[4:5], Decoding(scale, top_k=20, top_p=0.9)), whole[4:5])


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_a_decoder_is_used_for_batch_after_batch(pair: Pair, scale: float):
    _, model, _ = pair
    check_decoder(model, Decoder(model), torch.device("cpu"), LENGTH[pair[0]], scale)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs want a GPU")
@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_cuda_graphs_change_no_image(pair: Pair, scale: float):
    device = torch.device("cuda")
    model = deepcopy(pair[1]).to(device)
    check_decoder(model, GraphDecoder(model), device, LENGTH[pair[0]], scale)


def check_decoder(model: Model, decoder: Decoder, device: torch.device, length: int, scale: float) -> None:
    """Batches of two sizes, one twice: each is what a decoder of its own makes."""
    for begin, end in ((0, 6), (6, 12), (12, 15)):
        index = np.arange(begin, end)
        labels, noise = torch.from_numpy(index % 5).to(device), uniforms(0, index, length).to(device)
        made = sample_tokens(model, labels, noise, Decoding(scale), decoder=decoder)
        assert torch.equal(made, sample_tokens(model, labels, noise, Decoding(scale)))


def test_the_cache_is_as_large_as_it_says(pair: Pair):
    cache = pair[1].new_cache(3)
    layers = cache if isinstance(cache, list) else cache.layers
    assert sum(t.numel() * t.element_size() for layer in layers for t in layer) == 3 * pair[1].cache_bytes


def test_log_likelihoods_are_those_of_the_logits(pair: Pair):
    labels, tokens = some(pair)
    expected = pair[1](labels, tokens).log_softmax(-1).gather(2, tokens[..., None]).sum((1, 2))
    torch.testing.assert_close(Scorer(pair[1])(labels, tokens), expected)


def test_dropout_is_the_rows_own(pair: Pair):
    labels, tokens = some(pair)
    keys = dropout_keys(np.arange(4), 0)
    whole = pair[1](labels, tokens, Dropout(0.3, keys))
    torch.testing.assert_close(pair[1](labels[2:], tokens[2:], Dropout(0.3, keys[2:])), whole[2:])
    assert not torch.allclose(whole, pair[1](labels, tokens))


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_what_is_saved_is_loaded(pair: Pair, tmp_path: Path, ending: str):
    family, model, tokenizer = pair
    save_official(model, tmp_path / f"model.{ending}")
    save_official(tokenizer, tmp_path / f"tokenizer.{ending}")
    again = load_official(family, "S", tmp_path / f"model.{ending}", tmp_path / f"tokenizer.{ending}")
    labels, tokens = some(pair)
    assert again.config == model.config
    assert torch.equal(again(labels, tokens), model(labels, tokens))
    codes = load_tokenizer(family, tmp_path / f"tokenizer.{ending}").encode(torch.ones(1, 3, 8, 8))
    assert torch.equal(codes, tokenizer.encode(torch.ones(1, 3, 8, 8)))


def test_a_bare_official_file_says_what_it_is(pair: Pair, tmp_path: Path):
    family, model, tokenizer = pair
    torch.save(model.state_dict(), tmp_path / "model.pth")
    save_official(tokenizer, tmp_path / "tokenizer.pth")
    again = load_official(family, "S", tmp_path / "model.pth", tmp_path / "tokenizer.pth", length=LENGTH[family])
    labels, tokens = some(pair)
    assert torch.equal(again(labels, tokens), model(labels, tokens))
    with pytest.raises(ValueError, match=r"model\.pth: its (n_layer|depth|dim) is"):
        load_official(family, "M", tmp_path / "model.pth", tmp_path / "tokenizer.pth")
    with pytest.raises(ValueError, match=r"model\.pth: its num_classes is 10, not the 7"):
        load_official(family, "S", tmp_path / "model.pth", tmp_path / "tokenizer.pth", num_classes=7)


def test_a_tokenizer_that_does_not_fit_is_refused(pair: Pair, tmp_path: Path):
    family, model, _ = pair
    other = {**TOKENIZERS[family], "vocab_size" if family == "var" else "codebook_size": 16}
    save_official(model, tmp_path / "model.pth")
    save_official(build_tokenizer(family, **other), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: .*16 codes") as error:
        load_official(family, "S", tmp_path / "model.pth", tmp_path / "other.pth")
    assert "\n" not in str(error.value)
