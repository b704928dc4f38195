"""One optimizer step on one global batch, cut into the micro-batches of one worker, and its log."""

import math
import time

import torch
from torch import Tensor, nn

from cca_ray.cluster.placement import autocast, micro_batch_size
from cca_ray.data.moving import moved
from cca_ray.data.pairs import Batch, micro_batches, plan_epoch, steps_per_epoch
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.parallel import Group, gradients_wait
from cca_ray.training.ema import update_ema
from cca_ray.training.objectives import ScoredPairs
from cca_ray.training.reference_logps import pair_logps
from cca_ray.training.setup import Loop


class Diverged(ValueError):
    """The loss is no longer a number."""


def dropout_of(loop: Loop, batch: Batch, epoch: int) -> Dropout | None:
    """The dropout of a batch's images under their true conditions, then, for an objective with pairs, the negative."""
    train = loop.job.train
    if not train.dropout:
        return None
    halves = 2 if loop.objective.pairs else 1
    keys = [dropout_keys(batch.index.numpy(), train.seed, epoch, half) for half in range(halves)]
    return Dropout(train.dropout, moved(torch.cat(keys), batch.tokens.device))


def model_logps(loop: Loop, batch: Batch, epoch: int) -> tuple[Tensor, Tensor | None]:
    """log p [B] under the true and, for an objective with pairs, under the negative conditions, in one forward pass."""
    dropout = dropout_of(loop, batch, epoch)
    if not loop.objective.pairs:
        return loop.scorer(batch.condition, batch.tokens, dropout, batch.places), None
    condition, tokens, places = batch.both()
    positive, negative = loop.scorer(condition, tokens, dropout, places).chunk(2)
    return positive, negative


def reference_logps(loop: Loop, batch: Batch, epoch: int) -> tuple[Tensor | None, Tensor | None]:
    """The same of the frozen base; None for an objective without a reference."""
    if loop.table is not None:
        positive, negative = loop.table.of(epoch, batch)
    elif loop.frozen is not None:
        positive, negative = pair_logps(loop.frozen, batch)
    else:
        return None, None
    return positive, negative if loop.objective.pairs else None


def batch_loss(loop: Loop, batch: Batch, epoch: int) -> tuple[Tensor, Tensor]:
    """Losses per pair [B], and the sums over the batch of what the objective logs."""
    logps, negative_logps = model_logps(loop, batch, epoch)
    reference, negative_reference = reference_logps(loop, batch, epoch)
    pairs = ScoredPairs(
        length=batch.tokens.shape[1],
        logps=logps,
        labels=batch.labels,
        null=batch.null,
        reference_logps=reference,
        negative_logps=negative_logps,
        negative_labels=batch.negative_labels if loop.objective.pairs else None,
        negative_reference_logps=negative_reference,
    )
    values = loop.objective.values(pairs, loop.parameters)
    return values[0], torch.stack([value.sum() for value in values]).detach()


def train_step(loop: Loop, step: int) -> Tensor:
    """One optimizer step on one global batch; returns what is logged, this worker's share of the mean."""
    train, group, placement = loop.job.train, loop.group, loop.job.config.placement
    epoch, within = divmod(step, steps_per_epoch(len(loop.data.labels), train.global_batch))
    if within == 0 or loop.plan is None:
        crops, null_label = loop.data.meta.crops, loop.model.null_label
        loop.plan = plan_epoch(
            loop.data.labels, crops, null_label, train.null_ratio, train.seed, epoch, loop.job.config.data.order
        )
    size = micro_batch_size(placement, train.global_batch)
    batches = list(micro_batches(loop.data, loop.plan, within, train.global_batch, size, group.rank, group.world))
    sums = torch.zeros(len(loop.objective.logged), device=group.device)
    for i, batch in enumerate(batches):
        with gradients_wait(loop.scorer, i < len(batches) - 1):
            with autocast(placement, group.device):
                losses, logged = batch_loss(loop, batch.to(group.device), epoch)
            # DDP averages over workers: times world, the sum of all shares is the mean over the global batch.
            (losses.sum() * group.world / train.global_batch).backward()
        sums += logged / train.global_batch
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
    """What steps log, kept on the device until `flush`, so that no step waits for the CPU."""

    def __init__(self, group: Group):
        self.group = group
        self.pending: list[tuple[int, Tensor]] = []
        self.since = time.monotonic()

    def add(self, step: int, sums: Tensor) -> None:
        self.pending.append((step, sums))

    def flush(self, images_per_step: int) -> tuple[tuple[tuple[float, ...], ...], float]:
        """A row (step, *logged) for every step since the last flush, and images a second.

        Raises Diverged on every worker alike.
        """
        now, pending = time.monotonic(), self.pending
        rate = len(pending) * images_per_step / max(now - self.since, 1e-9)
        self.pending, self.since = [], now
        if not pending:
            return (), 0.0
        values = self.group.sum(torch.stack([sums for _, sums in pending])).tolist()
        for (step, _), row in zip(pending, values, strict=True):
            if not all(math.isfinite(v) for v in row):
                raise Diverged(f"the loss is {row[0]:g} at step {step}")
        return tuple((step, *row) for (step, _), row in zip(pending, values, strict=True)), rate
