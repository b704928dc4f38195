"""Checkpoint files. What a file is, its content decides, never its name; and no code in it is ever run."""

import datetime
import hashlib
import json
import os
import re
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PosixPath, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from cca_ray.errors import first_line
from cca_ray.storage.files import atomically

# Where a state dict lies in a file: DDP's, DeepSpeed's and others' (FSDP's are bare), and VAR's own training file.
WRAPPERS = ("", "model", "module", "state_dict", "ema", "trainer.var_wo_ddp")
PREFIXES = ("module.", "_orig_mod.", "model.")  # of all names: what DDP, torch.compile and others wrap a model in
DEEPEST = 3  # mappings in mappings that are looked into
# Buffers of the official training code that carry no weights.
IDLE = {"freqs_cis", "quantize.codebook_used"}


def is_safetensors(path: str | Path) -> bool:
    """Such a file begins with the length of its header, a JSON object."""
    with open(path, "rb") as file:
        start = file.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < os.path.getsize(path)


def harmless() -> list[Any]:
    """What training scripts leave beside the weights: arguments, paths, times, numpy's numbers. They run nothing."""
    scalar, array = np.float64(1.0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in np.typecodes["All"] if code != "O"}  # all but of objects
    old = [(scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct")]
    times = [datetime.datetime, datetime.date, datetime.timedelta, datetime.timezone]
    plain = [Namespace, PosixPath, PurePosixPath, list, defaultdict, slice]
    return [*plain, *times, scalar, array, np.ndarray, np.dtype, *kinds, *old]


def read_checkpoint(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The state dict in an official file and the `config` that our own files carry; memory-mapped.

    Reads safetensors and `torch.save`d files: a state dict at one of `WRAPPERS`, whatever else lies beside it. A prefix
    that all names share is taken off.  Raises ValueError, naming the file, for anything else.
    """
    try:
        if is_safetensors(path):
            with safe_open(path, framework="pt") as file:
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
                return without_prefix(state), json.loads((file.metadata() or {}).get("config", "{}"))
        refuse_packed(path)
        with torch.serialization.safe_globals(harmless()):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except FileNotFoundError:
        raise ValueError(f"{path}: no such checkpoint file") from None
    except IsADirectoryError:
        raise ValueError(f"{path}: is a folder, not a checkpoint file") from None
    except Exception as error:  # see `errors.reading`: of some the reason is rewritten
        raise ValueError(f"{path}: not a readable checkpoint ({reason_of(error)})") from None
    states = dict(state_dicts(content))
    where = next((key for key in WRAPPERS if key in states), None)
    if where is None:
        there = f"; there are some under {', '.join(map(repr, states))}: save one of them alone" if states else ""
        raise ValueError(f"{path}: holds no state dict (a mapping of names to tensors, bare or under 'model'){there}")
    config = content.get("config", {}) if where else getattr(content, "config", {})
    return without_prefix(states[where]), dict(config) if isinstance(config, Mapping) else {}


def refuse_packed(path: str | Path) -> None:
    """ValueError if a file packs what `torch.save` never packs: a few bytes would unpack to any number."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if member.compress_type != zipfile.ZIP_STORED:
                    raise ValueError(f"{member.filename} is compressed, which torch.save does not do")


def reason_of(error: Exception) -> str:
    """Why a file cannot be read, in a line; of an object that could run code, which it is."""
    text = str(error)
    if refused := re.search(r"GLOBAL ([\w.]+)|but got <class '([\w.]+)'>", text):
        return f"it holds an object of {refused[1] or refused[2]}, which could run code: save the state dict alone"
    return first_line(ValueError(text.split("WeightsUnpickler error:")[-1].strip()))


def state_dicts(content: object, where: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """All non-empty mappings of names to tensors, by where they lie: keys joined by dots."""
    if not isinstance(content, Mapping) or not content:
        return
    if all(isinstance(key, str) and isinstance(value, Tensor) for key, value in content.items()):
        yield where, content
    elif depth < DEEPEST:
        for key, value in content.items():
            yield from state_dicts(value, f"{where}.{key}".lstrip("."), depth + 1)


def without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same by shorter names, if all begin with the same wrappers'."""
    while found := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(found): tensor for name, tensor in state.items()}
    return dict(state)


def refuse_non_finite(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """ValueError, naming the tensor, if one holds a NaN, or a weight an infinity: it would make a whole study void.

    One pass over the file, which is read anyway: under a second of arithmetic for 3 billion weights. Masks, which are
    buffers, may be infinite.
    """
    weights = {name for name, _ in model.named_parameters()}
    for name, tensor in state.items():
        if not tensor.is_floating_point() or not tensor.numel():
            continue
        low, high = torch.aminmax(tensor)  # a NaN is both
        if low.isnan() or (name in weights and not (low.isfinite() and high.isfinite())):
            what = "NaN" if low.isnan() else "an infinite number"
            raise ValueError(f"{source}: {name} holds {what}: the file is damaged, or its training had diverged")


def load_state(model: nn.Module, state: Mapping[str, Tensor], source: str | Path) -> None:
    """Make these tensors the model's own, without a copy where the precision is the same. The model may be on `meta`.

    Strict: everything missing, unexpected or of another shape is listed in one ValueError; so is what is not finite.
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
    refuse_non_finite(model, state, source)
    model.load_state_dict({name: tensor.to(expected[name].dtype) for name, tensor in state.items()}, assign=True)


def digest_of_weights(model: nn.Module) -> str:
    """Sixteen hexadecimal digits that name a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def write_checkpoint(
    state: Mapping[str, Tensor], config: Mapping[str, Any], path: str | Path, bare: bool = False
) -> None:
    """`{"model": state, "config": ...}`, or safetensors if the path ends so. The official code passes over `config`.

    `bare`: the state dict itself, for official code that takes a file for one; `config` is an attribute of it, which
    nobody sees who loads it as a mapping.
    """
    if Path(path).suffix == ".safetensors":
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
        atomically(path, lambda partial: save_file(tensors, partial, {"config": json.dumps(config)}))
    elif bare:
        alone = OrderedDict(state)
        vars(alone)["config"] = dict(config)
        atomically(path, lambda partial: torch.save(alone, partial))
    else:
        write_atomically({"model": dict(state), "config": dict(config)}, path)


def write_atomically(content: Mapping[str, object], path: str | Path) -> None:
    """`torch.save`, complete or not at all."""
    atomically(path, lambda partial: torch.save(dict(content), partial))
