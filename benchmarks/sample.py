"""Sampling tokens: guidance-free against guided, and against the official samplers with the same weights.

Tokens only: the tokenizer's decoder, the same for all, is left out.  Weights are random, which changes no speed.

    python -m benchmarks.sample                 ours alone
    python -m benchmarks.sample --peer PEERS    and the official samplers, from checkouts PEERS/LlamaGen and PEERS/VAR
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.common import Raw, options
from benchmarks.peers import official_llamagen, official_var, synchronised
from cca_ray.evaluation.decoder import Decoder
from cca_ray.evaluation.sampler import CACHE_BYTES, Decoding, sample_tokens, uniforms
from cca_ray.models.base import Model
from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.models.var import VAR, VARConfig
from cca_ray.models.var_vqvae import PATCH_NUMS, VARVQVAE, VARVQConfig

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


def ours(
    model: Model, guidance_scale: float, batch: int, decoder: Decoder | None = None, cache: int = CACHE_BYTES
) -> Sampler:
    """`decoder`: the model's own, where it keeps something from batch to batch. `cache`: see `sample_tokens`."""
    noise = uniforms(0, np.arange(batch), model.config.block_size).to(next(model.parameters()).device)
    return lambda labels: sample_tokens(model, labels, noise, Decoding(guidance_scale), cache, decoder)


def official(model: Model, peer: Path, guidance_scale: float) -> Sampler:
    """LlamaGen's `generate` at cfg `guidance_scale`; VAR's `autoregressive_infer_cfg` at cfg `guidance_scale` - 1."""
    if isinstance(model, LlamaGen):
        network: Any = official_llamagen(model, peer / "LlamaGen").to(model.output.weight.dtype).eval()
        from autoregressive.models.generate import generate  # type: ignore[import-not-found]

        return lambda labels: generate(network, labels, model.config.block_size, cfg_scale=guidance_scale)
    assert isinstance(model, VAR)
    sampler: Any = official_var(model, peer / "VAR").eval()
    return lambda labels: sampler.autoregressive_infer_cfg(len(labels), labels, g_seed=0, cfg=guidance_scale - 1)


def samplers(model: Model, batch: int, peer: Path | None) -> dict[str, Sampler]:
    made = {"guided": ours(model, 2.0, batch), "guidance-free": ours(model, 1.0, batch)}
    if peer is not None:
        made["official, cfg 1" if isinstance(model, LlamaGen) else "official, cfg 0"] = official(model, peer, 1.0)
    return made


def rates(made: dict[str, Sampler], labels: Tensor, rounds: int) -> dict[str, list[float]]:
    """Images/s of each, in turn, after a warm-up round."""
    found: dict[str, list[float]] = {name: [] for name in made}
    with torch.inference_mode():
        for number in range(rounds + 1):
            for name, sample in made.items():
                synchronised(labels.device)
                started = time.perf_counter()
                sample(labels)
                synchronised(labels.device)
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
    models: list[Model] = [llamagen(shape), var(shape)]
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
