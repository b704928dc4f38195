import numpy as np
import pytest
import torch

from cca_ray.evaluation.sampler import Decoding, sample_tokens
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.files import load_state
from cca_ray.models.likelihood import Scorer
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.official import build, parameters
from tests.conftest import golden, golden_state
from tests.golden.models import TINY_LLAMAGEN


@pytest.fixture(scope="module")
def tiny() -> LlamaGen:
    content = golden("llamagen_tiny.npz")
    model = build("llamagen", "B", **TINY_LLAMAGEN)
    load_state(model, golden_state(content), "golden")
    return model.requires_grad_(False)


def test_logits_are_the_official_ones(tiny: LlamaGen):
    content = golden("llamagen_tiny.npz")
    logits = tiny(torch.from_numpy(content["labels"]), torch.from_numpy(content["tokens"]))
    assert logits.dtype == torch.float32
    np.testing.assert_allclose(logits, content["logits"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 2.0, 4.0])
def test_greedy_samples_are_the_official_ones(tiny: LlamaGen, scale: float):
    content = golden("llamagen_tiny.npz")
    labels = torch.from_numpy(content["labels"])[[0, 1, 2, 4]]
    tokens = sample_tokens(tiny, labels, torch.rand(4, 16, dtype=torch.float64), Decoding(scale, top_k=1))
    np.testing.assert_array_equal(tokens, content[f"greedy_cfg{scale}"])


def test_full_size_likelihoods_are_the_official_ones():
    content = golden("llamagen_GPT-B_384.npz")
    model = build("llamagen", "B", image_size=384).requires_grad_(False)
    load_state(model, golden_state(content), "golden")
    tokens = torch.from_numpy(content["tokens"].astype(np.int64))
    labels = torch.from_numpy(content["labels"])
    logits = model(labels, tokens)
    assert parameters(model) == content["params"]
    np.testing.assert_allclose(Scorer(model)(labels, tokens), content["logps"].sum(1), rtol=1e-4)
    np.testing.assert_allclose(logits[:, ::64, :32], content["logits_slice"], rtol=1e-4, atol=1e-5)


def test_a_later_token_never_changes_an_earlier_logit(tiny: LlamaGen):
    labels, tokens = torch.tensor([3]), torch.randint(64, (1, 16))
    changed = tokens.clone()
    changed[0, 7] = (changed[0, 7] + 1) % 64
    before, after = tiny(labels, tokens), tiny(labels, changed)
    torch.testing.assert_close(before[:, :8], after[:, :8])
    assert not torch.equal(before[:, 8], after[:, 8])


@pytest.mark.parametrize(("dim", "kind", "width"), [(48, torch.bfloat16, 16), (48, torch.float32, 12),
                                                     (64, torch.bfloat16, 16)])  # fmt: skip
def test_a_cache_in_half_precision_has_heads_of_a_multiple_of_eight(dim: int, kind: torch.dtype, width: int):
    model = build("llamagen", "B", **{**TINY_LLAMAGEN, "dim": dim}).to(kind).requires_grad_(False)
    cache = model.new_cache(3)
    assert {tensor.shape for pair in cache for tensor in pair} == {(3, 4, 16, width)}
    assert model.cache_bytes * 3 == sum(tensor.nbytes for pair in cache for tensor in pair)


def test_a_cache_with_wider_heads_changes_no_result(monkeypatch: pytest.MonkeyPatch):
    """In float32, to see every digit, as 3B's has them in bfloat16: 100 numbers in 104."""
    torch.manual_seed(0)
    model = build("llamagen", "B", **{**TINY_LLAMAGEN, "dim": 80}).requires_grad_(False)
    torch.nn.init.normal_(model.output.weight, std=0.3)
    labels, noise = torch.arange(6) % 5, torch.rand(6, 16, dtype=torch.float64)
    tokens = torch.randint(64, (6, 16))

    def logits() -> torch.Tensor:
        cache = model.new_cache(6)
        return torch.cat([model.decode(labels, tokens[:, t - 1 : t] if t else None, t, cache) for t in range(16)], 1)

    plain, samples = logits(), sample_tokens(model, labels, noise, Decoding(2.0))
    assert model.new_cache(1)[0][0].shape[-1] == 20
    monkeypatch.setattr(LlamaGen, "cached_width", 24)
    assert model.new_cache(1)[0][0].shape[-1] == 24
    torch.testing.assert_close(logits(), plain, rtol=1e-5, atol=1e-5)
    assert torch.equal(sample_tokens(model, labels, noise, Decoding(2.0)), samples)


def test_decoding_with_the_cache_equals_the_whole_sequence(tiny: LlamaGen):
    labels, tokens = torch.tensor([3, 10]), torch.randint(64, (2, 16))
    cache = tiny.new_cache(2)
    steps = [tiny.decode(labels, tokens[:, t - 1 : t] if t else None, t, cache) for t in range(16)]
    torch.testing.assert_close(torch.cat(steps, dim=1), tiny(labels, tokens), rtol=1e-4, atol=1e-5)


def test_dropout_is_off_unless_asked_for(tiny: LlamaGen):
    labels, tokens = torch.tensor([3]), torch.randint(64, (1, 16))
    torch.testing.assert_close(tiny.train()(labels, tokens), tiny.eval()(labels, tokens))
    dropout = Dropout(0.5, dropout_keys(np.array([3]), 0))
    assert not torch.equal(tiny(labels, tokens, dropout), tiny(labels, tokens))
