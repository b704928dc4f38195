"""Checkpoint files. What a file is, its content decides, never its name; and no code in it is ever run."""

import hashlib
import json
import os
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cca_ray.storage.files import atomically

WRAPPERS = ("model", "module", "state_dict")  # official files: DDP, DeepSpeed, others; FSDP's are bare
# Buffers of the official training code that carry no weights.
IDLE = {"freqs_cis", "quantize.codebook_used"}


def is_safetensors(path: str | Path) -> bool:
    """Such a file begins with the length of its header, a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path)


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in an official file and the `config` that our own files carry; memory-mapped.

    Reads safetensors and `torch.save`d files: a bare state dict, or one under `model`, `module` or `state_dict`,
    whatever else lies beside it.  Raises ValueError, naming the file, for anything else.
    """
    try:
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return state, json.loads((file.metadata() or {}).get("config", "{}"))
        # The official training script leaves its arguments in the file: a plain Namespace, which runs nothing.
        with torch.serialization.safe_globals([Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder, not a checkpoint file") from None
    except (pickle.UnpicklingError, SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path}: not a readable checkpoint ({reason})") from None
    found: Any = content
    if isinstance(content, Mapping):
        found = next((content[key] for key in WRAPPERS if isinstance(content.get(key), Mapping)), content)
    if not isinstance(found, Mapping) or not found or not all(isinstance(v, Tensor) for v in found.values()):
        raise ValueError(f"{path}: holds no state dict (a mapping of names to tensors, bare or under 'model')")
    config = content.get("config", {}) if found is not content else {}
    return dict(found), dict(config) if isinstance(config, Mapping) else {}


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Make these tensors the model's own, without a copy where the precision is the same. The model may be on `meta`.

    Strict: everything missing, unexpected or of another shape is listed in one ValueError.
    """
    expected = model.state_dict()
    state = {k: v for k, v in state.items() if k in expected or k not in IDLE}
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
    model.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, assign=True)


def digest_of_weights(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_checkpoint(state: Mapping[str, Tensor], config: Mapping[str, Any], path: str | Path) -> None:
    """`{"model": state, "config": ...}`, or safetensors if the path ends so. The official code passes over `config`."""
    if Path(path).suffix == ".safetensors":
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        atomically(path, lambda partial: save_file(tensors, partial, {"config": json.dumps(config)}))
    else:
        write_atomically({"model": dict(state), "config": dict(config)}, path)


def write_atomically(content: Mapping[str, object], path: str | Path) -> None:
    """`torch.save`, complete or not at all."""
    atomically(path, lambda partial: torch.save(dict(content), partial))
