"""The models behind the golden files: settings of the tiny ones, and VAR's with the official weights."""

import json

import numpy as np
import torch

from cca_ray.models.rar import RARConfig
from cca_ray.models.var import VAR, VARConfig
from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig
from tests.golden.weights import checkpoint

TINY_LLAMAGEN = dict(dim=64, n_layer=2, n_head=4, num_classes=10, vocab_size=64, block_size=16, multiple_of=32)
TINY_RAR = RARConfig(dim=64, n_layer=3, n_head=4, mlp_dim=256, num_classes=10, vocab_size=32, block_size=16)
TINY_VAR = VARConfig(depth=2, dim=128, n_head=2, num_classes=10, vocab_size=64, code_dim=8, patch_nums=(1, 2, 3, 4))
TINY_VAR_TOKENIZER = VARVQConfig(vocab_size=64, z_channels=8, ch=32, patch_nums=(1, 2, 3, 4))


def official_state(content: dict[str, np.ndarray], part: str) -> dict[str, torch.Tensor]:
    """The official weights behind a golden file's numbers; `part`: var or vae."""
    scales = tuple(content["patch_nums"].tolist())
    return checkpoint(json.loads(str(content[f"manifest_{part}"])), float(content["std"]), scales)


def official_tokenizer(content: dict[str, np.ndarray], config: VARVQConfig) -> VARVQVAE:
    """Strictly loaded, frozen; built on the meta device first, as nothing in it depends on data."""
    with torch.device("meta"):
        tokenizer = VARVQVAE(config)
    tokenizer.load_state_dict(official_state(content, "vae"), assign=True)
    return tokenizer.requires_grad_(False)


def official_model(content: dict[str, np.ndarray], config: VARConfig, tokenizer: VARVQVAE) -> VAR:
    """Strictly loaded, frozen; built on the meta device first, as nothing in it depends on data."""
    with torch.device("meta"):
        model = VAR(config)
    model.load_state_dict(official_state(content, "var"), assign=True)
    model.attach(tokenizer)
    return model.requires_grad_(False)


def labels_and_tokens(content: dict[str, np.ndarray]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(content["labels"]), torch.from_numpy(content["indices"].astype(np.int64))
