"""Images -> token Parquet: a folder of `part-*.parquet` and a `manifest.json`, which is written last.

A row is an image: its label and its tokens, crop after crop, as uint16.  A folder without a manifest is
half-written and never read; a part that does not match the manifest is an error.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, ValidationError

from cca_ray.models import LlamaGenVQ

MANIFEST = "manifest.json"


class TokenMeta(BaseModel):
    """What the tokens mean; stored in the schema of every part and in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str  # digest of its weights
    codebook_size: int
    length: int  # tokens a crop
    crops: int  # crops an image
    image_size: int  # pixels along a side
    augmentations: tuple[str, ...]  # one name a crop
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class TokenSet:
    """labels [N] int64, tokens [N, crops, length] uint16, and what names them."""

    labels: np.ndarray
    tokens: np.ndarray
    meta: TokenMeta
    digest: str


def to_input(images: np.ndarray) -> torch.Tensor:
    """What tokenizers take: [N, H, W, 3] uint8 -> [N, 3, H, W] in [-1, 1]."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1.0


def encode_images(tokenizer: LlamaGenVQ, images: np.ndarray, batch: int = 256) -> Iterator[np.ndarray]:
    """images [N, H, W, 3] uint8 -> token batches [B, L] uint16, in order."""
    for start in range(0, len(images), batch):
        with torch.inference_mode():
            yield tokenizer.encode(to_input(images[start : start + batch])).numpy().astype(np.uint16)


def write_token_set(folder: Path, batches: Iterable[tuple[np.ndarray, np.ndarray]], meta: TokenMeta) -> str:
    """Write batches of (labels [B], tokens [B, crops, length]) as one part each; returns the set's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).unlink(missing_ok=True)
    width = meta.crops * meta.length
    schema = pa.schema(
        [("label", pa.int32()), ("tokens", pa.list_(pa.uint16(), width))],
        metadata={"cca_ray": meta.model_dump_json()},
    )
    parts = []
    for i, (labels, tokens) in enumerate(batches):
        values = pa.array(np.ascontiguousarray(tokens, dtype=np.uint16).reshape(-1))
        columns = [pa.array(labels, pa.int32()), pa.FixedSizeListArray.from_arrays(values, width)]
        path = folder / f"part-{i:05d}.parquet"
        pq.write_table(pa.Table.from_arrays(columns, schema=schema), path)
        parts.append({"name": path.name, "rows": len(labels), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
    digest = hashlib.sha256(json.dumps([meta.model_dump_json(), parts]).encode()).hexdigest()[:16]
    manifest = {"digest": digest, "meta": meta.model_dump(), "parts": parts}
    partial = folder / (MANIFEST + ".partial")
    partial.write_text(json.dumps(manifest, indent=1))
    partial.replace(folder / MANIFEST)
    return digest


def read_token_set(folder: str | Path) -> TokenSet:
    """Read a whole set into memory. ValueError, naming the file, if it is absent, half-written or altered."""
    folder = Path(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        meta = TokenMeta.model_validate(manifest["meta"])
        parts, digest = manifest["parts"], manifest["digest"]
    except FileNotFoundError:
        raise ValueError(f"{folder}: no finished token set here ({MANIFEST} is written last)") from None
    except (json.JSONDecodeError, KeyError, TypeError, ValidationError) as error:
        raise ValueError(f"{folder / MANIFEST}: not a token manifest: {str(error).splitlines()[0]}") from None
    labels, tokens = [], []
    for part in parts:
        path = folder / part["name"]
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != part["sha256"]:
            raise ValueError(f"{path}: missing, or not what the manifest says; make the token set again")
        table = pq.read_table(path)
        labels.append(table["label"].to_numpy())
        flat = table["tokens"].combine_chunks().flatten().to_numpy()
        tokens.append(flat.reshape(-1, meta.crops, meta.length))
    if not labels:
        raise ValueError(f"{folder}: the token set is empty")
    return TokenSet(np.concatenate(labels).astype(np.int64), np.concatenate(tokens), meta, digest)
