"""The frozen model's log-likelihoods, computed once and read by all trials, also of later studies.

Pairs are deterministic, so log p_ref under the true and under the negative condition is a table over
(epoch, image).  It lies in a folder, a Parquet file for every part of an epoch, each written whole or not at all;
so any number of workers can make it, and what is there is not made again.  It is keyed by everything it depends
on; a file with another key is an error, never used.
The reference is scored without dropout: a departure from the official scripts, where it is random.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from cca_ray.config import TokenOrder
from cca_ray.data.moving import moved
from cca_ray.data.pairs import Batch, gather, plan_epoch
from cca_ray.data.tokens import TokenSet
from cca_ray.errors import reading
from cca_ray.models.likelihood import Scorer
from cca_ray.storage.files import atomically
from cca_ray.storage.lock import LOCK
from cca_ray.storage.mirror import pull

PART_PAIRS = 2**15  # a file
COLUMNS = ("positive", "negative")


@dataclass(frozen=True)
class ReferenceTable:
    """positive, negative [epochs, N] float32: log p_ref summed over the tokens of an image, in nats."""

    positive: Tensor
    negative: Tensor

    def of(self, epoch: int, batch: Batch) -> tuple[Tensor, Tensor]:
        """log p_ref [B] of a batch's pairs, on the batch's device."""
        device = batch.tokens.device
        return moved(self.positive[epoch, batch.index], device), moved(self.negative[epoch, batch.index], device)


@dataclass(frozen=True)
class Part:
    """The images from `start` to before `stop`, in one epoch: what one file holds."""

    epoch: int
    start: int
    stop: int

    def path(self, folder: Path) -> Path:
        return folder / f"epoch-{self.epoch:03}-from-{self.start:09}.parquet"


def parts_of(images: int, epochs: int, size: int = PART_PAIRS) -> list[Part]:
    """All parts of a table, in order."""
    return [
        Part(epoch, start, min(start + size, images)) for epoch in range(epochs) for start in range(0, images, size)
    ]


def table_key(
    model_digest: str, data: TokenSet, null_ratio: float, seed: int, precision: str, order: TokenOrder = "raster",
    code: str = "",
) -> str:  # fmt: skip
    """Names the table of these weights, tokens and pairs, scored in this precision (that of `placement`).

    `code`: the digest of a plug-in's source, if the family is one's. It counts where it is given, the order of tokens
    where it is not raster: tables of earlier versions keep their names.
    """
    added = [*([order] * (order != "raster")), *([code] * bool(code))]
    content = json.dumps([model_digest, data.digest, null_ratio, seed, precision, *added])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


@torch.no_grad()  # not inference_mode: an objective may multiply what it trains by these
def pair_logps(scorer: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """log p of a batch's images under the true and under the negative conditions, [B] each, in one forward pass.

    `scorer`: a `Scorer`, or one that is wrapped for several workers.
    """
    condition, tokens, places = batch.both()
    positive, negative = scorer(condition, tokens, None, places).chunk(2)
    return positive, negative


def score_part(
    scorer: Scorer, data: TokenSet, part: Part, null_ratio: float, seed: int, batch: int,
    order: TokenOrder = "raster",
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """log p of a part's pairs, `batch` at a time: positive, negative [stop - start] float32."""
    device = next(scorer.parameters()).device
    plan = plan_epoch(data.labels, data.meta.crops, scorer.model.null_label, null_ratio, seed, part.epoch, order)
    scored = [
        pair_logps(scorer, gather(data, plan, np.arange(start, min(start + batch, part.stop))).to(device))
        for start in range(part.start, part.stop, batch)
    ]
    positive, negative = (torch.cat(column).float().cpu().numpy() for column in zip(*scored, strict=True))
    return positive, negative


def write_part(folder: Path, part: Part, key: str, positive: np.ndarray, negative: np.ndarray) -> None:
    """One Parquet file with checksums, complete or not at all."""
    table = pa.table(dict(zip(COLUMNS, (positive, negative), strict=True)))
    table = table.replace_schema_metadata({"cca_ray_key": key})
    atomically(part.path(folder), lambda path: pq.write_table(table, path, write_page_checksum=True))


def missing_parts(folder: Path, parts: list[Part]) -> list[Part]:
    return [part for part in parts if not part.path(folder).exists()]


@contextmanager
def making(folder: Path) -> Iterator[None]:
    """One process at a time makes a table; others that want it wait here, and then find it made."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def read_part(path: Path, key: str, pairs: int) -> list[np.ndarray]:
    """positive, negative [pairs]. ValueError, naming the file, if it is missing, torn, or made for something else."""
    if not path.exists():
        raise ValueError(f"{path}: missing; run the study again to make it")
    with reading(path, "not part of a reference table; delete it to make it again"):
        with pq.ParquetFile(path, page_checksum_verification=True) as file:  # not pq.read_table: see `data.tokens`
            table = file.read()
        found = (table.schema.metadata or {})[b"cca_ray_key"].decode()
        columns = [table[name].to_numpy() for name in COLUMNS]
    if found != key:
        raise ValueError(f"{path}: made for other weights, tokens or pairs (key {found}, expected {key}); delete it")
    if len(table) != pairs:
        raise ValueError(f"{path}: has {len(table)} pairs, expected {pairs}; delete it to make it again")
    return columns


def read_table(folder: Path, key: str, images: int, epochs: int) -> ReferenceTable:
    """Of the first `epochs`. ValueError, naming the file, if one is missing, torn, or made for something else."""
    pull(folder)
    columns = [read_part(part.path(folder), key, part.stop - part.start) for part in parts_of(images, epochs)]
    positive, negative = (np.concatenate(column).reshape(epochs, images) for column in zip(*columns, strict=True))
    return ReferenceTable(torch.from_numpy(positive), torch.from_numpy(negative))
