"""The table of families and sizes; building models; reading and writing official checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cca_ray.models.files import load_state, read_checkpoint, write_checkpoint
from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig
from cca_ray.models.var import VAR, VARConfig
from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig

# One face: model(labels [B], tokens [B, L]) -> logits [B, L, V]; tokenizer.encode(images) <-> tokenizer.decode(tokens).
Model = LlamaGen | VAR
Tokenizer = LlamaGenVQ | VARVQVAE

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
    },
    "var": {
        "S": dict(depth=1, n_head=1, dim=8),
        "M": dict(depth=3, n_head=3, dim=48),
        "d16": dict(depth=16, n_head=16, dim=1024),  # 310 M
        "d20": dict(depth=20, n_head=20, dim=1280),  # 600 M
        "d24": dict(depth=24, n_head=24, dim=1536),  # 1.0 B
        "d30": dict(depth=30, n_head=30, dim=1920),  # 2.0 B
    },
}
PIXELS_A_TOKEN = 16  # along a side, of LlamaGen's official tokenizer


@dataclass(frozen=True)
class Family:
    """The classes of a family, and what names and shapes in an official file say of its model."""

    config: type[LlamaGenConfig] | type[VARConfig]
    model: type[LlamaGen] | type[VAR]
    tokenizer_config: type[VQConfig] | type[VARVQConfig]
    layers: tuple[str, str]  # the config's field for their number, their prefix in the file
    shapes: dict[str, tuple[str, int, int]]  # the config's field -> a tensor, an axis, what to add


FAMILIES = {
    "llamagen": Family(
        LlamaGenConfig, LlamaGen, VQConfig,
        layers=("n_layer", "layers."),
        shapes={
            "num_classes": ("cls_embedding.embedding_table.weight", 0, -1),  # the last row is the null class
            "vocab_size": ("tok_embeddings.weight", 0, 0),
            "dim": ("tok_embeddings.weight", 1, 0),
            "block_size": ("freqs_cis", 0, -1),  # where it is: the first row is the class token's
        },
    ),
    "var": Family(
        VARConfig, VAR, VARVQConfig,
        layers=("depth", "blocks."),
        shapes={
            "num_classes": ("class_emb.weight", 0, -1),
            "vocab_size": ("head.weight", 0, 0),
            "dim": ("head.weight", 1, 0),
            "code_dim": ("word_embed.weight", 1, 0),
        },
    ),
}  # fmt: skip


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def family_of(name: str) -> Family:
    if name not in FAMILIES:
        raise ValueError(f"unknown family {name!r}: one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def configure(family: str, size: str, **overrides: Any) -> Any:
    """A model's config. Overrides: its fields; for LlamaGen also `image_size` in pixels (256, 384, 512, ...).

    Raises ValueError for an unknown family, size or override.
    """
    kind = family_of(family).config
    if size not in SIZES[family]:
        raise ValueError(f"unknown size {size!r} of {family}: one of {', '.join(SIZES[family])}")
    if "image_size" in overrides and family == "llamagen":
        side, rest = divmod(overrides.pop("image_size"), PIXELS_A_TOKEN)
        if rest or not side:
            raise ValueError(f"image_size must be a multiple of {PIXELS_A_TOKEN} pixels, such as 256, 384 or 512")
        overrides["block_size"] = side**2
    allowed = {f.name for f in fields(kind)}
    if unknown := sorted(set(overrides) - allowed):
        raise ValueError(f"unknown override {unknown[0]!r} of {family}: one of {', '.join(sorted(allowed))}")
    return kind(**{**SIZES[family][size], **overrides})


def build(family: str, size: str, tokenizer: Tokenizer | None = None, **overrides: Any) -> Model:
    """A model with random weights; see `configure`. VAR needs its tokenizer before it is used."""
    model = family_of(family).model(configure(family, size, **overrides))
    model.initialize(torch.Generator().manual_seed(0))
    if isinstance(model, VAR) and isinstance(tokenizer, VARVQVAE):
        model.attach(tokenizer.quantize)
    return model


def build_tokenizer(family: str, **overrides: Any) -> Tokenizer:
    """The family's tokenizer with random weights; without overrides the official one."""
    family_of(family)
    return VARVQVAE(VARVQConfig(**overrides)) if family == "var" else LlamaGenVQ(VQConfig(**overrides))


def known(config: Mapping[str, Any], kind: type, source: str | Path) -> dict[str, Any]:
    """A file's own `config`, if it is one of this kind. ValueError, naming the file, if it is of another."""
    if unknown := set(config) - {f.name for f in fields(kind)}:
        raise ValueError(
            f"{source}: not a {kind.__name__.removesuffix('Config')} checkpoint (its config has {min(unknown)})"
        )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def load_tokenizer(family: str, checkpoint: str | Path, **overrides: Any) -> Tokenizer:
    """A frozen tokenizer: the official one, or one of ours, whose file says its widths."""
    state, config = read_checkpoint(checkpoint)
    config = known(config, family_of(family).tokenizer_config, checkpoint)
    tokenizer = build_tokenizer(family, **{**config, **overrides})
    load_state(tokenizer, state, checkpoint)
    return tokenizer.requires_grad_(False)


def content_of(family: Family, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What names and shapes in an official file say of its model."""
    field, prefix = family.layers
    found: dict[str, Any] = {field: len({name.split(".")[1] for name in state if name.startswith(prefix)})}
    for key, (name, axis, extra) in family.shapes.items():
        if name in state and state[name].ndim > axis:
            found[key] = state[name].shape[axis] + extra
    if "lvl_1L" in state:  # VAR: the scale of every token
        found["patch_nums"] = tuple(round(count**0.5) for count in state["lvl_1L"].flatten().bincount().tolist())
    return found


def load_official(
    family: str,
    size: str,
    checkpoint: str | Path,
    tokenizer_checkpoint: str | Path | None = None,
    length: int | None = None,
    **overrides: Any,
) -> Model:
    """A model with an official checkpoint's weights, ready to score; the weights stay memory-mapped until moved.

    What the file tells of its model holds (its tokens an image, where it does not: `length`, or those of 384
    pixels); an override that contradicts it is a ValueError.  VAR needs its tokenizer, whose codes are its input;
    LlamaGen does not: its tokenizer, if given, is checked to have as many codes as the model has tokens.
    """
    kinds = family_of(family)
    state, config = read_checkpoint(checkpoint)
    found = {**content_of(kinds, state), **known(config, kinds.config, checkpoint)}
    default = {"block_size": length} if family == "llamagen" and length and "image_size" not in overrides else {}
    wanted = configure(family, size, **{**default, **found, **SIZES[family].get(size, {}), **overrides})
    for key, value in found.items():
        if getattr(wanted, key) != value:
            raise ValueError(f"{checkpoint}: its {key} is {value}, not the {getattr(wanted, key)} of {family} {size}")
    with torch.device("meta"):
        blank = kinds.model(wanted)
    model = blank.unfilled()
    load_state(model, state, checkpoint)
    if isinstance(model, VAR):
        if tokenizer_checkpoint is None:
            raise ValueError(f"{checkpoint}: VAR wants its tokenizer's checkpoint too, such as vae_ch160v4096z32.pth")
        tokenizer = load_tokenizer(family, tokenizer_checkpoint)
        assert isinstance(tokenizer, VARVQVAE)
        try:
            model.attach(tokenizer.quantize)
        except ValueError as error:
            raise ValueError(f"{tokenizer_checkpoint}: {error}") from None
    elif tokenizer_checkpoint is not None:
        codes = read_checkpoint(tokenizer_checkpoint)[0].get("quantize.embedding.weight", torch.empty(0)).shape[0]
        if codes != model.config.vocab_size:
            raise ValueError(
                f"{tokenizer_checkpoint}: {codes} codes, but the model has {model.config.vocab_size} tokens"
            )
    return model


def save_official(model: Model | Tokenizer, path: str | Path) -> None:
    """Write a file that the official samplers load unchanged; safetensors if the path ends so."""
    write_checkpoint(model.state_dict(), asdict(model.config), path)
