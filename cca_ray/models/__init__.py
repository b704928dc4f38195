"""The table of families and sizes; building models; reading and writing official checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.files import (
    atomically,
    digest_of_weights,
    load_state,
    read_checkpoint,
    write_atomically,
    write_checkpoint,
)
from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig

__all__ = [
    "SIZES", "Dropout", "LlamaGen", "LlamaGenConfig", "LlamaGenVQ", "VQConfig", "atomically", "build",
    "build_tokenizer", "digest_of_weights", "dropout_keys", "load_official", "load_state", "load_tokenizer",
    "parameters", "read_checkpoint", "save_official", "write_atomically",
]  # fmt: skip

# family -> size -> overrides of the family's defaults. S and M are ours: small bases, trained by `pretrain`.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "llamagen": {
        "S": dict(n_layer=2, n_head=2, dim=16, multiple_of=32),
        "M": dict(n_layer=2, n_head=2, dim=24, multiple_of=32),
        "B": dict(n_layer=12, n_head=12, dim=768),  # 110.9 M parameters, whatever the image size
        "L": dict(n_layer=24, n_head=16, dim=1024),  # 343 M
        "XL": dict(n_layer=36, n_head=20, dim=1280),  # 775 M
        "XXL": dict(n_layer=48, n_head=24, dim=1536),  # 1.4 B
        "3B": dict(n_layer=24, n_head=32, dim=3200),  # 3.1 B
    }
}
PIXELS_A_TOKEN = 16  # along a side, of the official tokenizers


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def configure(family: str, size: str, **overrides: Any) -> LlamaGenConfig:
    """A model's config. Overrides: its fields, or `image_size` in pixels (16 a token: 256, 384, 512, ...).

    Raises ValueError for an unknown family, size or override.
    """
    if family not in SIZES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(SIZES)}")
    if size not in SIZES[family]:
        raise ValueError(f"unknown size {size!r} of {family}: one of {', '.join(SIZES[family])}")
    if "image_size" in overrides:
        side, rest = divmod(overrides.pop("image_size"), PIXELS_A_TOKEN)
        if rest or not side:
            raise ValueError(f"image_size must be a multiple of {PIXELS_A_TOKEN} pixels, such as 256, 384 or 512")
        overrides["block_size"] = side**2
    allowed = {f.name for f in fields(LlamaGenConfig)}
    if unknown := sorted(set(overrides) - allowed):
        raise ValueError(
            f"unknown override {unknown[0]!r} of {family}: one of image_size, {', '.join(sorted(allowed))}"
        )
    return LlamaGenConfig(**{**SIZES[family][size], **overrides})


def build(family: str, size: str, **overrides: Any) -> LlamaGen:
    """A model with random weights; see `configure`."""
    model = LlamaGen(configure(family, size, **overrides))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def build_tokenizer(family: str, **overrides: Any) -> LlamaGenVQ:
    """The family's tokenizer with random weights; without overrides the official VQ-16."""
    if family != "llamagen":
        raise ValueError(f"unknown family {family!r}: one of {', '.join(SIZES)}")
    return LlamaGenVQ(VQConfig(**overrides))


def known(config: Mapping[str, Any], kind: type, source: str | Path) -> dict[str, Any]:
    """A file's own `config`, if it is one of this kind. ValueError, naming the file, if it is of another."""
    if unknown := set(config) - {f.name for f in fields(kind)}:
        raise ValueError(
            f"{source}: not a {kind.__name__.removesuffix('Config')} checkpoint (its config has {min(unknown)})"
        )
    return dict(config)


def load_tokenizer(family: str, checkpoint: str | Path, **overrides: Any) -> LlamaGenVQ:
    """A frozen tokenizer: the official VQ-16, or one of ours, whose file says its widths."""
    state, config = read_checkpoint(checkpoint)
    tokenizer = build_tokenizer(family, **{**known(config, VQConfig, checkpoint), **overrides})
    load_state(tokenizer, state, checkpoint)
    return tokenizer.requires_grad_(False)


def content_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """What names and shapes in an official LlamaGen file say of its model."""
    found = {"n_layer": len({name.split(".")[1] for name in state if name.startswith("layers.")})}
    shapes = {
        "num_classes": ("cls_embedding.embedding_table.weight", 0, -1),  # the last row is the null class
        "vocab_size": ("tok_embeddings.weight", 0, 0),
        "dim": ("tok_embeddings.weight", 1, 0),
        "block_size": ("freqs_cis", 0, -1),  # where it is: the first row is the class token's
    }
    for key, (name, axis, extra) in shapes.items():
        if name in state and state[name].ndim > axis:
            found[key] = state[name].shape[axis] + extra
    return found


def load_official(
    family: str,
    size: str,
    checkpoint: str | Path,
    tokenizer_checkpoint: str | Path | None = None,
    length: int | None = None,
    **overrides: Any,
) -> LlamaGen:
    """A model with an official checkpoint's weights, ready to score; the weights stay memory-mapped until moved.

    Classes, codes and, where the file tells, tokens an image are the file's (else `length`, or that of 384 pixels);
    an override that contradicts the file is a ValueError.
    LlamaGen scores tokens without its tokenizer; a tokenizer checkpoint, if given, is checked to have as
    many codes as the model has tokens.
    """
    state, config = read_checkpoint(checkpoint)
    found = {**content_of(state), **known(config, LlamaGenConfig, checkpoint)}
    default = {"block_size": length} if length and "image_size" not in overrides else {}
    wanted = configure(family, size, **{**default, **found, **SIZES.get(family, {}).get(size, {}), **overrides})
    for key, value in found.items():
        if getattr(wanted, key) != value:
            raise ValueError(f"{checkpoint}: its {key} is {value}, not the {getattr(wanted, key)} of {family} {size}")
    with torch.device("meta"):
        model = LlamaGen(wanted)
    load_state(model, state, checkpoint)
    model.reset_buffers()
    if tokenizer_checkpoint is not None:
        codes = read_checkpoint(tokenizer_checkpoint)[0].get("quantize.embedding.weight", torch.empty(0)).shape[0]
        if codes != model.config.vocab_size:
            raise ValueError(
                f"{tokenizer_checkpoint}: {codes} codes, but the model has {model.config.vocab_size} tokens"
            )
    return model


def save_official(model: LlamaGen | LlamaGenVQ, path: str | Path) -> None:
    """Write a file that the official samplers load unchanged; safetensors if the path ends so."""
    write_checkpoint(model.state_dict(), asdict(model.config), path)
