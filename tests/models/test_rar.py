import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cca_ray.evaluation.sampler import Decoding, pick, sample_tokens
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.files import load_state
from cca_ray.models.likelihood import Scorer
from cca_ray.models.official import build, parameters
from cca_ray.models.rar import RAR, RARConfig
from cca_ray.models.rar_family import FAMILY
from tests.conftest import golden, golden_state
from tests.golden.models import TINY_RAR

GUIDED = [(1.0, 0.0), (4.0, 0.0), (4.0, 1.0), (16.0, 2.75)]  # the official scale and power


@pytest.fixture(scope="module")
def tiny() -> RAR:
    model = RAR(TINY_RAR)
    load_state(model, golden_state(golden("rar_tiny.npz")), "golden")
    return model.requires_grad_(False)


def token_logps(logits: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
    return logits.log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1)


def test_logits_are_the_official_ones(tiny: RAR):
    content = golden("rar_tiny.npz")
    labels, tokens = torch.from_numpy(content["labels"]), torch.from_numpy(content["tokens"])
    logits = tiny(labels, tokens)
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, content["logits"][:, :16], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(token_logps(logits, tokens), content["logps"], rtol=1e-5)
    np.testing.assert_allclose(-Scorer(tiny)(labels, tokens).sum() / tokens.numel(), content["loss"], rtol=1e-5)


def test_logits_in_a_given_order_are_the_official_ones(tiny: RAR):
    content = golden("rar_tiny.npz")
    labels, places = torch.from_numpy(content["labels"]), torch.from_numpy(content["orders"])
    tokens = torch.from_numpy(content["tokens"]).gather(1, places)
    np.testing.assert_array_equal(tokens, content["permuted_labels"])
    logits = tiny.head(tiny.hidden_in_order(places, labels, tokens))
    np.testing.assert_allclose(logits, content["permuted_logits"][:, :16], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(token_logps(logits, tokens), content["permuted_logps"], rtol=1e-5)
    mean = Scorer(tiny)(labels, tokens, None, places).sum() / tokens.numel()
    np.testing.assert_allclose(-mean, content["permuted_loss"], rtol=1e-5)


@pytest.mark.parametrize(("scale", "power"), GUIDED)
def test_greedy_samples_are_the_official_ones(tiny: RAR, scale: float, power: float):
    """By the sampler that studies use, at top-k 1; the official scale of 1 is the condition alone at twice the cost."""
    content = golden("rar_tiny.npz")
    labels, noise = torch.from_numpy(content["generate_labels"]), torch.rand(4, 16, dtype=torch.float64)
    tokens = sample_tokens(tiny, labels, noise, Decoding(scale, top_k=1, guidance_power=power))
    np.testing.assert_array_equal(tokens, content[f"greedy_g{scale}_p{power}"])
    if scale == 1:
        np.testing.assert_array_equal(tokens, content["greedy_g0.0_p0.0"])  # there 0, too, is the condition alone


@pytest.mark.parametrize(("scale", "power"), GUIDED)
def test_guidance_grows_and_is_applied_as_the_official_one(tiny: RAR, scale: float, power: float):
    content = golden("rar_tiny.npz")
    decoding = Decoding(scale, guidance_power=power)
    scales = [decoding.guidance_at(tiny, step) for step in range(16)]
    np.testing.assert_allclose(scales, content[f"scale_g{scale}_p{power}"], rtol=1e-6)
    labels = torch.from_numpy(content["generate_labels"])
    tokens = torch.from_numpy(content[f"greedy_g{scale}_p{power}"].astype(np.int64))
    cond, uncond = (tiny(condition, tokens) for condition in (labels, torch.full_like(labels, tiny.null_label)))
    guided = uncond + torch.tensor(scales)[:, None] * (cond - uncond)
    np.testing.assert_allclose(guided.softmax(-1), content[f"probs_g{scale}_p{power}"], rtol=1e-4, atol=1e-6)
    both = torch.cat([cond, uncond])[:, 5:6]
    picked, _ = pick(both, torch.rand(4, 1, dtype=torch.float64), Decoding(top_k=1), scales[5])
    assert torch.equal(picked[:, 0], guided[:, 5].argmax(-1))


@pytest.mark.slow
@pytest.mark.timeout(600)
@torch.inference_mode()
def test_full_size_likelihoods_are_the_official_ones():
    content = golden("rar_B.npz")
    with torch.device("meta"):
        model = build("rar", "B")
    load_state(model, golden_state(content), "golden")
    labels = torch.from_numpy(content["labels"])
    tokens = torch.from_numpy(content["tokens"].astype(np.int64))
    logits = model(labels, tokens)
    assert parameters(model) == content["params"]
    np.testing.assert_allclose(token_logps(logits, tokens), content["logps"], rtol=1e-5)
    np.testing.assert_allclose(logits[:, 0], content["logits_first"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:, 255], content["logits_last"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(logits[:, ::32, :32], content["logits_slice"], rtol=1e-4, atol=1e-5)


def test_names_and_shapes_are_the_official_ones(tiny: RAR):
    for file, model in (("rar_tiny.npz", tiny), ("rar_B.npz", None)):
        with torch.device("meta"):
            found = model or build("rar", "B")
        manifest = json.loads(str(golden(file)["manifest"]))
        assert {name: list(tensor.shape) for name, tensor in found.state_dict().items()} == manifest


@pytest.mark.parametrize(
    ("size", "count", "tensors"),
    [("B", 260_923_648, 441), ("L", 461_668_352, 441), ("XL", 955_425_024, 585), ("XXL", 1_498_520_704, 729)],
)
def test_the_four_official_sizes(size: str, count: int, tensors: int):
    with torch.device("meta"):
        model = build("rar", size)
    assert parameters(model) == count
    assert len(model.state_dict()) == tensors
    assert (model.config.block_size, model.config.vocab_size, model.null_label) == (256, 1024, 1000)


def test_names_and_shapes_say_what_a_model_is():
    """Of the official files, whose tables have rows that nothing uses, and of small ones, whose have none."""
    content = FAMILY.content_of(golden_state(golden("rar_tiny.npz")))
    assert RARConfig(**content) == TINY_RAR
    bare = replace(TINY_RAR, spare_places=2, spare_steps=2)
    assert RARConfig(**FAMILY.content_of(RAR(bare).state_dict())) == bare
    other = FAMILY.content_of(RAR(replace(TINY_RAR, spare_steps=99)).state_dict())
    assert "block_size" not in other  # neither: a strict load then lists what does not fit


def test_decoding_with_the_cache_equals_the_whole_sequence(tiny: RAR):
    labels, tokens = torch.tensor([3, 10]), torch.randint(32, (2, 16))
    cache = tiny.new_cache(2)
    steps = [tiny.decode(labels, tokens[:, t - 1 : t] if t else None, t, cache) for t in range(16)]
    torch.testing.assert_close(torch.cat(steps, dim=1), tiny(labels, tokens), rtol=1e-4, atol=1e-5)


def test_rows_that_nothing_uses_change_nothing_and_learn_nothing():
    """The mask token; places and steps beyond the image; and of what comes next, the places of token and condition."""
    model = RAR(TINY_RAR)
    load_state(model, golden_state(golden("rar_tiny.npz")), "golden")
    labels, tokens = torch.arange(11), torch.randint(32, (11, 16))
    logits = model(labels, tokens)
    logits.square().sum().backward()
    dead = {
        "pos_embed": [17, slice(18, None)], "target_aware_pos_embed": [slice(0, 2), slice(18, None)],
        "timesteps_embeddings": [17, slice(18, None)], "embeddings.weight": [32],
    }  # fmt: skip
    for name, rows in dead.items():
        parameter = model.get_parameter(name)
        assert parameter.grad is not None
        gradient = parameter.grad.reshape(-1, 64)
        used = torch.ones(len(gradient), dtype=torch.bool)
        for row in rows:
            used[row] = False
            assert not gradient[row].any()
            parameter.data.view(-1, 64)[row] += 1.0
        if name != "embeddings.weight":
            assert gradient[used].any(dim=1).all(), name
    torch.testing.assert_close(model(labels, tokens), logits)


def test_dropout_is_off_unless_asked_for(tiny: RAR):
    labels, tokens = torch.tensor([3]), torch.randint(32, (1, 16))
    torch.testing.assert_close(tiny.train()(labels, tokens), tiny.eval()(labels, tokens))
    dropout = Dropout(0.5, dropout_keys(np.array([3]), 0))
    assert not torch.equal(tiny(labels, tokens, dropout), tiny(labels, tokens))


def test_a_model_begins_as_the_official_one_does():
    model, again = RAR(TINY_RAR), RAR(TINY_RAR)
    model.initialize(torch.Generator().manual_seed(1))
    again.initialize(torch.Generator().manual_seed(1))
    for (name, ours), theirs in zip(model.named_parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
        if "adaLN" in name or name == "cls_token" or name.endswith("bias"):
            assert not ours.any(), name
        elif "norm" in name:
            assert (ours == 1).all(), name
        else:
            assert ours.std().item() == pytest.approx(0.02, rel=0.1), name
    first, null = model(torch.tensor([0, 10]), torch.randint(32, (1, 16)).expand(2, -1))
    torch.testing.assert_close(first[1:], null[1:])  # adaLN-zero: no block hears the condition yet, or what came before
    assert not torch.allclose(first[0], null[0])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dim": 66}, "dim 66 must be a multiple of n_head"),
        ({"n_layer": 0}, "at least 1"),
        ({"spare_places": 1}, "must be at least 2"),
    ],
)
def test_settings_that_build_no_model_are_refused(fields: dict, message: str):
    with pytest.raises(ValueError, match=message) as error:
        replace(TINY_RAR, **fields)
    assert "\n" not in str(error.value)
