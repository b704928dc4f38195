"""Models and tokenizers of any family: building them; reading and writing official checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cca_ray.models.base import Model, Tokenizer
from cca_ray.models.family import Fields, family_of
from cca_ray.models.files import load_state, read_checkpoint, write_checkpoint


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def tied_in(network: nn.Module) -> tuple[str, str] | None:
    """Two names of one parameter; None if each has one name."""
    first = dict[int, str]()
    for name, parameter in network.named_parameters(remove_duplicate=False):
        if id(parameter) in first:
            return first[id(parameter)], name
        first[id(parameter)] = name
    return None


def refuse_tied(network: nn.Module, family: str) -> None:
    """ValueError if a weight has two names: a file has one tensor a name, so that loading would untie them."""
    if names := tied_in(network):
        raise ValueError(
            f"family {family}: {type(network).__name__} ties {names[1]} to {names[0]}, and loading unties them: "
            "give each a weight of its own, or use the one in both places without a second name"
        )


def configure(family: str, size: str, **overrides: Any) -> Any:
    """A model's config; see `Family.configure`. ValueError for an unknown family, size or override."""
    return family_of(family).configure(size, **overrides)


def build(family: str, size: str, tokenizer: Tokenizer | None = None, **overrides: Any) -> Model:
    """A model with random weights; see `configure`. Of some families it needs its tokenizer before it is used.

    ValueError if it ties weights.
    """
    model = family_of(family).parts().model(configure(family, size, **overrides))
    refuse_tied(model, family)
    model.initialize(torch.Generator().manual_seed(0))
    if tokenizer is not None:
        model.attach(tokenizer)
    return model


def build_tokenizer(family: str, **overrides: Any) -> Tokenizer:
    """The family's tokenizer with random weights; without overrides the official one. ValueError if it ties weights."""
    parts = family_of(family).parts()
    tokenizer = parts.tokenizer(parts.tokenizer_config(**overrides))
    refuse_tied(tokenizer, family)
    return tokenizer


def known(config: Mapping[str, Any], kind: type, source: str | Path) -> Fields:
    """A file's own `config`, if it is one of this kind. ValueError, naming the file, if it is of another."""
    if unknown := set(config) - {f.name for f in fields(kind)}:
        raise ValueError(
            f"{source}: not a {kind.__name__.removesuffix('Config')} checkpoint (its config has {min(unknown)})"
        )
    return {key: tuple(value) if isinstance(value, list) else value for key, value in config.items()}


def load_tokenizer(family: str, checkpoint: str | Path, **overrides: Any) -> Tokenizer:
    """A frozen tokenizer: the official one, or one of ours, whose file says its widths."""
    state, config = read_checkpoint(checkpoint)
    config = known(config, family_of(family).parts().tokenizer_config, checkpoint)
    tokenizer = build_tokenizer(family, **{**config, **overrides})
    load_state(tokenizer, state, checkpoint)
    return tokenizer.requires_grad_(False).eval()


def load_official(
    family: str,
    size: str,
    checkpoint: str | Path,
    tokenizer_checkpoint: str | Path | None = None,
    length: int | None = None,
    **overrides: Any,
) -> Model:
    """A model with an official checkpoint's weights, ready to score; the weights stay memory-mapped until moved.

    It is in `eval` mode, as a plug-in may have layers that are random, or mix the rows of a batch, while they train.

    What the file tells of its model holds (its tokens an image, where it does not: `length`, or the family's default);
    an override that contradicts it is a ValueError. The tokenizer, if given, is checked to fit; some families need it.
    """
    kind = family_of(family)
    parts = kind.parts()
    state, config = read_checkpoint(checkpoint)
    found = {**kind.content_of(state), **known(config, parts.model_config, checkpoint)}
    default = kind.of_length(length) if length else {}
    wanted = kind.configure(size, **{**default, **found, **kind.sizes.get(size, {}), **overrides})
    for key, value in found.items():
        if getattr(wanted, key) != value:
            raise ValueError(f"{checkpoint}: its {key} is {value}, not the {getattr(wanted, key)} of {family} {size}")
    with torch.device("meta"):
        blank = parts.model(wanted)
    refuse_tied(blank, family)
    model = blank.unfilled()
    load_state(model, state, checkpoint)
    if tokenizer_checkpoint is not None:
        tokenizer = load_tokenizer(family, tokenizer_checkpoint)
        try:
            model.attach(tokenizer)
        except ValueError as error:
            raise ValueError(f"{tokenizer_checkpoint}: {error}") from None
    elif kind.needs_codes:
        raise ValueError(f"{checkpoint}: a model of {family} also needs its tokenizer's checkpoint")
    return model.eval()


def save_official(model: Model | Tokenizer, path: str | Path) -> None:
    """Write a file that the official samplers load unchanged; safetensors if the path ends so."""
    write_checkpoint(model.state_dict(), asdict(model.config), path, model.bare_file)
