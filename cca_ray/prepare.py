"""Images -> what a study needs: a token set, reference statistics, or both; on all nodes, and again where it stopped.

cca-ray prepare imagenet/train --tokenizer vq_ds16_c2i.pt --out lg384
cca-ray prepare imagenet/train --family var --tokenizer vae.pth --out var256
cca-ray prepare imagenet/val --features inception.pth --reference val256.npz
cca-ray prepare --npy official_codes --tokenizer vq_ds16_c2i.pt --out npy384     what the official code made
"""

import hashlib
import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import ray
import torch
import typer
from ray.util.placement_group import placement_group, remove_placement_group

from cca_ray.cluster.placement import local_device
from cca_ray.cluster.queue import may_grow, nodes_now
from cca_ray.cluster.session import start_ray
from cca_ray.data.encode import (
    Columns,
    Encode,
    ReadImages,
    Worker,
    claim,
    refuse_more_than,
    stream_parts,
    without_pixels,
    write_stream,
)
from cca_ray.data.images import AUGMENTATIONS, TEN_CROPS, Listing, Square, crops_of, list_images
from cca_ray.data.tokens import UNREADABLE, TokenMeta, write_unreadable
from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import Extractor, extract, load_extractor
from cca_ray.evaluation.reference import Moments, Reference, evenly_spaced
from cca_ray.models.family import Tokenizer, load_tokenizer
from cca_ray.models.files import digest_of_weights
from cca_ray.storage.files import atomically
from cca_ray.storage.lease import leased
from cca_ray.storage.lock import alone
from cca_ray.storage.mirror import pull, reach
from cca_ray.storage.uris import here, named
from cca_ray.terminal.console import Console, place, run

DEFAULTS = {"llamagen": (384, list(TEN_CROPS)), "var": (256, ["var-random"])}  # pixels, augmentations
SAY_EVERY_S = 10.0
NAMES = {1: ["centre"], 2: ["flips/0", "flips/1"], 10: [f"ten-crop/{i}" for i in range(10)]}  # of official codes


class Pace:
    """Progress with images/s and the time left."""

    def __init__(self, console: Console):
        self.console, self.started, self.before, self.said = console, time.monotonic(), -1, -SAY_EVERY_S

    def __call__(self, done: int, total: int, unreadable: int) -> None:
        now = time.monotonic()
        if self.before < 0:
            self.before, self.started = done, now
            if done:
                self.console.say(f"{done:,} of {total:,} images were done before")
            return
        rate = (done - self.before) / max(now - self.started, 1e-9)
        if now - self.said < SAY_EVERY_S and done < total:
            return
        self.said = now
        left = f"  {(total - done) / rate / 60:,.0f} min left" if done < total else ""
        lost = f"  {unreadable} unreadable" if unreadable else ""
        self.console.say(f"{done:,}/{total:,} images  {rate:,.1f} images/s{left}{lost}")


def ensure_ray() -> None:
    if not ray.is_initialized():
        start_ray()


def wait_for_gpus(count: int, say: Callable[[str], None]) -> None:
    """Until the cluster has so many GPUs; an autoscaler brings them. ConfigError where there is none."""
    have = ray.cluster_resources().get("GPU", 0)
    if have >= count:
        return
    if not may_grow(nodes_now()):
        raise ConfigError(f"--gpus {count}: this Ray cluster has {have:g}, and no autoscaler brings more")
    say(f"waiting for {count} GPUs")
    group = placement_group([{"CPU": 1, "GPU": 1}] * count)
    while not group.wait(60):
        pass
    remove_placement_group(group)


def over_nodes(function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
    """`map`, as Ray tasks."""
    ensure_ray()
    task = ray.remote(function)
    return ray.get([task.remote(*values) for values in zip(*arguments, strict=True)])


def read_classes(path: Path | None) -> list[str] | None:
    """One class name a line, in the order of the labels."""
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    if len(names) < 2:
        raise ConfigError(f"{path}: want one class name a line, at least 2")
    return names


def cut_into_parts(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def tokens_an_image(tokenizer: Tokenizer, size: int) -> int:
    """ConfigError if the tokenizer cannot take such images, or its codes do not fit."""
    if tokenizer.config.codebook_size > 2**16:
        raise ConfigError(f"a codebook of {tokenizer.config.codebook_size} does not fit into 16 bits")
    try:
        return tokenizer.config.length(size)
    except ValueError as error:
        raise ConfigError(f"--image-size: {error}") from None


def token_meta(tokenizer: Tokenizer, size: int, names: Sequence[str], class_names: Sequence[str]) -> TokenMeta:
    """What names a token set."""
    return TokenMeta(
        tokenizer=digest_of_weights(tokenizer),
        codebook_size=tokenizer.config.codebook_size,
        length=tokens_an_image(tokenizer, size),
        crops=len(names),
        image_size=size,
        augmentations=tuple(names),
        class_names=tuple(class_names),
    )


def plan_of(source: str, meta: TokenMeta, part_images: int) -> dict[str, Any]:
    """What must be the same for a run to go on in a folder."""
    return {"images": source, "part_images": part_images, **meta.model_dump(mode="json")}


def tokenize(
    listing: Listing, family: str, tokenizer: Path, size: int, augmentations: Sequence[str], out: Path,
    part_images: int, limit: int, pace: Pace,
) -> str:  # fmt: skip
    """Make the token set of a collection; returns its digest."""
    crops = crops_of(augmentations, size)
    meta = token_meta(load_tokenizer(family, tokenizer), size, [crop.name for crop in crops], listing.class_names)
    if finished := claim(out, plan_of(listing.digest, meta, part_images)):
        return finished
    squares = list(dict.fromkeys(crop.square for crop in crops))
    arguments = {"family": family, "tokenizer": named(tokenizer.absolute()), "crops": crops, "size": size}
    return write_stream(
        out,
        cut_into_parts(len(listing.entries), part_images),
        lambda parts: stream_parts(listing, parts, ReadImages(listing.where, squares), Encode, arguments),
        meta,
        limit,
        pace,
    )


class ExtractFeatures(Worker):
    """Holds a feature network: the centre squares -> pooled [B, D] and, if it has them, spatial [B, S]."""

    def __init__(self, features: str, size: int):
        pull(path := here(features))
        self.extractor: Extractor = load_extractor(path).to(local_device())
        self.square = Square("adm", size)

    def __call__(self, rows: Columns) -> Columns:
        images = torch.from_numpy(rows[self.square.key].copy()).to(local_device())
        found = extract(self.extractor, images)
        spatial = {"spatial": found.spatial.cpu().numpy()} if found.spatial is not None else {}
        return {**without_pixels(rows), "pooled": found.pooled.cpu().numpy(), **spatial}


def make_reference(listing: Listing, features: Path, size: int, out: Path, limit: int, pace: Pace) -> Reference:
    """Statistics of a collection's images, centre-cropped; the same to the last digit on any number of nodes."""
    parts = cut_into_parts(len(listing.entries), 2048)
    unreadable: list[str] = []
    listed = out.with_name(f"{out.name}.{UNREADABLE}")
    arguments = {"features": named(features.absolute()), "size": size}
    chosen = evenly_spaced(len(listing.entries))  # whose features are kept
    waiting: dict[int, dict[str, Moments]] = {}
    merged: dict[str, Moments] = {}
    kept: dict[int, np.ndarray] = {}  # by part
    done = following = 0
    pace(0, len(listing.entries), 0)
    stream = stream_parts(listing, parts, ReadImages(listing.where, [Square("adm", size)]), ExtractFeatures, arguments)
    for number, rows in stream:
        good = rows["problem"] == ""
        unreadable += [str(problem) for problem in rows["problem"] if problem]
        done += len(good)
        refuse_more_than(limit, unreadable, listed)
        kinds = [kind for kind in ("pooled", "spatial") if kind in rows and good.any()]
        waiting[number] = {kind: Moments.of(rows[kind][good]) for kind in kinds}
        if "pooled" in kinds:
            kept[number] = rows["pooled"][good & np.isin(rows["index"], chosen)]
        while following in waiting:  # in order, whoever was first
            for kind, moments in waiting.pop(following).items():
                merged[kind] = merged[kind].merge(moments) if kind in merged else moments
            following += 1
        pace(done, len(listing.entries), len(unreadable))
    write_unreadable(listed, unreadable)
    if "pooled" not in merged or merged["pooled"].n < 2:
        raise ConfigError(f"{listing.where}: want at least 2 readable images")
    some = np.concatenate([kept[number] for number in sorted(kept)])
    reference = Reference.of(merged["pooled"], merged.get("spatial"), some if len(some) > 1 else None)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            reference.save(file)

    atomically(out, write)
    return reference


def npy_folders(root: Path) -> tuple[Path, Path]:
    """The official extraction's folders of codes and labels."""
    codes, labels = sorted(root.glob("*_codes")), sorted(root.glob("*_labels"))
    if len(codes) != 1 or len(labels) != 1:
        raise ConfigError(f"{root}: want one folder *_codes and one *_labels, as the official extraction leaves them")
    return codes[0], labels[0]


def load_npy(path: Path) -> np.ndarray:
    """ConfigError, naming the file, if it holds no integers."""
    try:
        content: np.ndarray = np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise ConfigError(f"{path}: not readable ({str(error).splitlines()[0]})") from None
    if not np.issubdtype(content.dtype, np.integer) or not content.ndim or not content.size:
        raise ConfigError(f"{path}: {content.dtype} {list(content.shape)}; want an array of integers")
    return content


def read_npy(roots: Sequence[tuple[Path, Path]], meta: TokenMeta, index: int) -> tuple[int, np.ndarray]:
    """Label and tokens [crops, length] of one image. ConfigError, naming the file."""
    number, of_roots = f"{index}.npy", [load_npy(codes / f"{index}.npy") for codes, _ in roots]
    labels = sorted({int(load_npy(folder / number).flat[0]) for _, folder in roots})
    path, folder = roots[0][0] / number, roots[0][1]
    shapes = [list(content.shape) for content in of_roots]
    if any(shape[-1] != meta.length for shape in shapes) or sum(math.prod(s[:-1]) for s in shapes) != meta.crops:
        raise ConfigError(
            f"{path}: {' and '.join(map(str, shapes))}; want {meta.crops} crops of {meta.length} codes in all: "
            f"{meta.image_size} pixels, as many crops as image 0 has"
        )
    tokens = np.concatenate([content.reshape(-1, meta.length) for content in of_roots])
    if tokens.min() < 0 or tokens.max() >= meta.codebook_size:
        raise ConfigError(f"{path}: code {tokens.max()} is not in the codebook of {meta.codebook_size}")
    if len(labels) != 1 or not 0 <= labels[0] < len(meta.class_names):
        raise ConfigError(f"{folder / number}: label {labels}; want one below {len(meta.class_names)}")
    return labels[0], tokens.astype(np.uint16)


def numbered(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... there are. ConfigError if there are none, or gaps."""
    numbers = {int(path.stem) for path in folder.glob("*.npy") if re.fullmatch(r"\d+", path.stem)}
    if not numbers or numbers != set(range(len(numbers))):
        raise ConfigError(f"{folder}: want 0.npy, 1.npy, ... without gaps; found {len(numbers)}")
    return len(numbers)


def import_npy(
    roots: Sequence[Path], tokenizer: Path, size: int, classes: Sequence[str] | None, out: Path, part_images: int,
    pace: Pace,
) -> str:  # fmt: skip
    """Make a token set of the official code's files, one int64 `.npy` an image; crops of several roots are joined."""
    pairs = [npy_folders(root.absolute()) for root in roots]
    counts = [numbered(codes) for codes, _ in pairs]
    if len(set(counts)) > 1:
        raise ConfigError(f"--npy: the folders hold {' and '.join(map(str, counts))} images; want the same")
    names: list[str] = []
    for codes, _ in pairs:
        crops = math.prod(load_npy(codes / "0.npy").shape[:-1])
        names += [f"{codes.parent.name}/{name}" for name in NAMES.get(crops, [f"crop/{i}" for i in range(crops)])]
    meta = token_meta(load_tokenizer("llamagen", tokenizer), size, names, classes or [str(i) for i in range(1000)])
    states = [[str(folder), folder.stat().st_mtime_ns] for pair in pairs for folder in pair]
    source = hashlib.sha256(json.dumps([states, counts]).encode()).hexdigest()[:16]
    if finished := claim(out, plan_of(source, meta, part_images)):
        return finished

    def rows_of(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, Columns]]:
        with ThreadPoolExecutor(16) as pool:
            for number, index in enumerate(parts):
                labels, tokens = zip(*pool.map(partial(read_npy, pairs, meta), index), strict=True)
                problem = np.full(len(index), "")
                yield (
                    number,
                    {"index": index, "label": np.array(labels), "tokens": np.stack(tokens), "problem": problem},
                )

    return write_stream(out, cut_into_parts(counts[0], part_images), rows_of, meta, 0, pace)


def check(images: str | None, npy: list[Path], tokenizer: Path | None, out: Path | None, features: Path | None,
          reference: Path | None) -> None:  # fmt: skip
    """ConfigError if the options do not say what to make of what."""
    if (images is None) == (not npy):
        raise ConfigError("want either IMAGES or --npy FOLDER")
    if out is None and reference is None:
        raise ConfigError("nothing to make: want --out FOLDER, --reference FILE.npz, or both")
    if out is not None and tokenizer is None:
        raise ConfigError("--out wants --tokenizer FILE, such as vq_ds16_c2i.pt or vae_ch160v4096z32.pth")
    if reference is not None and (features is None or npy):
        raise ConfigError("--reference wants IMAGES and --features FILE")
    if reference is not None and reference.suffix != ".npz":
        raise ConfigError(f"--reference {reference}: want a file that ends in .npz")
    if features is not None and reference is None:
        raise ConfigError("--features is for --reference FILE.npz; give both or none")
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; want a folder")


def main(
    images: Annotated[str | None, typer.Argument(help="Class folders, .tar or .parquet shards; a path or URI.")] = None,
    family: Annotated[str, typer.Option(help="llamagen or var: whose tokenizer it is.")] = "llamagen",
    tokenizer: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Its checkpoint, such as vq_ds16_c2i.pt.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="PATH", help="Folder or URI of the token set; the same one goes on."),
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=1, help="Pixels along a side of what is encoded; 384, of VAR 256.")
    ] = None,
    augment: Annotated[list[str] | None, typer.Option(help=f"{', '.join(AUGMENTATIONS)}; repeatable.")] = None,
    classes: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="One class name a line; by default those found.")
    ] = None,
    npy: Annotated[list[Path] | None, typer.Option(help="Import the official .npy folders; repeatable.")] = None,
    features: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Feature network, for --reference.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="An .npz for the statistics of the images.")
    ] = None,
    reference_size: Annotated[int, typer.Option(min=1, help="Pixels along a side, for --reference.")] = 256,
    part_images: Annotated[int, typer.Option(min=1, help="Images a part, which a stop may lose.")] = 2048,
    max_unreadable: Annotated[int, typer.Option(min=0, help="Images that may be skipped; they are listed.")] = 100,
    gpus: Annotated[int, typer.Option(min=0, help="Wait until so many are there, as an autoscaler brings them.")] = 0,
) -> None:
    """Make a token set, reference statistics, or both, from images."""
    check(images, npy or [], tokenizer, out, features, reference)
    if family not in DEFAULTS:
        raise ConfigError(f"--family {family}: one of {', '.join(DEFAULTS)}")
    if npy and family != "llamagen":
        raise ConfigError("--npy is for LlamaGen: VAR's official code keeps no tokens")
    size, augmentations = image_size or DEFAULTS[family][0], augment or DEFAULTS[family][1]
    crops_of(augmentations, size)
    for given in (classes, tokenizer, features):
        if given is not None:
            pull(given)
    for wanted in (out, reference and reference.parent):
        if wanted is not None:
            reach(wanted, write=True)
    names, console = read_classes(classes), Console()
    if tokenizer is not None and out is not None:  # said before anything starts
        tokens_an_image(load_tokenizer(family, tokenizer), size)
    if features is not None:
        load_extractor(features)
    if npy and tokenizer is not None and out is not None:
        out.mkdir(parents=True, exist_ok=True)
        with alone(out), leased(out):
            pull(out)
            digest = import_npy(npy, tokenizer, size, names, out, part_images, Pace(console))
        console.say(f"token set {digest}: {named(out)}")
    if images is None:
        return
    mine = not ray.is_initialized()
    try:
        listing = list_images(images, names, over_nodes, labelled=out is not None)
        ensure_ray()
        console.say(f"{len(listing.entries):,} images of {len(set(listing.labels.tolist())):,} classes: {images}")
        wait_for_gpus(gpus, console.say)
        cards = int(ray.cluster_resources().get("GPU", 0))
        console.say(f"working on {cards} GPUs" if cards else "working on the CPU: there is no GPU in this Ray cluster")
        if out is not None and tokenizer is not None:
            out.mkdir(parents=True, exist_ok=True)
            with alone(out), leased(out):
                pull(out)
                pace = Pace(console)
                digest = tokenize(
                    listing, family, tokenizer, size, augmentations, out, part_images, max_unreadable, pace
                )
            console.say(f"token set {digest}: {named(out)}")
            if (out / UNREADABLE).exists():
                console.say(f"unreadable images, left out: {named(out / UNREADABLE)}")
        if reference is not None and features is not None:
            made = make_reference(listing, features, reference_size, reference, max_unreadable, Pace(console))
            console.say(f"reference {made.digest}: {named(reference)}")
            if (unreadable := reference.with_name(f"{reference.name}.{UNREADABLE}")).exists():
                console.say(f"unreadable images, left out: {named(unreadable)}")
    finally:
        if mine:
            ray.shutdown()


if __name__ == "__main__":
    run(main)
