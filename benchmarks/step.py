"""One CCA step: ours against the official one, with the same weights, batch and optimizer, CPU, float32.

The official way (thu-ml/CCA, LlamaGen_finetune.py): a second model scores the reference, log-softmax over all
logits, then gather.  Ours: the reference is a table, log-likelihoods by cross-entropy; the batch whole, or in
micro-batches of two pairs, which changes no result (the official negatives come from within a micro-batch).  Peak
memory is that of a process that does nothing else, less what it takes to start.

    python -m benchmarks.step                 ours alone
    python -m benchmarks.step --peer PEERS    PEERS/LlamaGen: a checkout of the official repository
"""

import argparse
import copy
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.common import ROOT, Raw, options
from benchmarks.peers import official_llamagen
from cca_ray.models.base import ModelConfig
from cca_ray.models.likelihood import Scorer
from cca_ray.models.llamagen import LlamaGen, LlamaGenConfig
from cca_ray.training.objectives import CCA, CcaParameters, ScoredPairs

BETA, LAMBDA, RATE = 0.02, 300.0, 1e-5
SHAPES = {
    "384 wide, 6 layers": LlamaGenConfig(n_layer=6, n_head=6, dim=384, block_size=64),
    "GPT-B": LlamaGenConfig(n_layer=12, n_head=12, dim=768, block_size=64),
}
SMOKE = {"64 wide, 1 layer": LlamaGenConfig(n_layer=1, n_head=1, dim=64, block_size=16, vocab_size=64)}
WAYS = {"whole": 0, "in micro-batches of 2": 2}  # pairs; 0: all
Step = Callable[[], float]  # one optimizer step; its loss
Inputs = Callable[[nn.Module, Tensor, Tensor], Tensor]  # a network, labels [B], tokens [B, L] -> its logits [B, L, V]


@dataclass(frozen=True)
class Pairs:
    """tokens [B, L]; labels, negative_labels [B] with the null label where null [B]."""

    tokens: Tensor
    labels: Tensor
    negative_labels: Tensor
    null: Tensor

    def to(self, device: torch.device) -> "Pairs":
        return Pairs(**{name: tensor.to(device) for name, tensor in vars(self).items()})

    def parts(self, size: int) -> list["Pairs"]:
        """So many pairs each."""
        columns = {name: tensor.split(size) for name, tensor in vars(self).items()}
        return [Pairs(**dict(zip(columns, part, strict=True))) for part in zip(*columns.values(), strict=True)]


def pairs(config: ModelConfig, batch: int) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(config.vocab_size, (batch, config.block_size), generator=generator)
    labels = torch.randint(config.num_classes, (batch,), generator=generator)
    null = torch.arange(batch) == 0
    negative = labels.roll(-1).masked_fill(null, config.num_classes)
    return Pairs(tokens, labels.masked_fill(null, config.num_classes), negative, null)


def weights(config: LlamaGenConfig) -> LlamaGen:
    model = LlamaGen(config)
    model.initialize(torch.Generator().manual_seed(0))
    return model


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.95), weight_decay=0.05, fused=True)


def update(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def ours(config: LlamaGenConfig, batch: int, micro_batch: int) -> Step:
    model, data = weights(config), pairs(config, batch)
    scorer, optimizer = Scorer(model), optimizer_of(model)
    labels = torch.stack([data.labels, data.negative_labels])
    with torch.no_grad():  # what the study's table holds
        reference = scorer(labels.flatten(), data.tokens.repeat(2, 1)).view(2, batch)
    parameters = CcaParameters(lambda_=LAMBDA, beta=BETA)

    def step() -> float:
        total = 0.0
        for start in range(0, batch, micro_batch):
            cut = slice(start, start + micro_batch)
            logps = scorer(labels[:, cut].flatten(), data.tokens[cut].repeat(2, 1)).view(2, -1)
            scored = ScoredPairs(
                length=config.block_size,
                logps=logps[0],
                labels=data.labels[cut],
                null=data.null[cut],
                reference_logps=reference[0, cut],
                negative_logps=logps[1],
                negative_labels=data.negative_labels[cut],
                negative_reference_logps=reference[1, cut],
            )
            loss = CCA.loss(scored, parameters).sum() / batch
            loss.backward()
            total += loss.item()
        update(model, optimizer)
        return total

    return step


@dataclass(frozen=True)
class Manner:
    """How the official step computes. `micro_batch`: pairs, 0 for all; `half`: under bfloat16 autocast."""

    micro_batch: int = 0
    half: bool = False
    compiled: bool = False  # both networks, as the official LlamaGen script does by itself


def official(network: nn.Module, data: Pairs, inputs: Inputs, manner: Manner = Manner()) -> Step:
    """The loop's body, around the official network; its copy is the reference. `inputs` of a network: see `Inputs`."""
    frozen, optimizer = copy.deepcopy(network).requires_grad_(False), optimizer_of(network)
    if manner.compiled:
        network, frozen = (cast(nn.Module, torch.compile(some)) for some in (network, frozen))
    batch = len(data.labels)

    def logps(logits: Tensor, tokens: Tensor) -> Tensor:
        return torch.gather(logits.log_softmax(-1), dim=2, index=tokens.unsqueeze(2)).squeeze(2).sum(-1)

    def loss_of(part: Pairs) -> Tensor:
        pairs, twice = len(part.labels), torch.cat([part.tokens, part.tokens])
        labels = torch.cat([part.labels, part.negative_labels])
        with torch.autocast(data.tokens.device.type, torch.bfloat16, enabled=manner.half):
            with torch.no_grad():
                reference = inputs(frozen, labels, twice)
            logits = inputs(network, labels, twice)
        gap = logps(logits[:pairs], part.tokens) - logps(reference[:pairs], part.tokens)
        negative_gap = logps(logits[pairs:], part.tokens) - logps(reference[pairs:], part.tokens)
        as_positive = part.null | (part.negative_labels == part.labels)
        weight = torch.where(as_positive, 1.0, LAMBDA)
        sign = as_positive.float() * 2 - 1
        loss = -F.logsigmoid(gap * BETA).mean() - (weight * F.logsigmoid(sign * negative_gap * BETA)).mean()
        return loss / max(LAMBDA, 1.0)

    def step() -> float:
        total, parts = 0.0, data.parts(manner.micro_batch or batch)
        for part in parts:
            loss = loss_of(part) / len(parts)
            loss.backward()
            total += loss.item()
        update(network, optimizer)
        return total

    return step


def of_llamagen(network: nn.Module, labels: Tensor, tokens: Tensor) -> Tensor:
    """Logits [B, L, V] of the official LlamaGen."""
    return cast(Tensor, network(cond_idx=labels, idx=tokens[:, :-1], targets=tokens)[0])


def made(side: str, shape: str, batch: int, peer: Path | None) -> Step:
    config = (SHAPES | SMOKE)[shape]
    if side == "official":
        assert peer is not None
        return official(official_llamagen(weights(config), peer / "LlamaGen"), pairs(config, batch), of_llamagen)
    return ours(config, batch, WAYS[side] or batch)


def peak() -> int:
    """Of this process so far, in bytes, from Linux; getrusage would count what the parent held when it forked."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


def memory(side: str, shape: str, arguments: argparse.Namespace) -> int:
    """Bytes that three steps take, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.step", "--batch", str(arguments.batch), "--only", side, shape]
    command += ["--peer", str(arguments.peer.resolve())] if arguments.peer else []
    outcome = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return int(json.loads(outcome.stdout.splitlines()[-1]))


def compare(shape: str, arguments: argparse.Namespace, raw: Raw) -> None:
    """Print the rows of one shape; without the official way, against ours as a whole."""
    other = "official" if arguments.peer else "whole"
    sides = {side: made(side, shape, arguments.batch, arguments.peer) for side in dict.fromkeys((other, *WAYS))}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    losses: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(arguments.rounds + 2):
        for side, step in sides.items():
            started = time.perf_counter()
            losses[side].append(step())
            if number >= 2:
                seconds[side].append(time.perf_counter() - started)
                raw.add(shape, side, number - 2, seconds[side][-1], losses[side][-1])
    rate = {side: arguments.batch / statistics.median(values) for side, values in seconds.items()}
    some = [other] if arguments.smoke else sides  # each takes a process
    bytes_ = dict.fromkeys(sides, 0) | {side: memory(side, shape, arguments) for side in some}
    for way in WAYS:
        apart = max(abs(a - b) for a, b in zip(losses[way], losses[other], strict=True))
        ratio = statistics.median(a / b for a, b in zip(seconds[other], seconds[way], strict=True))
        print(
            f"| {shape}, {way} | {rate[other]:.2f} | {rate[way]:.2f} | {ratio:.2f} × "
            f"| {bytes_[other] / 2**20:,.0f} | {bytes_[way] / 2**20:,.0f} "
            f"| {bytes_[way] / bytes_[other]:.2f} | {apart:.1e} |",
            flush=True,
        )


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--batch", type=int, default=8, help="pairs")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs=2, metavar=("SIDE", "SHAPE"), help=argparse.SUPPRESS)
    arguments = parser.parse_args(words)
    if arguments.only:
        before = peak()
        side, shape = arguments.only
        step = made(side, shape, arguments.batch, arguments.peer)
        for _ in range(3):
            step()
        print(json.dumps(peak() - before))
        return
    print(f"64 tokens, batch {arguments.batch} pairs, {torch.get_num_threads()} threads, float32")
    other = "official" if arguments.peer else "whole"
    print(f"| | {other} images/s | ours | ratio | {other} MiB at most | ours | ratio | losses apart |")
    print("|" + "---|" * 8)
    raw = Raw(arguments.raw, "shape", "way", "round", "seconds", "loss")
    for shape in SMOKE if arguments.smoke else SHAPES:
        compare(shape, arguments, raw)


if __name__ == "__main__":
    main()
