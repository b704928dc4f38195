"""The official networks, from checkouts of their repositories, with the weights of ours."""

import sys
import types
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cca_ray.models.llamagen import LlamaGen
from cca_ray.models.var import VAR

SHARED = ("n_layer", "n_head", "dim", "block_size", "vocab_size", "num_classes", "multiple_of")  # fields of both


def official_llamagen(model: LlamaGen, checkout: Path, dropout: float = 0.0) -> nn.Module:
    """LlamaGen's `Transformer`. Its class dropout is off, as in the official fine-tuning."""
    sys.path.insert(0, str(checkout))
    from autoregressive.models.gpt import ModelArgs, Transformer  # type: ignore[import-not-found]

    dropouts = dict.fromkeys(("token_dropout_p", "resid_dropout_p", "ffn_dropout_p"), dropout)
    shape: dict[str, Any] = {name: getattr(model.config, name) for name in SHARED}
    official: nn.Module = Transformer(ModelArgs(**shape, **dropouts, class_dropout_prob=1e-5))
    official.load_state_dict(model.state_dict())
    return official.to(next(model.parameters()).device)


def official_var(model: VAR, checkout: Path) -> nn.Module:
    """VAR's model, with its tokenizer's codes; what decodes images is left out."""
    hub: Any = types.ModuleType("huggingface_hub")  # it only gives the model a download method
    hub.PyTorchModelHubMixin = object
    sys.modules.setdefault("huggingface_hub", hub)
    sys.path.insert(0, str(checkout))
    from models import build_vae_var  # type: ignore[import-not-found]

    config, device = model.config, next(model.parameters()).device
    with initialisation_kept():
        tokenizer, official = build_vae_var(
            device, config.patch_nums, V=config.vocab_size, Cvae=config.code_dim, ch=32, depth=config.depth
        )
    official.load_state_dict(model.state_dict(), strict=True)
    assert model.codes is not None
    tokenizer.quantize.load_state_dict(dict(model.codes.named_buffers()))
    decoded: Any = types.SimpleNamespace(fhat_to_img=lambda latents: latents)
    official.vae_proxy = (decoded,)
    return official


@contextmanager
def initialisation_kept() -> Iterator[None]:
    """The official code takes `reset_parameters` away from PyTorch's own layers, for all that is made after it."""
    kinds = [kind for kind in vars(nn).values() if isinstance(kind, type) and "reset_parameters" in vars(kind)]
    before = [vars(kind)["reset_parameters"] for kind in kinds]
    others = [kind for kind in vars(nn).values() if isinstance(kind, type) and kind not in kinds]
    try:
        yield
    finally:
        for kind, method in zip(kinds, before, strict=True):
            setattr(kind, "reset_parameters", method)  # noqa: B010
        for kind in others:  # that inherited it
            if "reset_parameters" in vars(kind):
                delattr(kind, "reset_parameters")


def official_vq(state: Mapping[str, Tensor], checkout: Path) -> Any:
    """LlamaGen's VQ-16 with these weights."""
    sys.path.insert(0, str(checkout))
    from tokenizer.tokenizer_image.vq_model import VQ_models  # type: ignore[import-not-found]

    official = VQ_models["VQ-16"](codebook_size=16384, codebook_embed_dim=8).eval()
    official.load_state_dict(state, strict=False)
    return official


def synchronised(device: torch.device) -> None:
    """Wait until what was started there is done, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
