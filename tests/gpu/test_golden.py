"""The official code's numbers on a card: in float32 with TF32 off, and how far bfloat16 is from them.

Each bound is on the length of the difference, relative to that of the official numbers.
"""

import json
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from cca_ray.evaluation.features import extract, frozen
from cca_ray.evaluation.inception import Inception
from cca_ray.evaluation.sampler import Decoding, sample_tokens, uniforms
from cca_ray.models.base import Model
from cca_ray.models.files import load_state
from cca_ray.models.likelihood import Scorer
from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.official import build, build_tokenizer
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.models.rar import RAR
from cca_ray.models.var import VAR, VARConfig
from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig
from cca_ray.placement_config import Placement
from cca_ray.training.objectives import CCA, CcaParameters, ScoredPairs
from tests.conftest import golden, golden_state
from tests.golden.models import (
    TINY_LLAMAGEN,
    TINY_RAR,
    TINY_VAR,
    TINY_VAR_TOKENIZER,
    labels_and_tokens,
    official_model,
    official_tokenizer,
)
from tests.golden.weights import inception_checkpoint
from tests.gpu.places import OnCard, Place

FLOAT32 = 1e-5
CONVOLUTIONS = 1e-4  # of dozens of layers, in another order of sums
HALF_LOGITS, HALF_LOGPS = (
    0.03,
    0.005,
)  # bfloat16: eight bits of a logit; of a sequence's log p the errors are evened out
SAME_CODES = 0.99  # of an image: the distances to two codes may be equal but for rounding


@pytest.fixture(autouse=True)
def no_tf32() -> Iterator[None]:
    assert torch.get_float32_matmul_precision() == "highest"
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield


def apart(found: Tensor, official: np.ndarray) -> float:
    expected = official.astype(np.float64)
    return float(np.linalg.norm(found.double().cpu().numpy() - expected) / np.linalg.norm(expected))


def llamagen(place: Place) -> LlamaGen:
    model = build("llamagen", "B", **TINY_LLAMAGEN)
    load_state(model, golden_state(golden("llamagen_tiny.npz")), "golden")
    assert isinstance(model, LlamaGen)
    return model.requires_grad_(False).to(place.device)


def var(place: Place) -> tuple[VAR, VARVQVAE]:
    content = golden("var_tiny.npz")
    tokenizer = official_tokenizer(content, TINY_VAR_TOKENIZER).to(place.device)
    return official_model(content, TINY_VAR, tokenizer).to(place.device), tokenizer


def rar(place: Place) -> RAR:
    model = RAR(TINY_RAR)
    load_state(model, golden_state(golden("rar_tiny.npz")), "golden")
    return model.requires_grad_(False).to(place.device)


def given(content: dict[str, np.ndarray], place: Place, tokens: str = "tokens") -> tuple[Tensor, Tensor]:
    """Labels and tokens of a golden file."""
    names = "labels", tokens
    labels, codes = (torch.from_numpy(content[name].astype(np.int64)).to(place.device) for name in names)
    return labels, codes


def in_bfloat16(model: Model, place: Place) -> Model:
    return for_sampling(model, Placement(precision="bfloat16"), Group(device=place.device))


def test_llamagens_logits_and_greedy_samples(place: Place):
    content, model = golden("llamagen_tiny.npz"), llamagen(place)
    labels, tokens = given(content, place)
    assert apart(model(labels, tokens), content["logits"]) < FLOAT32
    for scale in (1.0, 2.0, 4.0):
        noise = torch.rand(4, 16, dtype=torch.float64, device=place.device)
        found = sample_tokens(model, labels[[0, 1, 2, 4]], noise, Decoding(scale, top_k=1))
        np.testing.assert_array_equal(found.cpu(), content[f"greedy_cfg{scale}"])
    assert apart(in_bfloat16(model, place)(labels, tokens), content["logits"]) < HALF_LOGITS


def test_vars_logits_and_greedy_samples(place: Place):
    content, (model, tokenizer) = golden("var_tiny.npz"), var(place)
    labels, tokens = given(content, place, "indices")
    assert apart(model(labels, tokens), content["logits"]) < FLOAT32
    for cfg in (0.0, 1.5):
        noise = uniforms(0, np.arange(2), 30).to(place.device)
        found = sample_tokens(model, labels[:2], noise, Decoding(1 + cfg, top_k=1))
        assert apart((tokenizer.decode(found) + 1) / 2, content[f"greedy_cfg{cfg}"]) < CONVOLUTIONS
    assert apart(in_bfloat16(model, place)(labels, tokens), content["logits"]) < HALF_LOGITS


def test_rars_logits_in_any_order_and_greedy_samples(place: Place):
    content, model = golden("rar_tiny.npz"), rar(place)
    labels, tokens = given(content, place)
    assert apart(model(labels, tokens), content["logits"][:, :16]) < FLOAT32
    places = torch.from_numpy(content["orders"]).to(place.device)
    logits = model.head(model.hidden_in_order(places, labels, tokens.gather(1, places)))
    assert apart(logits, content["permuted_logits"][:, :16]) < FLOAT32
    labels = torch.from_numpy(content["generate_labels"]).to(place.device)
    for scale, power in ((1.0, 0.0), (4.0, 0.0), (4.0, 1.0), (16.0, 2.75)):
        noise = torch.rand(4, 16, dtype=torch.float64, device=place.device)
        found = sample_tokens(model, labels, noise, Decoding(scale, top_k=1, guidance_power=power))
        np.testing.assert_array_equal(found.cpu(), content[f"greedy_g{scale}_p{power}"])
    labels, tokens = given(content, place)
    assert apart(in_bfloat16(model, place)(labels, tokens), content["logits"][:, :16]) < HALF_LOGITS


def test_rars_tokenizer(place: Place):
    content, tokenizer = golden("maskgit_vqgan.npz"), build_tokenizer("rar").requires_grad_(False)
    load_state(tokenizer, golden_state(content), "golden")
    images = 2 * torch.from_numpy(content["image"]).to(place.device) - 1
    codes = tokenizer.to(place.device).encode(images).cpu().numpy()
    assert (codes == content["codes"]).mean() >= (SAME_CODES if place.device.type == "cuda" else 1)
    decoded = tokenizer.decode(torch.from_numpy(content["random_codes"]).to(place.device))
    assert apart((decoded + 1) / 2, content["decoded_random"]) < CONVOLUTIONS


def check_tokenizer(tokenizer: torch.nn.Module, content: dict[str, np.ndarray], place: Place, every: int = 1) -> None:
    image = torch.from_numpy(content["image"]).to(place.device)
    codes = tokenizer.encode(image).cpu().numpy()
    official = content["indices"].reshape(codes.shape)
    assert (codes == official).mean() >= (SAME_CODES if place.device.type == "cuda" else 1)
    decoded = tokenizer.decode(torch.from_numpy(official.astype(np.int64)).to(place.device))
    wanted = content["decoded"] if every == 1 else content["decoded_slice"]
    assert apart(decoded[:, :, ::every, ::every], wanted) < CONVOLUTIONS


def test_vars_tokenizer(place: Place):
    check_tokenizer(var(place)[1], golden("var_tiny.npz"), place)


def test_inceptions_features(place: Place):
    content, network = golden("inception_fid.npz"), Inception()
    state = inception_checkpoint(json.loads(str(content["manifest"])))
    missing, unexpected = network.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    found = extract(frozen(network).to(place.device), torch.from_numpy(content["images"]).to(place.device))
    for name, features in (("pool", found.pooled), ("spatial", found.spatial), ("probabilities", found.probabilities)):
        assert features is not None
        assert apart(features, content[name]) < CONVOLUTIONS


def test_ccas_losses(place: Place):
    content = golden("objectives.npz")
    columns = {name: torch.from_numpy(array).to(place.device) for name, array in content.items()}
    names = [name for name in content if name.startswith("cca_") and not name.endswith(("gpos", "gneg"))]
    assert names
    for name in names:
        beta, lambda_ = (float(part[1:]) for part in name.split("_")[1:])
        pairs = ScoredPairs(
            length=1, logps=columns["policy_pos"], labels=columns["labels"], null=columns["uncond_mask"].bool(),
            reference_logps=columns["ref_pos"], negative_logps=columns["policy_neg"],
            negative_labels=columns["negative_labels"], negative_reference_logps=columns["ref_neg"],
        )  # fmt: skip
        loss = CCA.loss(pairs, CcaParameters(lambda_=lambda_, beta=beta)).mean()
        assert apart(loss, content[name]) < FLOAT32


# The official sizes, on a card alone: the default and the slow tests have them on the CPU.


@pytest.mark.gpu
def test_gpt_b_at_full_size(card: OnCard):
    check_gpt_b(card)


@pytest.mark.gpu
def test_var_d16_at_full_size(card: OnCard):
    check_var_d16(card)


@pytest.mark.gpu
def test_vq_16_at_full_size(card: OnCard):
    check_vq_16(card)


@pytest.mark.gpu
def test_rar_b_at_full_size(card: OnCard):
    check_rar_b(card)


def check_rar_b(place: Place) -> None:
    content = golden("rar_B.npz")
    with torch.device("meta"):
        model = build("rar", "B")
    load_state(model, golden_state(content), "golden")
    model = model.requires_grad_(False).to(place.device)
    labels, tokens = given(content, place)
    assert apart(model(labels, tokens)[:, ::32, :32], content["logits_slice"]) < FLOAT32
    assert apart(Scorer(model)(labels, tokens), content["logps"].sum(1)) < FLOAT32
    with torch.autocast(place.device.type, torch.bfloat16):
        assert apart(Scorer(model)(labels, tokens), content["logps"].sum(1)) < HALF_LOGPS
    assert apart(in_bfloat16(model, place)(labels, tokens)[:, ::32, :32], content["logits_slice"]) < HALF_LOGITS


def check_gpt_b(place: Place) -> None:
    content = golden("llamagen_GPT-B_384.npz")
    model = build("llamagen", "B", image_size=384).requires_grad_(False)
    load_state(model, golden_state(content), "golden")
    model = model.to(place.device)
    labels, tokens = given(content, place)
    assert apart(model(labels, tokens)[:, ::64, :32], content["logits_slice"]) < FLOAT32
    assert apart(Scorer(model)(labels, tokens), content["logps"].sum(1)) < FLOAT32
    with torch.autocast(place.device.type, torch.bfloat16):  # as a trial trains
        assert apart(Scorer(model)(labels, tokens), content["logps"].sum(1)) < HALF_LOGPS
    assert apart(in_bfloat16(model, place)(labels, tokens)[:, ::64, :32], content["logits_slice"]) < HALF_LOGITS


def check_var_d16(place: Place) -> None:
    content = golden("var_d16.npz")
    tokenizer = official_tokenizer(content, VARVQConfig()).to(place.device)
    check_tokenizer(tokenizer, content, place, every=16)
    model = official_model(content, VARConfig(depth=16, dim=1024, n_head=16), tokenizer).to(place.device)
    labels, tokens = (tensor.to(place.device) for tensor in labels_and_tokens(content))
    assert apart(model(labels, tokens)[:, ::40, :32], content["logits_slice"]) < FLOAT32
    assert apart(Scorer(model)(labels, tokens), content["logps"].sum(1)) < FLOAT32
    with torch.autocast(place.device.type, torch.bfloat16):
        assert apart(Scorer(model)(labels, tokens), content["logps"].sum(1)) < HALF_LOGPS


def check_vq_16(place: Place) -> None:
    content = golden("llamagen_vq16.npz")
    tokenizer = build_tokenizer("llamagen").requires_grad_(False)
    load_state(tokenizer, golden_state(content), "golden")
    check_tokenizer(tokenizer.to(place.device), content, place)
