"""The frozen model's log-likelihoods, computed once per study and read by all its trials.

Pairs are deterministic, so log p_ref under the true and under the negative condition is a table over
(epoch, image).  It is keyed by everything it depends on; a table with another key is an error, never used.
The reference is scored without dropout: a departure from the official scripts, where it is random.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from cca_ray.data import Batch, gather, plan_epoch
from cca_ray.objective import Scorer
from cca_ray.tokens import TokenSet


@dataclass(frozen=True)
class ReferenceTable:
    """positive, negative [epochs, N] float32: log p_ref summed over the tokens of an image, in nats."""

    key: str
    positive: Tensor
    negative: Tensor

    def of(self, epoch: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """log p_ref [B] of a batch's pairs, on the batch's device."""
        index, device = batch.index.cpu(), batch.tokens.device
        return self.positive[epoch, index].to(device), self.negative[epoch, index].to(device)


def table_key(model_digest: str, data: TokenSet, null_ratio: float, seed: int, epochs: int) -> str:
    """Names the table of these weights, tokens and pairs."""
    content = json.dumps([model_digest, data.digest, null_ratio, seed, epochs])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@torch.inference_mode()
def pair_logps(scorer: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p of a batch's images under the true and under the negative conditions, [B] each, in one forward pass.

    `scorer`: a `Scorer`, or one that is wrapped for several workers.
    """
    tokens = torch.cat([batch.tokens, batch.tokens])
    positive, negative = scorer(torch.cat([batch.labels, batch.negative_labels]), tokens).chunk(2)
    return positive, negative


def compute_table(
    scorer: Scorer,
    data: TokenSet,
    key: str,
    null_ratio: float,
    seed: int,
    epochs: int,
    batch: int = 256,
    progress: Callable[[int], None] = lambda done: None,
) -> ReferenceTable:
    """Score every pair of every epoch. `progress` is told how many pairs are done."""
    images, device = len(data.labels), next(scorer.parameters()).device
    positive, negative = torch.empty(epochs, images), torch.empty(epochs, images)
    for epoch in range(epochs):
        plan = plan_epoch(data.labels, data.meta.crops, scorer.model.null_label, null_ratio, seed, epoch)
        for start in range(0, images, batch):
            index = np.arange(start, min(start + batch, images))
            logps = pair_logps(scorer, gather(data, plan, index).to(device))
            positive[epoch, index], negative[epoch, index] = (values.cpu() for values in logps)
            progress(epoch * images + int(index[-1]) + 1)
    return ReferenceTable(key, positive, negative)


def write_table(table: ReferenceTable, path: Path) -> None:
    """One Parquet file, complete or not at all."""
    epochs, images = table.positive.shape
    columns = {
        "epoch": np.repeat(np.arange(epochs, dtype=np.int32), images),
        "index": np.tile(np.arange(images, dtype=np.int32), epochs),
        "positive": table.positive.flatten().numpy(),
        "negative": table.negative.flatten().numpy(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    metadata = {"cca_ray_key": table.key, "cca_ray_epochs": str(epochs)}
    pq.write_table(pa.table(columns).replace_schema_metadata(metadata), partial)
    partial.replace(path)


def read_table(path: str | Path, key: str) -> ReferenceTable:
    """ValueError, naming the file, if it is unreadable, torn, or made for other weights, tokens or pairs."""
    try:
        table = pq.read_table(path)
        metadata = table.schema.metadata
        found, epochs = metadata[b"cca_ray_key"].decode(), int(metadata[b"cca_ray_epochs"])
        positive, negative = (
            torch.from_numpy(table[name].to_numpy().reshape(epochs, -1).copy()) for name in ("positive", "negative")
        )
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: not a reference table; delete it to make it again ({error})") from None
    if found != key:
        raise ValueError(f"{path}: made for other weights, tokens or pairs (key {found}, want {key}); delete it")
    return ReferenceTable(key, positive, negative)
