"""Images -> tokens, or any other work on images, by Ray Data on all nodes; in parts, each written when it is done.

A run that was cut short goes on at the parts that are missing.
"""

import json
import re
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import ray
import ray.data

from cca_ray.cluster.device import local_device
from cca_ray.cluster.ray_compat import quiet_data
from cca_ray.data.image_files import read_entry
from cca_ray.data.images import Crop, Square, cut, decode
from cca_ray.data.listing import Listing
from cca_ray.data.tokens import (
    MANIFEST,
    UNREADABLE,
    Counts,
    TokenMeta,
    encode_images,
    finish_token_set,
    part_path,
    read_footer,
    write_part,
    write_unreadable,
)
from cca_ray.errors import ConfigError, first_line, reading
from cca_ray.models.base import channels_last
from cca_ray.models.official import load_tokenizer
from cca_ray.registry import load_plugins
from cca_ray.storage.files import atomically
from cca_ray.storage.lease import LEASE
from cca_ray.storage.lock import LOCK
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path

PLAN = "plan.json"
CONTENTS = "contents of images"  # in a plan, since version 0.2
BEGUN = re.compile(  # what a run leaves that was killed before its plan was in place
    rf"{LOCK}|{LEASE}(\.[0-9a-f]{{8}})?|({PLAN}|{LEASE})\.partial-\d+|probe-[0-9a-f]{{8}}"
)
IMAGES_A_TASK = {"cpu": 4, "cuda": 64}  # of seconds each, so that all encoders end together
PIXELS_AT_A_TIME = {"cpu": 2**19, "cuda": 2**22}  # that the tokenizer encodes: its activations are 2.5 to 3.2 kB each

Columns = dict[str, np.ndarray]
Progress = Callable[[int, int, int], None]  # images done, images in all, images that cannot be read


class ReadImages:
    """Reads and decodes: rows of a listing -> their squares, one column each, and why one could not be read."""

    def __init__(self, where: str, squares: Sequence[Square]):
        self.where, self.squares = where, squares
        self.run = uuid.uuid4().hex  # a process of Ray's may have read for another run, before files were made again

    def __call__(self, rows: Columns) -> Columns:
        count = len(rows["index"])
        pixels = {s.key: np.zeros((count, s.side, s.side, 3), np.uint8) for s in self.squares}
        problems = np.full(count, "", dtype=object)
        for i, (path, start, length) in enumerate(zip(rows["path"], rows["start"], rows["length"], strict=True)):
            try:
                image = decode(read_entry(self.where, str(path), int(start), int(length), self.run))
                for square in self.squares:
                    pixels[square.key][i] = square.of(image, int(rows["index"][i]))
            except ConfigError:
                raise
            except ValueError as error:
                problems[i] = f"{rows['place'][i]}: {first_line(error)}"
        return {"index": rows["index"], "label": rows["label"], "problem": problems.astype(str), **pixels}


class Worker(Protocol):
    """What runs on the decoded images; one an actor, which holds a GPU, or a core."""

    def __call__(self, rows: Columns) -> Columns: ...


class Encode(Worker):
    """Holds a tokenizer: the centre squares -> tokens [B, crops, length] uint16."""

    def __init__(self, plugins: Sequence[str], family: str, tokenizer: str, crops: Sequence[Crop], size: int):
        load_plugins(plugins)
        self.device = local_device()
        pull(path := local_path(tokenizer))
        self.path = path
        self.tokenizer = load_tokenizer(family, path).to(self.device)
        channels_last(self.tokenizer)
        self.crops, self.size = crops, size

    def __call__(self, rows: Columns) -> Columns:
        views = np.stack([cut(rows, crop, self.size) for crop in self.crops], axis=1)  # [B, crops, size, size, 3]
        flat = views.reshape(-1, self.size, self.size, 3)
        at_a_time = max(1, PIXELS_AT_A_TIME[self.device.type] // self.size**2)
        try:
            tokens = np.concatenate(list(encode_images(self.tokenizer, flat, at_a_time)))
        except ValueError as error:
            raise ConfigError(f"{self.path}: {error}") from None
        return {**without_pixels(rows), "tokens": tokens.reshape(len(views), len(self.crops), -1)}


def without_pixels(rows: Columns) -> Columns:
    return {name: rows[name] for name in ("index", "label", "problem")}


@dataclass
class Part:
    """Rows of one part as they come in."""

    size: int
    rows: list[Columns] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        return sum(len(rows["index"]) for rows in self.rows) == self.size

    def in_order(self) -> Columns:
        joined = {name: np.concatenate([rows[name] for rows in self.rows]) for name in self.rows[0]}
        order = joined["index"].argsort()
        return {name: values[order] for name, values in joined.items()}


def stream_parts(
    listing: Listing, parts: Sequence[np.ndarray], read: ReadImages, work: type[Worker], arguments: Mapping[str, object]
) -> Iterator[tuple[int, Columns]]:
    """Read images and run `work(**arguments)` on them on all nodes: (which of `parts`, its rows in order), as they
    get done. `parts`: runs of indices of the listing's images, in order, one array a part."""
    quiet_data()
    ray.data.DataContext.get_current().enable_progress_bars = False
    gpus = int(ray.cluster_resources().get("GPU", 0))
    cpus = int(ray.cluster_resources().get("CPU", 1))
    # Without a GPU, encoding takes a thousand times as long as reading, which then shares its cores.
    resources = {"num_gpus": 1.0} if gpus else {"num_cpus": 0.9}
    images = IMAGES_A_TASK["cuda" if gpus else "cpu"]
    blocks = [listing.table(index[i : i + images]) for index in parts
              for i in range(0, len(index), images)]  # fmt: skip
    rows = (
        ray.data.from_arrow(blocks)
        .map_batches(read, batch_size=None, batch_format="numpy", num_cpus=1 if gpus else 0.1)
        .map_batches(work, fn_constructor_kwargs=dict(arguments), batch_size=images // 4, batch_format="numpy",
                     compute=ray.data.ActorPoolStrategy(size=min(gpus or cpus, len(blocks))), **resources)
    )  # fmt: skip
    starts = np.array([index[0] for index in parts])  # they rise
    waiting = {number: Part(len(index)) for number, index in enumerate(parts)}
    for batch in rows.iter_batches(batch_size=None, batch_format="numpy"):
        owner = np.searchsorted(starts, batch["index"], side="right") - 1
        for number in np.unique(owner):
            part = waiting[number]
            part.rows.append({name: values[owner == number] for name, values in batch.items()})
            if part.complete:
                del waiting[number]
                yield int(number), part.in_order()


def claim(folder: Path, plan: Mapping[str, object]) -> str | None:
    """Begin, or take up, a token set in this folder; its digest if it is finished. The caller holds its lock.

    ConfigError if there is another one.
    """
    path = folder / PLAN
    if path.exists():
        with reading(path, "damaged; delete the folder, or use another --out"):
            found = dict(json.loads(path.read_text()))
            if CONTENTS in plan:
                found.setdefault(CONTENTS, plan[CONTENTS])  # earlier versions did not look
        if found != plan:
            key = next(key for key in [*plan, *found] if found.get(key) != plan.get(key))
            raise ConfigError(f"{folder}: holds another token set ({key} differs); use another --out, or delete it")
        manifest = folder / MANIFEST
        with reading(manifest, "damaged; delete it to make it again"):
            return str(json.loads(manifest.read_text())["digest"]) if manifest.exists() else None
    if folder.exists() and not all(BEGUN.fullmatch(entry.name) for entry in folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty and not a token set begun here; use another --out")
    folder.mkdir(parents=True, exist_ok=True)
    atomically(path, lambda partial: partial.write_text(json.dumps(dict(plan), indent=1)))
    return None


def refuse_more_than(limit: int, unreadable: Sequence[str], path: Path) -> None:
    """ConfigError, with all of them listed at `path`, if more images cannot be read than may be left out."""
    if len(unreadable) > limit:
        write_unreadable(path, unreadable)
        raise ConfigError(
            f"{len(unreadable)} images cannot be read, more than the limit of {limit}: {unreadable[0]}; "
            f"all are in {path}"
        )


def write_stream(
    folder: Path,
    parts: Sequence[np.ndarray],
    rows_of: Callable[[Sequence[np.ndarray]], Iterator[tuple[int, Columns]]],
    meta: TokenMeta,
    limit: int,
    progress: Progress,
    count: Callable[[int], Counts] | None = None,
) -> str:
    """Make what is missing of a token set and finish it; returns its digest.

    ConfigError once more than `limit` images cannot be read. `count`: what became of the images, given how many parts
    there are; it may refuse the set.
    """
    total = sum(map(len, parts))
    missing = [number for number in range(len(parts)) if not part_path(folder, number).exists()]
    unreadable: list[str] = []
    for number in set(range(len(parts))) - set(missing):
        unreadable += read_footer(part_path(folder, number))[1]
    done = total - sum(len(parts[number]) for number in missing)
    progress(done, total, len(unreadable))
    for number, rows in rows_of([parts[number] for number in missing]) if missing else ():
        problems = [str(problem) for problem in rows["problem"] if problem]
        unreadable += problems
        refuse_more_than(limit, unreadable, folder / UNREADABLE)
        good = rows["problem"] == ""
        write_part(part_path(folder, missing[number]), rows["label"][good], rows["tokens"][good], meta, problems)
        done += len(rows["index"])
        progress(done, total, len(unreadable))
    if unreadable:
        write_unreadable(folder / UNREADABLE, unreadable)
    return finish_token_set(folder, meta, len(parts), count(len(parts)) if count else None)
