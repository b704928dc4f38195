"""Sampling tokens: guidance-free against guided, and against the official samplers with the same weights.

Tokens only: the tokenizer's decoder, the same for all, is left out.  Weights are random, which changes no speed.

    python -m benchmarks.sample                 ours alone
    python -m benchmarks.sample --peer PEERS    and the official samplers, from checkouts PEERS/LlamaGen and PEERS/VAR
"""

import statistics
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Raw, options
from cca_ray.evaluation.sampler import Decoding, sample_tokens, uniforms
from cca_ray.models.base import Model
from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.models.var import PATCH_NUMS, VAR, VARConfig
from cca_ray.models.var_vqvae import VARVQVAE, VARVQConfig

Sampler = Callable[[Tensor], Any]  # labels [B] -> whatever it makes


@dataclass(frozen=True)
class Shape:
    """Of both families' models. `patches`: VAR's scales."""

    depth: int = 6
    dim: int = 384
    tokens: int = 256
    patches: tuple[int, ...] = PATCH_NUMS


SMOKE = Shape(depth=1, dim=64, tokens=16, patches=(1, 2))


def llamagen(shape: Shape) -> LlamaGen:
    heads = shape.dim // 64
    model = LlamaGen(LlamaGenConfig(n_layer=shape.depth, n_head=heads, dim=shape.dim, block_size=shape.tokens))
    model.initialize(torch.Generator().manual_seed(0))
    return model


def var(shape: Shape) -> VAR:
    torch.manual_seed(0)
    model = VAR(VARConfig(depth=shape.depth, n_head=shape.dim // 64, dim=shape.dim, patch_nums=shape.patches))
    model.initialize(torch.Generator().manual_seed(0))
    model.attach(VARVQVAE(VARVQConfig(patch_nums=shape.patches, ch=32)))  # its decoder is not used
    return model


def ours(model: Model, guidance_scale: float, batch: int) -> Sampler:
    noise = uniforms(0, np.arange(batch), model.config.block_size)
    return lambda labels: sample_tokens(model, labels, noise, Decoding(guidance_scale))


def official_llamagen(model: LlamaGen, checkout: Path, guidance_scale: float) -> Sampler:
    """`generate` of the official repository, at cfg `guidance_scale`."""
    sys.path.insert(0, str(checkout))
    from autoregressive.models.generate import generate  # type: ignore[import-not-found]
    from autoregressive.models.gpt import ModelArgs, Transformer  # type: ignore[import-not-found]

    c = model.config
    official = Transformer(ModelArgs(n_layer=c.n_layer, n_head=c.n_head, dim=c.dim, block_size=c.block_size)).eval()
    missing, unexpected = official.load_state_dict(model.state_dict(), strict=False)
    assert not missing, missing
    assert set(unexpected) <= {"freqs_cis"}, unexpected
    return lambda labels: generate(official, labels, c.block_size, cfg_scale=guidance_scale)


def official_var(model: VAR, checkout: Path, guidance_scale: float) -> Sampler:
    """`autoregressive_infer_cfg` of the official repository at cfg `guidance_scale` - 1, without its decoder."""
    hub: Any = types.ModuleType("huggingface_hub")  # it only gives the model a download method
    hub.PyTorchModelHubMixin = object
    sys.modules.setdefault("huggingface_hub", hub)
    sys.path.insert(0, str(checkout))
    from models import build_vae_var  # type: ignore[import-not-found]

    tokenizer, official = build_vae_var("cpu", ch=32, depth=model.config.depth)
    official.load_state_dict(model.state_dict(), strict=True)
    assert model.codes is not None
    tokenizer.quantize.load_state_dict(dict(model.codes.named_buffers()))
    decoded: Any = types.SimpleNamespace(fhat_to_img=lambda latents: latents)
    official.eval().vae_proxy = (decoded,)
    return lambda labels: official.autoregressive_infer_cfg(len(labels), labels, g_seed=0, cfg=guidance_scale - 1)


def samplers(model: Model, batch: int, peer: Path | None) -> dict[str, Sampler]:
    made = {"guided": ours(model, 2.0, batch), "guidance-free": ours(model, 1.0, batch)}
    if peer is not None and isinstance(model, LlamaGen):
        made["official, cfg 1"] = official_llamagen(model, peer / "LlamaGen", 1.0)
    if peer is not None and isinstance(model, VAR):
        made["official, cfg 0"] = official_var(model, peer / "VAR", 1.0)
    return made


def rates(made: dict[str, Sampler], labels: Tensor, rounds: int) -> dict[str, list[float]]:
    """Images/s of each, in turn, after a warm-up round."""
    found: dict[str, list[float]] = {name: [] for name in made}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, sample in made.items():
                started = time.perf_counter()
                sample(labels)
                if number:
                    found[name].append(len(labels) / (time.perf_counter() - started))
    return found


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args(words)
    shape, batch, rounds = (SMOKE, 2, 1) if arguments.smoke else (Shape(), arguments.batch, arguments.rounds)
    raw = Raw(arguments.raw, "model", "sampler", "round", "images/s")
    labels = torch.arange(batch) % 1000
    models: list[Model] = [llamagen(shape), var(shape)]  # the official VAR takes torch's initialisation away
    print(f"{shape.dim} wide, {shape.depth} layers, batch {batch}, {torch.get_num_threads()} threads, float32")
    print("| | tokens an image | images/s | guidance-free is faster by |\n|---|---|---|---|")
    for model in models:
        found = rates(samplers(model, batch, arguments.peer), labels, rounds)
        for name, values in found.items():
            for number, value in enumerate(values):
                raw.add(type(model).__name__, name, number, value)
            ratio = statistics.median(b / a for a, b in zip(values, found["guidance-free"], strict=True))
            cells = f"{model.config.block_size} | {statistics.median(values):.2f} | {ratio:.2f} ×"
            print(f"| {type(model).__name__}, {name} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
