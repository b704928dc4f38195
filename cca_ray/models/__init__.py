"""The table of families and sizes; building models; reading and writing official checkpoints."""

import os
import pickle
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.models.llamagen_vq import LlamaGenVQ, VQConfig

__all__ = [
    "SIZES", "LlamaGen", "LlamaGenConfig", "LlamaGenVQ", "VQConfig", "build", "build_tokenizer", "load_official",
    "load_state", "load_tokenizer", "parameters", "read_checkpoint", "save_official", "write_atomically",
]  # fmt: skip

# family -> size -> overrides of the family's defaults. S and M are ours: small bases, trained by `pretrain`.
SIZES: dict[str, dict[str, dict[str, Any]]] = {
    "llamagen": {
        "S": dict(n_layer=2, n_head=2, dim=16, multiple_of=32),
        "M": dict(n_layer=2, n_head=2, dim=24, multiple_of=32),
        "B": dict(n_layer=12, n_head=12, dim=768),  # 111 M parameters
        "L": dict(n_layer=24, n_head=16, dim=1024),  # 343 M
        "XL": dict(n_layer=36, n_head=20, dim=1280),  # 775 M
        "XXL": dict(n_layer=48, n_head=24, dim=1536),  # 1.4 B
        "3B": dict(n_layer=24, n_head=32, dim=3200),  # 3.1 B
    }
}


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def build(family: str, size: str, **overrides: Any) -> LlamaGen:
    """A model with random weights. Overrides: fields of the family's config, or `image_size` (16 pixels a token).

    Raises ValueError for an unknown family, size or override.
    """
    if family not in SIZES:
        raise ValueError(f"unknown family {family!r}: one of {', '.join(SIZES)}")
    if size not in SIZES[family]:
        raise ValueError(f"unknown size {size!r} of {family}: one of {', '.join(SIZES[family])}")
    if "image_size" in overrides:
        overrides["block_size"] = (overrides.pop("image_size") // 16) ** 2
    allowed = {f.name for f in fields(LlamaGenConfig)}
    if unknown := sorted(set(overrides) - allowed):
        raise ValueError(
            f"unknown override {unknown[0]!r} of {family}: one of image_size, {', '.join(sorted(allowed))}"
        )
    model = LlamaGen(LlamaGenConfig(**{**SIZES[family][size], **overrides}))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def build_tokenizer(family: str, **overrides: Any) -> LlamaGenVQ:
    """The family's tokenizer with random weights; without overrides the official VQ-16."""
    if family != "llamagen":
        raise ValueError(f"unknown family {family!r}: one of {', '.join(SIZES)}")
    return LlamaGenVQ(VQConfig(**overrides))


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in an official file, `{"model": ...}` or bare, and the `config` that our own files carry.

    Never unpickles code. Raises ValueError, naming the file, for anything that is not such a file.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable torch checkpoint ({reason})") from None
    state = content.get("model", content) if isinstance(content, Mapping) else None
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"{path}: holds no state dict (a mapping of names to tensors, or one under 'model')")
    return dict(state), dict(content.get("config", {}))


def known(config: Mapping[str, Any], kind: type, source: str | Path) -> dict[str, Any]:
    """A file's own `config`, if it is one of this kind. ValueError, naming the file, if it is of another."""
    if unknown := set(config) - {f.name for f in fields(kind)}:
        raise ValueError(
            f"{source}: not a {kind.__name__.removesuffix('Config')} checkpoint (its config has {min(unknown)})"
        )
    return dict(config)


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Load strictly: everything missing, unexpected or of another shape is listed in one ValueError.

    Buffers of the official training code that carry no weights are passed over.
    """
    state = {k: v for k, v in state.items() if k not in ("freqs_cis", "quantize.codebook_used")}
    expected = model.state_dict()
    problems = [f"missing {k}" for k in expected if k not in state]
    problems += [f"unexpected {k}" for k in state if k not in expected]
    problems += [
        f"{k} is {list(state[k].shape)}, not {list(v.shape)}"
        for k, v in expected.items()
        if k in state and state[k].shape != v.shape
    ]
    if problems:
        shown = "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more" if len(problems) > 5 else "")
        raise ValueError(f"{source}: does not fit the model: {shown}")
    model.load_state_dict(state)


def load_tokenizer(family: str, checkpoint: str | Path, **overrides: Any) -> LlamaGenVQ:
    """A frozen tokenizer: the official VQ-16, or one of ours, whose file says its widths."""
    state, config = read_checkpoint(checkpoint)
    tokenizer = build_tokenizer(family, **{**known(config, VQConfig, checkpoint), **overrides})
    load_state(tokenizer, state, checkpoint)
    return tokenizer.requires_grad_(False)


def load_official(
    family: str, size: str, checkpoint: str | Path, tokenizer_checkpoint: str | Path | None = None, **overrides: Any
) -> LlamaGen:
    """A model with an official checkpoint's weights, ready to score.

    LlamaGen scores tokens without its tokenizer; a tokenizer checkpoint, if given, is checked to have as
    many codes as the model has tokens.
    """
    state, config = read_checkpoint(checkpoint)
    config = known(config, LlamaGenConfig, checkpoint)
    if "image_size" in overrides:
        config.pop("block_size", None)
    model = build(family, size, **{**config, **SIZES.get(family, {}).get(size, {}), **overrides})
    load_state(model, state, checkpoint)
    if tokenizer_checkpoint is not None:
        codes = read_checkpoint(tokenizer_checkpoint)[0].get("quantize.embedding.weight", torch.empty(0)).shape[0]
        if codes != model.config.vocab_size:
            raise ValueError(
                f"{tokenizer_checkpoint}: {codes} codes, but the model has {model.config.vocab_size} tokens"
            )
    return model


def save_official(model: LlamaGen | LlamaGenVQ, path: str | Path) -> None:
    """Write `{"model": state dict, "config": ...}`; the official samplers load it and pass over `config`."""
    write_atomically({"model": model.state_dict(), "config": asdict(model.config)}, path)


def write_atomically(content: dict[str, Any], path: str | Path) -> None:
    """`torch.save`, complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    torch.save(content, partial)
    partial.replace(path)
