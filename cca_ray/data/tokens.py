"""Token sets: a folder of `part-*.parquet` and a `manifest.json`, which is written last.

A row is an image: its label and its tokens, crop after crop, as uint16.  In a set with captions the label is the
number of the image's caption: see `captions`.  A folder without a manifest is half-written and never read; a part that
does not match the manifest is an error.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, model_serializer
from torch import Tensor

from cca_ray.data.captions import CaptionMeta, Captions, read_captions
from cca_ray.data.moving import moved
from cca_ray.data.unpacking import unpacked
from cca_ray.errors import ConfigError, reading
from cca_ray.models.base import Tokenizer
from cca_ray.models.condition import Classes
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull, push, remove
from cca_ray.storage.uris import own_cache, path_below

MANIFEST, UNREADABLE = "manifest.json", "unreadable.txt"
DAMAGED_PART = "damaged; delete it to make it again"
LARGE = 2**30  # bytes of tokens above which they are mapped from a file instead of held by every process


class TokenMeta(BaseModel):
    """What the tokens mean; stored in the schema of every part and in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tokenizer: str  # digest of its weights
    codebook_size: int
    length: int  # tokens a crop
    crops: int  # crops an image
    image_size: int  # pixels along a side
    augmentations: tuple[str, ...]  # one name a crop
    class_names: tuple[str, ...]  # none in a set with captions
    captions: CaptionMeta | None = None

    @property
    def conditions(self) -> int:
        """How many there are: classes, or captions."""
        return self.captions.count if self.captions else len(self.class_names)

    @property
    def kind(self) -> str:
        """Of conditions, in the words of `models.condition`."""
        return str(self.captions or Classes(len(self.class_names)))

    @model_serializer(mode="wrap")
    def without_captions(self, usual: SerializerFunctionWrapHandler) -> dict[str, object]:
        """Of classes as in earlier versions, for their digests are of this."""
        return {key: value for key, value in usual(self).items() if key != "captions" or value is not None}


@dataclass(frozen=True)
class TokenSet:
    """labels [N] int64, tokens [N, crops, length] uint16, what names them, and the captions, if labels are theirs."""

    labels: np.ndarray
    tokens: np.ndarray
    meta: TokenMeta
    digest: str
    captions: Captions | None = None


def to_input(images: np.ndarray) -> torch.Tensor:
    """What tokenizers take: [N, H, W, 3] uint8 -> [N, 3, H, W] in [-1, 1]."""
    return scaled(torch.from_numpy(np.ascontiguousarray(images)))


def scaled(pixels: Tensor) -> Tensor:
    """The same of a tensor, where it is. The divisor is a tensor: by a plain number a GPU would multiply, and round."""
    return pixels.permute(0, 3, 1, 2).float() / torch.full((), 127.5, device=pixels.device) - 1.0


def encode_images(tokenizer: Tokenizer, images: np.ndarray, batch: int = 256) -> Iterator[np.ndarray]:
    """images [N, H, W, 3] uint8 -> token batches [B, L] uint16, in order."""
    device, starts = next(tokenizer.parameters()).device, range(0, len(images), batch)
    parts = (torch.from_numpy(np.ascontiguousarray(images[start : start + batch])) for start in starts)
    on_device = (moved(part, device) for part in parts)  # as bytes: a quarter of what floats would be
    pixels = next(on_device, None)
    while pixels is not None:
        following = next(on_device, None)  # on its way while these are encoded
        with torch.inference_mode():
            tokens = tokenizer.encode(scaled(pixels))
            yield tokens.cpu().numpy().astype(np.uint16)
        pixels = following


def part_path(folder: Path, number: int) -> Path:
    return folder / f"part-{number:05d}.parquet"


def write_part(
    path: Path, labels: np.ndarray, tokens: np.ndarray, meta: TokenMeta, unreadable: Sequence[str] = ()
) -> Path:
    """labels [B], tokens [B, crops, length]: complete or not at all. `unreadable`: what was left out here, and why."""
    width = meta.crops * meta.length
    schema = pa.schema(
        [("label", pa.int32()), ("tokens", pa.list_(pa.uint16(), width))],
        metadata={"cca_ray": meta.model_dump_json(), "unreadable": json.dumps(list(unreadable))},
    )
    values = pa.array(np.ascontiguousarray(tokens, dtype=np.uint16).reshape(-1))
    columns = [pa.array(labels, pa.int32()), pa.FixedSizeListArray.from_arrays(values, width)]
    table = pa.Table.from_arrays(columns, schema=schema)
    # Parquet has no 16-bit numbers: the dictionary packs each code into as many bits as the codebook needs.
    atomically(path, lambda partial: pq.write_table(table, partial, compression="zstd"))
    return path


def no_images(passed_over: Mapping[str, int]) -> str:
    """In words, of files that are no images by their names: how many of each suffix."""
    kinds = ", ".join(f"{number} {suffix or 'without an ending'}" for suffix, number in passed_over.items())
    count = sum(passed_over.values())
    which = "file is no image by its name" if count == 1 else "files are no images by their names"
    return f"{count:,} {which}: {kinds}"


@dataclass(frozen=True)
class Counts:
    """What became of a collection's images, for the manifest and for people."""

    seen: int
    taken: int
    unreadable: int
    fewest: int  # images taken of the smallest class; it may have none
    fewest_class: str
    passed_over: Mapping[str, int]  # files that are no images by their names, by suffix
    captions: int = 0  # of the images taken; where there are some, there are no classes

    def __str__(self) -> str:
        text = f"{self.seen:,} images: {self.taken:,} taken, {self.unreadable:,} unreadable; "
        of_classes = f"at least {self.fewest:,} a class ({self.fewest_class})"
        text += f"{self.captions:,} captions" if self.captions else of_classes
        if self.passed_over:
            text += f"; {no_images(self.passed_over)}"
        return text


def count_images(
    folder: Path, meta: TokenMeta, parts: int, labels: np.ndarray, passed_over: Mapping[str, int], allow_empty: bool
) -> Counts:
    """Of parts that are all there; `labels` [N]: of all images that were seen.

    ConfigError if none could be read or, unless it is allowed, none of a class that had some.
    """
    taken = np.concatenate([read_labels(part_path(folder, number)) for number in range(parts)])
    if not len(taken):
        raise ConfigError(f"{folder}: not one of {len(labels):,} images can be read; see {folder / UNREADABLE}")
    lost_images = len(labels) - len(taken)
    if meta.captions is not None:
        return Counts(len(labels), len(taken), lost_images, 0, "", passed_over, captions=len(np.unique(taken)))
    had, has = (np.bincount(some, minlength=len(meta.class_names)) for some in (labels, taken))
    lost = [meta.class_names[i] for i in np.flatnonzero((had > 0) & (has == 0))]
    if lost and not allow_empty:
        raise ConfigError(
            f"{folder}: no image of the class {lost[0]!r}{f' and {len(lost) - 1} more' * (len(lost) > 1)} can be read; "
            f"see {folder / UNREADABLE}, or use --allow-empty-classes to continue without them"
        )
    smallest = has.argmin()
    return Counts(len(labels), len(taken), lost_images, int(has[smallest]), meta.class_names[smallest], passed_over)


def read_footer(path: Path) -> tuple[int, list[str]]:
    """How many images a part holds, and those that were left out of it, each with the reason."""
    with reading(path, DAMAGED_PART):
        footer = pq.read_metadata(path)
        return footer.num_rows, list(json.loads(footer.metadata[b"unreadable"]))


def read_labels(path: Path) -> np.ndarray:
    """Of a part."""
    with reading(path, DAMAGED_PART):
        labels: np.ndarray = pq.ParquetFile(path).read(["label"])[0].to_numpy()
        return labels


def finish_token_set(folder: Path, meta: TokenMeta, parts: int, counts: Counts | None = None) -> str:
    """Write the manifest of parts that are all there; returns the set's digest, which the counts do not enter."""
    entries: list[dict[str, str | int]] = []
    unreadable: list[str] = []
    for path in (part_path(folder, number) for number in range(parts)):
        rows, left_out = read_footer(path)
        entries.append({"name": path.name, "rows": rows, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()})
        unreadable += left_out
    write_unreadable(folder / UNREADABLE, unreadable)
    digest = hashlib.sha256(json.dumps([meta.model_dump_json(), entries]).encode()).hexdigest()[:16]
    manifest = {"digest": digest, "meta": meta.model_dump(), "parts": entries, "unreadable": len(unreadable)}
    if counts is not None:
        # Of classes as in earlier versions.
        manifest["images"] = {key: value for key, value in asdict(counts).items() if key != "captions" or value}
    atomically(folder / MANIFEST, lambda partial: partial.write_text(json.dumps(manifest, indent=1)))
    return digest


def write_unreadable(path: Path, names: Sequence[str]) -> None:
    """One line each; no file if there are none."""
    if names:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("\n".join(names) + "\n")
        push(path)
    else:
        remove(path)


def write_token_set(folder: Path, batches: Iterable[tuple[np.ndarray, np.ndarray]], meta: TokenMeta) -> str:
    """Write batches of (labels [B], tokens [B, crops, length]) as one part each; returns the set's digest."""
    folder.mkdir(parents=True, exist_ok=True)
    remove(folder / MANIFEST)
    written = [
        write_part(part_path(folder, number), labels, tokens, meta) for number, (labels, tokens) in enumerate(batches)
    ]
    return finish_token_set(folder, meta, len(written))


def read_part(path: Path, sha256: str, meta: TokenMeta, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """labels [B], tokens [B, crops, length] of one part. ValueError, naming the file, if it was altered."""
    content = path.read_bytes() if path.is_file() else b""
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path}: missing, or not what the manifest says; make the token set again")
    # Not pq.read_table: its dataset scanner leaves threads behind that abort a process which ends soon (pyarrow 25).
    parquet = pq.ParquetFile(pa.BufferReader(content))
    groups = [parquet.metadata.row_group(i) for i in range(parquet.metadata.num_row_groups)]
    values = [sum(group.column(i).num_values for group in groups) for i in range(parquet.metadata.num_columns)]
    if values != [rows, rows * meta.crops * meta.length]:  # before room is made for them
        raise ValueError(f"{path}: has {values} labels and tokens, not those of the manifest; make the token set again")
    table = parquet.read()
    flat = table["tokens"].combine_chunks().flatten().to_numpy()
    return table["label"].to_numpy(), flat.reshape(-1, meta.crops, meta.length)


def read_token_set(folder: str | Path, large: int = LARGE) -> TokenSet:
    """Read a whole set. ValueError, naming the file, if it is absent, half-written or altered.

    One of more than `large` bytes is unpacked once a node into a file that all its processes map.
    """
    folder = Path(folder)
    pull(folder)
    if not (folder / MANIFEST).is_file():
        raise ValueError(f"{folder}: no finished token set here ({MANIFEST} is written last)")
    with reading(folder / MANIFEST, "not a token manifest"):
        manifest = json.loads((folder / MANIFEST).read_text())
        meta = TokenMeta.model_validate(manifest["meta"])
        parts, digest = manifest["parts"], str(manifest["digest"])
        rows = [int(part["rows"]) for part in parts]
        for name in (digest, *(part["name"] for part in parts)):
            path_below(folder, name)
    if not sum(rows):
        raise ValueError(f"{folder}: the token set is empty")

    def content() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        named = zip(parts, rows, strict=True)
        return (read_part(folder / part["name"], part["sha256"], meta, count) for part, count in named)

    shape = (sum(rows), meta.crops, meta.length)
    if 2 * np.prod(shape) <= large:
        columns = [np.concatenate(column) for column in zip(*content(), strict=True)]
        labels, tokens = columns[0].astype(np.int64), columns[1]
    else:
        labels, tokens = unpacked(own_cache() / digest, shape, content)
    captions = read_captions(folder, meta.captions) if meta.captions else None
    if captions is not None and not (labels.min() >= 0 and labels.max() < len(captions.texts)):
        raise ValueError(f"{folder}: an image's caption is none of the {len(captions.texts)}; make the token set again")
    return TokenSet(labels, tokens, meta, digest, captions)
