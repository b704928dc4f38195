"""The Ray Train loop: train -> sample -> score in place, at each rung.

The same loop runs alone or as one of several workers; only `Group` knows which.  What it needs is a `Job`,
whose files lie on storage that all nodes see.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from cca_ray.checkpoint import Progress, resume, save_checkpoint
from cca_ray.config import StudyConfig, Train
from cca_ray.data import Batch, EpochPlan, micro_batches, moved, plan_epoch, steps_per_epoch
from cca_ray.features import Extractor, extract, load_extractor
from cca_ray.fid import (
    SHARD,
    Divergence,
    Moments,
    Protocol,
    Reference,
    divergences,
    frechet_distance,
    frechet_distance_few,
    inception_score,
    merge_all,
)
from cca_ray.models import (
    Dropout,
    Model,
    Tokenizer,
    digest_of_weights,
    dropout_keys,
    load_official,
    load_tokenizer,
    save_official,
)
from cca_ray.objective import counts_as_positive, finetune_loss, pair_loss
from cca_ray.parallel import Group, Weights, distribute, for_sampling, gradients_wait, local, weights_of, whole_model
from cca_ray.placement import autocast, micro_batch_size, precision
from cca_ray.reference import ReferenceTable, pair_logps, read_table, table_key
from cca_ray.sampler import Decoding, decode_images, image_grid, labels_of, sample_tokens, uniforms
from cca_ray.tokens import TokenSet, read_token_set

# Accuracy counts every pair, as the official code does: null-masked and equal-label pairs can never win.
METRICS = ("loss", "reward_accuracy", "reward_margin")
HEARTBEAT_S = 5.0  # a report at least this often, so that progress is visible
GRID_IMAGES = 80

Report = Callable[[dict[str, Any]], None]


class Diverged(ValueError):
    """The loss is no longer a number."""


@dataclass(frozen=True)
class Job:
    """One fine-tuning. `config` has its paths resolved; `folder` receives checkpoint, grids and final weights."""

    config: StudyConfig
    train: Train
    folder: Path
    table: Path | None = None  # folder of the reference's log-likelihoods; None: a second model in memory

    def packed(self) -> dict[str, Any]:
        """As plain values, for Ray."""
        return {
            "config": self.config.model_dump_json(by_alias=True),
            "train": self.train.model_dump_json(by_alias=True),
            "folder": str(self.folder),
            "table": str(self.table) if self.table else None,
        }

    @staticmethod
    def unpacked(packed: dict[str, Any]) -> "Job":
        return Job(
            config=StudyConfig.model_validate_json(packed["config"]),
            train=Train.model_validate_json(packed["train"]),
            folder=Path(packed["folder"]),
            table=Path(packed["table"]) if packed["table"] else None,
        )


@dataclass(frozen=True)
class Scoring:
    """All that turns a model's tokens into a score."""

    tokenizer: Tokenizer
    extractor: Extractor
    reference: Reference
    num_classes: int
    image_size: int  # pixels along a side of a decoded image


@dataclass(frozen=True)
class Scored:
    """fid; inception_score (of the extractor's own classes); the first images [n, H, W, 3] uint8."""

    fid: float
    inception_score: float
    images: np.ndarray


def required(path: str | None, key: str) -> str:
    if path is None:
        raise ValueError(f"{key} is not set; an embedded base sets it when it is built")
    return path


@lru_cache(maxsize=2)
def load_tokens(folder: str) -> TokenSet:
    """Kept between the trials of one process."""
    return read_token_set(folder)


@lru_cache(maxsize=2)
def load_scoring(
    family: str, tokenizer: str, features: str, reference: str, tokens: str, device: torch.device
) -> Scoring:
    """Kept between the trials of one process."""
    meta, extractor, statistics = load_tokens(tokens).meta, load_extractor(features), Reference.load(reference)
    decoder = load_tokenizer(family, tokenizer)
    if digest_of_weights(decoder) != meta.tokenizer:
        raise ValueError(f"{tokenizer}: is not the tokenizer that made {tokens}; prepare the tokens with this one")
    if extractor.width != len(statistics.mean):
        raise ValueError(
            f"{reference}: statistics of {len(statistics.mean)} features, but {features} gives {extractor.width}"
        )
    return Scoring(decoder.to(device), extractor.to(device), statistics, len(meta.class_names), meta.image_size)


def scoring_of(config: StudyConfig, device: torch.device) -> Scoring:
    return load_scoring(
        config.base.family,
        required(config.base.tokenizer, "base.tokenizer"),
        required(config.score.features, "score.features"),
        required(config.score.reference, "score.reference"),
        required(config.data.tokens, "data.tokens"),
        device,
    )


def load_base(config: StudyConfig, checkpoint: str | None = None) -> Model:
    """The study's base, or the same architecture with another checkpoint's weights."""
    path = checkpoint or required(config.base.checkpoint, "base.checkpoint")
    meta = load_tokens(required(config.data.tokens, "data.tokens")).meta
    codes = required(config.base.tokenizer, "base.tokenizer") if config.base.family == "var" else None
    model = load_official(config.base.family, config.base.size, path, codes, length=meta.length)
    wanted = (meta.length, meta.codebook_size, len(meta.class_names))
    found = (model.config.block_size, model.config.vocab_size, model.config.num_classes)
    if found != wanted:
        raise ValueError(
            f"{path}: models {found[0]} tokens of {found[1]} codes and {found[2]} classes, but "
            f"{config.data.tokens} holds {wanted[0]} of {wanted[1]} and {wanted[2]}"
        )
    return model


def protocol_of(
    config: StudyConfig, scoring: Scoring, samples: int, guidance_scale: float = 1.0, seed: int | None = None
) -> Protocol:
    """The protocol of a score in this study; noise seed `score.seed` unless another is given.

    ValueError if the samples are not of the size that the feature network takes.
    """
    device = next(scoring.tokenizer.parameters()).device
    half = precision(config.placement, device) == torch.bfloat16
    size = config.score.image_size or scoring.image_size
    wanted = scoring.extractor.image_size
    if wanted is not None and size != wanted:
        raise ValueError(
            f"{config.score.features}: takes images {wanted} pixels wide, not {size}; see score.image_size"
        )
    return Protocol(
        extractor=scoring.extractor.digest,
        reference=scoring.reference.digest,
        samples=samples,
        seed=config.score.seed if seed is None else seed,
        image_size=size,
        labels=config.score.labels,
        precision="bfloat16" if half else "float32",
        resize="none" if size == scoring.image_size else "bicubic",
        guidance_scale=guidance_scale,
        temperature=config.score.temperature,
        top_k=config.score.top_k,
        top_p=config.score.top_p,
    )


def sample_shards(
    model: Model, scoring: Scoring, protocol: Protocol, group: Group
) -> Iterator[tuple[np.ndarray, Tensor, Tensor]]:
    """This worker's images, a shard at a time: index [n], images [n, H, W, 3] uint8, labels [n].

    Workers hold consecutive blocks of shards, so that rank order is image order.
    """
    shards = -(-protocol.samples // SHARD)
    decoding = Decoding(protocol.guidance_scale, protocol.temperature, protocol.top_k, protocol.top_p)
    for shard in np.array_split(np.arange(shards), group.world)[group.rank]:
        index = np.arange(shard * SHARD, min((shard + 1) * SHARD, protocol.samples))
        labels = labels_of(protocol.labels, protocol.seed, index, scoring.num_classes).to(group.device)
        noise = uniforms(protocol.seed, index, sum(model.decode_steps)).to(group.device)
        tokens = sample_tokens(model, labels, noise, decoding)
        yield index, decode_images(scoring.tokenizer, tokens, protocol.image_size), labels


@torch.inference_mode()
def score(model: Model, scoring: Scoring, protocol: Protocol, group: Group) -> Scored:
    """Sample, decode, extract and score where the weights are; every worker gets the result."""
    few = protocol.samples < len(scoring.reference.mean)
    moments: Moments | None = None
    kept: list[np.ndarray] = []
    parts: list[dict[int, Divergence]] = []
    first: list[np.ndarray] = []
    for index, images, _ in sample_shards(model, scoring, protocol, group):
        features = extract(scoring.extractor, images)
        pooled = features.pooled.cpu().numpy()
        if few:
            kept.append(pooled)
        else:
            moments = moments.merge(Moments.of(pooled)) if moments else Moments.of(pooled)
        parts.append(divergences(features.probabilities.cpu().numpy(), index))
        if not first:
            first.append(images[:GRID_IMAGES].cpu().numpy())
    mine = (moments, kept, parts, first if group.rank == 0 else [])
    gathered = group.gather(mine)
    if few:
        fid = frechet_distance_few(np.concatenate([k for part in gathered for k in part[1]]), scoring.reference)
    else:
        fid = frechet_distance(merge_all([part[0] for part in gathered if part[0] is not None]), scoring.reference)
    return Scored(fid, inception_score(p for part in gathered for p in part[2]), gathered[0][3][0])


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


def reference_key(base_digest: str, config: StudyConfig, train: Train, data: TokenSet) -> str:
    return table_key(base_digest, data, train.null_ratio, train.seed, config.placement.precision)


def prepare(job: Job, group: Group) -> Loop:
    """Load everything; several workers share one process group that Ray Train has set up."""
    train, placement = job.train, job.config.placement
    data = load_tokens(required(job.config.data.tokens, "data.tokens"))
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


def rung_steps(config: StudyConfig, total: int) -> dict[int, int]:
    """Optimizer step -> samples to score there."""
    return {max(1, round(rung.at * total)): rung.samples for rung in config.rungs}


def score_rung(loop: Loop, step: int, samples: int) -> dict[str, Any]:
    """Score the EMA; the first worker writes the grid of samples."""
    model = loop.scored_model()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"the weights are no longer finite at step {step}")
    protocol = protocol_of(loop.job.config, loop.scoring, samples)
    started = time.monotonic()
    placement = loop.job.config.placement
    scored = score(for_sampling(model, placement, loop.group), loop.scoring, protocol, loop.group)
    if not math.isfinite(scored.fid):
        raise Diverged(f"the FID is {scored.fid} at step {step}")
    grid = loop.job.folder / f"samples-{step:06d}.png"
    if loop.group.rank == 0:
        columns = min(loop.scoring.num_classes, 10)
        Image.fromarray(image_grid(scored.images, columns)).save(grid)
    return {
        "fid": scored.fid,
        "inception_score": scored.inception_score,
        "samples": samples,
        "protocol": protocol.id,
        "grid": str(grid),
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
        save_official(model, path)


def fine_tune(job: Job, report: Report, group: Group) -> Path:
    """Run one fine-tuning, from its checkpoint if there is one; returns the file with the final weights.

    `report` receives at least every few seconds `step`, `total_steps`, `history`, `images_per_second`, and
    at each rung `fid` and what belongs to it. After a resume the rungs already passed are reported again.
    """
    loop = prepare(job, group)
    job.folder.mkdir(parents=True, exist_ok=True)
    checkpoint, final, settings = job.folder / "checkpoint.pt", job.folder / "model.pt", settings_of(loop)
    progress = resume(checkpoint, loop.model, loop.ema, loop.optimizer, settings)
    total = total_steps(len(loop.data.labels), job.train)
    rungs = rung_steps(job.config, total)
    if progress.step == total:
        save_final(loop, final)
    for passed in progress.reports:
        report(passed)
    log = Log(group)
    for step in range(progress.step, total):
        log.add(step + 1, train_step(loop, step))
        done = step + 1
        # All workers must flush together: without a rung, only the alone may go by their own clock.
        if done not in rungs:
            if group.world == 1 and time.monotonic() - log.since > HEARTBEAT_S:
                report({"step": done, "total_steps": total, **log.flush(job.train.global_batch)})
            continue
        result = {"step": done, "total_steps": total, **log.flush(job.train.global_batch)}
        result.update(score_rung(loop, done, rungs[done]))
        log.since = time.monotonic()
        progress = Progress(done, [*progress.reports, result])
        save_checkpoint(checkpoint, loop.model, loop.ema, loop.optimizer, progress, settings, group)
        if done == total:  # before the report: who hears of the end may look for the weights
            save_final(loop, final)
        report(result)
    return final
