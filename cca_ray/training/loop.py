"""The Ray Train loop: train -> sample -> score in place, at each rung.

The same loop runs alone or as one of several workers; only `Group` knows which.  What it needs is a `Job`,
whose files lie on storage that all nodes see, or are copies of those at a URI.
"""

import gc
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import ray
import torch
from PIL import Image
from torch import Tensor, nn

from cca_ray.cluster.load import load_here
from cca_ray.cluster.placement import (
    TYPE,
    accelerator_of,
    autocast,
    devices,
    is_out_of_memory,
    micro_batch_size,
)
from cca_ray.config import CPU, ResolvedStudy, Train
from cca_ray.data.pairs import Batch, EpochPlan, micro_batches, moved, plan_epoch, steps_per_epoch
from cca_ray.data.tokens import TokenSet
from cca_ray.errors import Stuck
from cca_ray.evaluation.sampler import image_grid
from cca_ray.evaluation.scoring import Scoring, load_base, load_tokens, protocol_of, score, scoring_of
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import Model, save_official
from cca_ray.models.files import digest_of_weights
from cca_ray.models.parallel import (
    Group,
    Weights,
    distribute,
    for_sampling,
    gradients_wait,
    local,
    weights_of,
    whole_model,
)
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import drop, patiently
from cca_ray.storage.uris import named
from cca_ray.training.checkpoint import resume, save_checkpoint
from cca_ray.training.heartbeat import Pulse
from cca_ray.training.job import Job
from cca_ray.training.objectives import counts_as_positive, finetune_loss, pair_loss
from cca_ray.training.out_of_memory import shrink, smaller
from cca_ray.training.reference_logps import ReferenceTable, pair_logps, read_table, table_key

# Accuracy counts every pair, as the official code does: null-masked and equal-label pairs can never win.
METRICS = ("loss", "reward_accuracy", "reward_margin")
Report = Callable[[dict[str, Any]], None]


class Diverged(ValueError):
    """The loss is no longer a number."""


def card_here() -> str:
    """The type of card of this node, as Ray names it; CPU if it has none."""
    labels = ray.get_runtime_context().get_node_labels() if ray.is_initialized() else {}
    return labels.get(TYPE, CPU)


@torch.no_grad()
def update_ema(ema: Weights, model: nn.Module, decay: float, step: int) -> None:
    """Exponential mean of the weights. The decay starts low, so that short runs forget the base."""
    decay = min(decay, (1 + step) / (10 + step))
    now = weights_of(model)
    torch._foreach_lerp_([local(mean) for mean in ema.values()], [local(now[name]) for name in ema], 1 - decay)


@dataclass
class Loop:
    """A fine-tuning under way: what `fine_tune` and its steps share."""

    job: Job
    group: Group
    base_digest: str
    model: Model
    scorer: nn.Module  # the model's `Scorer`, wrapped for several workers
    frozen: nn.Module | None  # that of the reference, where it is live
    table: ReferenceTable | None
    ema: Weights | None
    optimizer: torch.optim.Optimizer
    data: TokenSet
    scoring: Scoring
    plan: EpochPlan | None = None

    def scored_model(self) -> Model:
        """What is sampled at a rung: the EMA, whole, on every worker."""
        return whole_model(self.model, self.ema or {}, self.group.device)


def reference_key(base_digest: str, config: ResolvedStudy, train: Train, data: TokenSet) -> str:
    return table_key(base_digest, data, train.null_ratio, train.seed, config.placement.precision)


def prepare(job: Job, group: Group) -> Loop:
    """Load everything; several workers share one process group that Ray Train has set up."""
    train, placement = job.train, job.config.placement
    data = load_tokens(job.config.data.tokens)
    model = load_base(job.config)
    base_digest = digest_of_weights(model)
    table = None
    if job.table is not None and train.objective != "finetune":
        key = reference_key(base_digest, job.config, train, data)
        table = read_table(job.table, key, len(data.labels), train.epochs)
    frozen = None
    if table is None and train.objective != "finetune":
        frozen = distribute(load_base(job.config).requires_grad_(False), placement, group)
    scorer = distribute(model, placement, group)
    return Loop(
        job=job,
        group=group,
        base_digest=base_digest,
        model=model,
        scorer=scorer,
        frozen=frozen,
        table=table,
        ema={name: tensor.clone() for name, tensor in weights_of(model).items()} if train.ema_decay else None,
        optimizer=torch.optim.AdamW(
            model.parameters(),
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.weight_decay,
            fused=True,
        ),
        data=data,
        scoring=scoring_of(job.config, group.device),
    )


def dropout_of(train: Train, batch: Batch, epoch: int) -> Dropout | None:
    """The dropout of a batch's images as positives, then, except in plain fine-tuning, as negatives."""
    if not train.dropout:
        return None
    halves = 1 if train.objective == "finetune" else 2
    keys = [dropout_keys(batch.index.numpy(), train.seed, epoch, half) for half in range(halves)]
    return Dropout(train.dropout, moved(torch.cat(keys), batch.tokens.device))


def batch_loss(loop: Loop, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
    """Losses per pair [B], and the sums over the batch of `METRICS` [3] for the log."""
    train = loop.job.train
    if train.objective == "finetune":
        logps = loop.scorer(batch.labels, batch.tokens, dropout_of(train, batch, epoch))
        losses = finetune_loss(logps, batch.tokens.shape[1])
        return losses, torch.stack([losses.detach().sum(), losses.new_zeros(()), losses.new_zeros(())])
    tokens = torch.cat([batch.tokens, batch.tokens])  # one forward over positives and negatives
    labels = torch.cat([batch.labels, batch.negative_labels])
    positive, negative = loop.scorer(labels, tokens, dropout_of(train, batch, epoch)).chunk(2)
    if loop.table is not None:
        ref_positive, ref_negative = loop.table.of(epoch, batch)
    else:
        assert loop.frozen is not None
        ref_positive, ref_negative = pair_logps(loop.frozen, batch)
    gap, negative_gap = positive - ref_positive, negative - ref_negative
    as_positive = counts_as_positive(batch.labels, batch.negative_labels, batch.null)
    losses = pair_loss(train.objective, gap, negative_gap, as_positive, train.beta, train.lambda_)
    sums = torch.stack([losses.sum(), (gap > negative_gap).float().sum(), (gap - negative_gap).sum()])
    return losses, sums.detach()


def train_step(loop: Loop, step: int) -> Tensor:
    """One optimizer step on one global batch; returns `METRICS` [3], this worker's share of their mean."""
    train, group, placement = loop.job.train, loop.group, loop.job.config.placement
    epoch, within = divmod(step, steps_per_epoch(len(loop.data.labels), train.global_batch))
    if within == 0 or loop.plan is None:
        crops, null_label = loop.data.meta.crops, loop.model.null_label
        loop.plan = plan_epoch(loop.data.labels, crops, null_label, train.null_ratio, train.seed, epoch)
    size = micro_batch_size(placement, train.global_batch)
    batches = list(micro_batches(loop.data, loop.plan, within, train.global_batch, size, group.rank, group.world))
    sums = torch.zeros(len(METRICS), device=group.device)
    for i, batch in enumerate(batches):
        with gradients_wait(loop.scorer, i < len(batches) - 1):
            with autocast(placement, group.device):
                losses, metrics = batch_loss(loop, batch.to(group.device), epoch)
            # DDP averages over workers: times world, the sum of all shares is the mean over the global batch.
            (losses.sum() * group.world / train.global_batch).backward()
        sums += metrics / train.global_batch
    if train.clip:
        nn.utils.clip_grad_norm_(loop.model.parameters(), train.clip)
    for parameters in loop.optimizer.param_groups:
        parameters["lr"] = train.learning_rate * min(1.0, (step + 1) / (train.warmup_steps or 1))
    loop.optimizer.step()
    loop.optimizer.zero_grad(set_to_none=True)
    if loop.ema is not None:
        update_ema(loop.ema, loop.model, train.ema_decay, step)
    return sums


class Log:
    """Metrics per step, kept on the device until `flush`, so that no step waits for the CPU."""

    def __init__(self, group: Group):
        self.group = group
        self.pending: list[tuple[int, Tensor]] = []
        self.since = time.monotonic()

    def add(self, step: int, sums: Tensor) -> None:
        self.pending.append((step, sums))

    def flush(self, images_per_step: int) -> dict[str, Any]:
        """History [(step, *METRICS)] since the last flush, and the rate. Raises Diverged on every worker alike."""
        now, pending = time.monotonic(), self.pending
        rate = len(pending) * images_per_step / max(now - self.since, 1e-9)
        self.pending, self.since = [], now
        if not pending:
            return {"history": [], "images_per_second": 0.0}
        values = self.group.sum(torch.stack([sums for _, sums in pending])).tolist()
        for (step, _), row in zip(pending, values, strict=True):
            if not all(math.isfinite(v) for v in row):
                raise Diverged(f"the loss is {row[0]:g} at step {step}")
        history = [[step, *row] for (step, _), row in zip(pending, values, strict=True)]
        return {"history": history, "images_per_second": rate}


def total_steps(images: int, train: Train) -> int:
    return steps_per_epoch(images, train.global_batch) * train.epochs


def rung_steps(config: ResolvedStudy, total: int) -> dict[int, int]:
    """Optimizer step -> samples to score there."""
    return {max(1, round(rung.at * total)): rung.samples for rung in config.rungs}


def save_grid(images: np.ndarray, scoring: Scoring, path: Path) -> None:
    """images [N, H, W, 3] uint8, a column a class where there are no more than ten."""
    picture = Image.fromarray(image_grid(images, min(scoring.num_classes, 10)))
    patiently(lambda: atomically(path, lambda partial: picture.save(partial, "png")))


def score_rung(loop: Loop, step: int, samples: int, alive: Callable[[], None]) -> dict[str, Any]:
    """Score the EMA; the first worker writes the grid of samples."""
    model = loop.scored_model()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"the weights are no longer finite at step {step}")
    protocol = protocol_of(loop.job.config, loop.scoring, samples)
    started = time.monotonic()
    placement = loop.job.config.placement
    scored = score(for_sampling(model, placement, loop.group), loop.scoring, protocol, loop.group, alive)
    values, without = scored.score.values, scored.score.without
    for metric in loop.scoring.metrics:
        if not math.isfinite(values[metric.name]):
            raise Diverged(f"the {metric.label} is {values[metric.name]} at step {step}")
    grid = loop.job.folder / f"samples-{step:06d}.png"
    if loop.group.rank == 0:
        save_grid(scored.images, loop.scoring, grid)
    return {
        "fid": values["fid"],
        "without": [list(pair) for pair in zip(without["fid"], without["inception_score"], strict=True)],
        "inception_score": values["inception_score"],
        "samples": samples,
        "protocol": protocol.id,
        "grid": named(grid),
        "scoring_seconds": time.monotonic() - started,
    }


def settings_of(loop: Loop) -> str:
    """Everything that a checkpoint's weights and scores depend on, so that no other run is ever resumed from it."""
    config = loop.job.config
    return json.dumps(
        {
            "train": loop.job.train.model_dump(by_alias=True, exclude={"reference"}),
            "base": loop.base_digest,
            "tokens": loop.data.digest,
            "rungs": [rung.model_dump() for rung in config.rungs],
            "protocol": protocol_of(config, loop.scoring, 0).id,
            "precision": config.placement.precision,
        }
    )


def save_final(loop: Loop, path: Path) -> None:
    """Write the weights that were scored, in the official format."""
    model = loop.scored_model()
    if loop.group.rank == 0:
        patiently(lambda: save_official(model, path))


def fine_tune(job: Job, report: Report, group: Group) -> Path | None:
    """Run one fine-tuning, from its checkpoint if there is one; the file with the final weights, None if stopped.

    `report` receives at least every few seconds `step`, `total_steps`, `seconds`, `history`, `images_per_second`, where
    it ran (`accelerator`, `workers`, `micro_batch`) and how busy that is (`load`), `device_seconds` by type of card,
    and at each rung `fid` and what belongs to it. After a resume what was reported before is reported again.
    When memory runs out, the micro-batch is halved and the accumulation doubled, which changes no result.
    Raises Diverged, and Stuck if files cannot be read or written.
    """
    while True:
        try:
            return attempt(smaller(job), report, group)
        except (RuntimeError, MemoryError) as error:
            # The other workers of a group may be waiting for this one: Ray Train starts all of them anew.
            if not is_out_of_memory(error) or not shrink(job) or group.world > 1:
                raise
        # Only here, where the error no longer holds the tensors of the step that failed.
        gc.collect()
        if group.device.type == "cuda":
            torch.cuda.empty_cache()


def memory_and_load(group: Group) -> dict[str, Any]:
    """`load`: [name, value] of the first worker's machine and of every worker's GPU.

    `gpu_memory_gib`: the most that any worker has held in this attempt; not there without GPUs.
    """
    peak = torch.cuda.max_memory_allocated(group.device) / 2**30 if group.device.type == "cuda" else None
    loads, peaks = zip(*group.gather((load_here(group.device, group.rank), peak)), strict=True)
    # Tune would flatten a dict.
    found = {"load": [pair for load in loads for pair in load.items()]}
    return found if peak is None else {**found, "gpu_memory_gib": max(peaks)}


def attempt(job: Job, report: Report, group: Group) -> Path | None:
    """See `fine_tune`."""
    checkpoint, final = job.folder / "checkpoint.pt", job.folder / "model.pt"
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(group.device)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        pulse, loop = Pulse(job, group), prepare(job, group)
        settings = settings_of(loop)
        progress = resume(checkpoint, loop.model, loop.ema, loop.optimizer, settings)
        total = total_steps(len(loop.data.labels), job.train)
        if progress.step == total:
            save_final(loop, final)
    except (OSError, ValueError) as error:
        raise Stuck(str(error)) from error
    rungs, placement = rung_steps(job.config, total), job.config.placement
    for passed in progress.reports:
        report({**passed, "stopped": False})
    card = accelerator_of(placement) or card_here()
    since, log = time.monotonic(), Log(group)
    for step in range(progress.step, total):
        log.add(step + 1, train_step(loop, step))
        done = step + 1
        due, save, stop = pulse.beat()
        if done not in rungs and not due:
            continue
        result = {"step": done, "total_steps": total, **log.flush(job.train.global_batch)}
        result |= {"accelerator": card, "workers": group.world}
        result["micro_batch"] = micro_batch_size(placement, job.train.global_batch)
        try:
            if done in rungs:
                result.update(score_rung(loop, done, rungs[done], pulse.alive))
                log.since = time.monotonic()
            result |= memory_and_load(group)
            progress.spend((now := time.monotonic()) - since, card, devices(placement))
            progress.step, since = done, now
            used = list(progress.device_seconds.items())  # Tune would flatten a dict
            progress.add(result := {**result, "seconds": progress.seconds, "device_seconds": used})
            if done in rungs or save:
                save_checkpoint(checkpoint, loop.model, loop.ema, loop.optimizer, progress, settings, group)
            if done == total:  # before the report: who hears of the end may look for the weights
                save_final(loop, final)
        except OSError as error:
            raise Stuck(str(error)) from error
        report({**result, "stopped": stop and done < total})
        if stop and done < total:
            return None
    drop(checkpoint)
    return final
