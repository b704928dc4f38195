"""What scoring takes beside the weights, counted on `meta` for the official models, as `placement.memory_gib` says."""

from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from cca_ray.evaluation.inception import Inception
from cca_ray.evaluation.protocol import SHARD
from cca_ray.evaluation.sampler import (
    BESIDE_BYTES,
    CACHE_BYTES,
    GRAPH_BYTES,
    Decoding,
    decode_images,
    images_at_a_time,
    pick,
)
from cca_ray.models import var_vqvae
from cca_ray.models.family import family_of
from cca_ray.models.var import VAR
from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig
from tests.peak import peak_bytes

OFFICIAL = (
    [("llamagen", size) for size in ("B", "L", "XL", "XXL", "3B")]
    + [("var", size) for size in ("d16", "d20", "d24", "d30")]
    + [("rar", size) for size in ("B", "L", "XL", "XXL")]
)


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` has none."""
    monkeypatch.setattr(var_vqvae, "full_precision", lambda x: nullcontext())


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize(("family", "size"), OFFICIAL)
def test_a_step_and_its_draws_fit_beside_the_cache(no_autocast: None, family: str, size: str, guided: bool):
    """The last step, which is the largest, of as many images as are sampled at a time; as the paper cuts VAR's odds."""
    kind = family_of(family)
    config = kind.configure(size, **({"image_size": 384} if family == "llamagen" else {}))
    with torch.device("meta"), torch.inference_mode():
        model = kind.parts().model(config).bfloat16()
        if isinstance(model, VAR):
            model.codes = VARVQVAE(VARVQConfig()).quantize.frozen()
        branches = 2 if guided else 1
        images = images_at_a_time(SHARD, branches * model.cache_bytes)
        # What graphs keep costs no image at a time.
        assert images == images_at_a_time(SHARD, branches * model.cache_bytes, CACHE_BYTES - GRAPH_BYTES)
        cache, counts = model.new_cache(images * branches), model.decode_steps
        labels = torch.zeros(images * branches, dtype=torch.int64)
        last = torch.zeros(images * branches, counts[-2], dtype=torch.int64)
        noise = torch.zeros(images, counts[-1], dtype=torch.float64)
        cut = Decoding(2.0, top_k=900, top_p=0.96) if family == "var" else Decoding(2.0)

        def step() -> Tensor:
            return model.decode(labels, last, len(counts) - 1, cache)

        assert peak_bytes(lambda: pick(step(), noise, cut, 2.0)) < BESIDE_BYTES
        assert peak_bytes(step) < 0.85 * GRAPH_BYTES


@pytest.mark.parametrize(("family", "pixels"), [("llamagen", 384), ("var", 256), ("rar", 256)])
def test_decoding_images_fits(no_autocast: None, family: str, pixels: int):
    parts = family_of(family).parts()
    with torch.device("meta"):
        tokenizer = parts.tokenizer(parts.tokenizer_config())
        tokens = torch.zeros(30, tokenizer.config.length(pixels), dtype=torch.int64)
    assert peak_bytes(lambda: decode_images(tokenizer, tokens, 256)) < BESIDE_BYTES


def test_features_of_images_fit():
    with torch.device("meta"), torch.inference_mode():
        network, images = Inception(), torch.zeros(SHARD, 256, 256, 3, dtype=torch.uint8)
        assert peak_bytes(lambda: network(images[: network.at_a_time])) < BESIDE_BYTES
