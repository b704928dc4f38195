"""Images -> what a study needs: a token set, reference statistics, or both; on all nodes, and again where it stopped.

cca-ray prepare imagenet/train --tokenizer vq_ds16_c2i.pt --out lg384
cca-ray prepare imagenet/train --family var --tokenizer vae.pth --out var256
cca-ray prepare imagenet/val --features inception.pth --reference val256.npz
cca-ray prepare --npy official_codes --tokenizer vq_ds16_c2i.pt --out npy384     what the official code made
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import ray
import typer
from ray.util.placement_group import placement_group, remove_placement_group

from cca_ray.cluster.queue import may_grow, nodes_now
from cca_ray.data.images import AUGMENTATIONS, crops_of
from cca_ray.data.listing import list_images
from cca_ray.data.official_npy import import_npy
from cca_ray.data.token_set_making import Texts, tokenize
from cca_ray.data.tokens import MANIFEST, UNREADABLE, Counts, no_images
from cca_ray.errors import ConfigError, reading
from cca_ray.evaluation.reference_making import make_reference
from cca_ray.prepare_options import (
    MOST_UNREADABLE,
    OF_CLASSES,
    PART_IMAGES,
    REFERENCE_SIZE,
    Source,
    Statistics,
    Tokens,
    check,
    check_files,
    check_texts,
    checked_family,
    refuse_idle,
)
from cca_ray.registry import FAMILIES, load_plugins
from cca_ray.storage.lease import leased
from cca_ray.storage.lock import alone
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import to_uri
from cca_ray.terminal.calling import callable_module, in_python
from cca_ray.terminal.console import Console, place, run
from cca_ray.terminal.images_done import Pace
from cca_ray.terminal.ray_session import ray_session


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


class Nodes:
    """Ray's, once something is asked of them: what is wrong with a folder of images is told before Ray has started.

    `session`: holds the connection.
    """

    def __init__(self, session: ExitStack):
        self.session, self.connected = session, False

    def connect(self) -> None:
        if not self.connected:
            self.session.enter_context(ray_session())
            self.connected = True

    def map(self, function: Callable[..., Any], *arguments: Iterable[Any]) -> list[Any]:
        """Python's own, as Ray tasks."""
        self.connect()
        task = ray.remote(function)
        return ray.get([task.remote(*values) for values in zip(*arguments, strict=True)])


def from_npy(roots: list[Path], names: list[str] | None, tokens: Tokens, console: Console) -> None:
    """The token set of what the official code left."""
    tokens.out.mkdir(parents=True, exist_ok=True)
    with alone(tokens.out), leased(tokens.out):
        pull(tokens.out)
        digest = import_npy(
            roots, tokens.family, tokens.tokenizer, tokens.size, names, tokens.out, tokens.part_images, Pace(console)
        )
    console.say(f"token set {digest}: {to_uri(tokens.out)}")


def from_images(
    source: Source, texts: Texts | None, tokens: Tokens | None, statistics: Statistics | None, limit: int, gpus: int,
    nodes: Nodes, console: Console,
) -> None:  # fmt: skip
    """Token set, statistics, or both, of a collection; `limit`: images that may be skipped."""
    images, labelled = source.images, tokens is not None
    captioning = texts.of(images, nodes.map) if texts else None
    if captioning is not None:
        listing, conditions = captioning.images.images, f" with {len(captioning.images.captions):,} captions"
    else:
        listing = list_images(
            images, source.classes, nodes.map, labelled, source.label_key, source.numeric_classes,
            source.allow_empty_classes,
        )  # fmt: skip
        conditions = f" of {len(set(listing.labels.tolist())):,} classes" * labelled
    if labelled and listing.surprise:
        console.say(listing.surprise)
    if tokens is None and listing.passed_over:  # a token set counts them
        console.say(no_images(dict(listing.passed_over)))
    nodes.connect()
    console.say(f"{len(listing.entries):,} images{conditions}: {images}")
    wait_for_gpus(gpus, console.say)
    cards = int(ray.cluster_resources().get("GPU", 0))
    console.say(f"working on {cards} GPUs" if cards else "working on the CPU: there is no GPU in this Ray cluster")
    if tokens is not None:
        tokens.out.mkdir(parents=True, exist_ok=True)
        with alone(tokens.out), leased(tokens.out):
            pull(tokens.out)
            digest = tokenize(
                listing, tokens.family, tokens.tokenizer, tokens.size, tokens.augmentations, tokens.out,
                tokens.part_images, limit, Pace(console), source.allow_empty_classes, captioning,
            )  # fmt: skip
        if counts := counts_of(tokens.out):
            console.say(str(counts))
        tell(console, f"token set {digest}", tokens.out, tokens.out / UNREADABLE)
    if statistics is not None:
        made = make_reference(
            listing, statistics.features, statistics.size, statistics.out, limit, Pace(console),
            statistics.trust_torchscript,
        )  # fmt: skip
        tell(
            console, f"reference {made.digest}, of images {statistics.size} pixels wide", statistics.out,
            statistics.out.with_name(f"{statistics.out.name}.{UNREADABLE}"),
        )  # fmt: skip


def counts_of(folder: Path) -> Counts | None:
    """What became of the images of a finished token set; version 0.1.0 did not count them."""
    with reading(folder / MANIFEST, "not a token manifest"):
        manifest = json.loads((folder / MANIFEST).read_text())
        return Counts(**manifest["images"]) if "images" in manifest else None


def tell(console: Console, what: str, path: Path, unreadable: Path) -> None:
    console.say(f"{what}: {to_uri(path)}")
    if unreadable.exists():
        console.say(f"unreadable images, left out: {to_uri(unreadable)}")


@dataclass(frozen=True)
class Prepared:
    """What was made: a token set in a folder, reference statistics in a file; None: was not asked for."""

    tokens: Path | None
    reference: Path | None


@in_python
def prepare(
    images: str | Path | None = None,
    family: str = "llamagen",
    plugin: Sequence[str] | None = None,
    tokenizer: str | Path | None = None,
    out: str | Path | None = None,
    image_size: int | None = None,
    augment: Sequence[str] | None = None,
    classes: str | Path | None = None,
    label_key: str | None = None,
    numeric_classes: bool = False,
    allow_empty_classes: bool = False,
    captions: str | Path | None = None,
    caption_key: str | None = None,
    text_features: str | Path | None = None,
    text_encoder: str | Path | None = None,
    npy: Sequence[str | Path] | None = None,
    features: str | Path | None = None,
    reference: str | Path | None = None,
    trust_torchscript: bool = False,
    reference_size: int = REFERENCE_SIZE,
    part_images: int = PART_IMAGES,
    max_unreadable: int = MOST_UNREADABLE,
    gpus: int = 0,
    *,
    quiet: bool = False,
) -> Prepared:
    """Make a token set (`out`), reference statistics (`reference`), or both, from images; an unfinished one continues.

    `images`: class folders, or .tar or .parquet shards, a path or a URI. A token set needs a `tokenizer`, statistics a
    feature network (`features`). `npy`: the folders that the official code left, instead of images.  For a family of
    texts the images have `captions`, and those have `text_features` or a `text_encoder` (see docs/captions.md).
    """
    images = None if images is None else str(images)
    folders = [Path(folder) for folder in npy or ()]
    given = (tokenizer, out, classes, features, reference, text_encoder)
    codes, tokens_at, names_in, network, statistics_at, encoder = (None if p is None else Path(p) for p in given)
    check(images, folders, codes, tokens_at, network, statistics_at)
    chosen = {
        "IMAGES": images, "--out": out, "--reference": reference, "--tokenizer": tokenizer, "--image-size": image_size,
        "--augment": augment, "--classes": classes, "--label-key": label_key, "--numeric-classes": numeric_classes,
        "--allow-empty-classes": allow_empty_classes, "--trust-torchscript": trust_torchscript, "--gpus": gpus,
        "--reference-size": reference_size != REFERENCE_SIZE, "--part-images": part_images != PART_IMAGES,
        "--max-unreadable": max_unreadable != MOST_UNREADABLE,
    }  # fmt: skip
    options = [option for option, value in chosen.items() if value]
    refuse_idle(options)
    load_plugins(plugin or [])
    kind, tokens, statistics = checked_family(family, folders), None, None
    table, of_texts = (None if p is None else str(p) for p in (captions, text_features))
    texts = Texts(table, caption_key, of_texts, encoder, kind.text_positions)
    check_texts(kind, texts, [option for option in OF_CLASSES if option in options], tokens_at is not None)
    size, augmentations = image_size or kind.image_size, augment or kind.augmentations
    crops_of(augmentations, size)
    if tokens_at is not None and codes is not None:
        tokens = Tokens(family, codes, size, augmentations, tokens_at, part_images)
    if statistics_at is not None and network is not None:
        statistics = Statistics(network, reference_size, statistics_at, trust_torchscript)
    names, console = check_files(names_in, codes, network, encoder, tokens, statistics), Console(quiet=quiet)
    if folders and tokens is not None:
        from_npy(folders, names, tokens, console)
    if images is not None:
        source = Source(images, names, label_key, numeric_classes, allow_empty_classes)
        with ExitStack() as session:
            wanted = texts if tokens is not None and texts.positions else None
            from_images(source, wanted, tokens, statistics, max_unreadable, gpus, Nodes(session), console)
    return Prepared(tokens_at, statistics_at)


def main(
    images: Annotated[
        str | None, typer.Argument(help="Images: class folders, or .tar or .parquet shards; a path or URI.")
    ] = None,
    family: Annotated[
        str, typer.Option(help=f"Model family of the tokenizer: {', '.join(FAMILIES.built_in)}, or that of a plug-in.")
    ] = "llamagen",
    plugin: Annotated[
        list[str] | None, typer.Option(help="Python module that registers the family; repeatable.")
    ] = None,
    tokenizer: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="PATH", help="Checkpoint of the tokenizer, such as vq_ds16_c2i.pt."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="PATH", help="Folder or URI of the token set; an unfinished one is continued."
        ),
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=1, help="Side length, in pixels, of the images to encode.", show_default="that of the family"),
    ] = None,
    augment: Annotated[list[str] | None, typer.Option(help=f"{', '.join(AUGMENTATIONS)}; repeatable.")] = None,
    classes: Annotated[
        Path | None,
        typer.Option(
            parser=place, metavar="PATH", help="File with one class name per line.", show_default="the classes found"
        ),
    ] = None,
    label_key: Annotated[
        str | None,
        typer.Option(help="Where the class is stored: a field of x.json next to x.jpg in a tar, or a Parquet column."),
    ] = None,
    numeric_classes: Annotated[
        bool, typer.Option("--numeric-classes", help="Sort classes that are numbers as numbers, not as text.")
    ] = False,
    allow_empty_classes: Annotated[
        bool, typer.Option("--allow-empty-classes", help="Continue even if a class has no image that can be read.")
    ] = False,
    captions: Annotated[
        str | None,
        typer.Option(
            metavar="PATH",
            help="Captions of the images, for a family of texts: .csv, .json, .jsonl, .parquet, or a folder of .jsonl.",
            show_default="x.txt beside x.jpg, or a Parquet column",
        ),
    ] = None,
    caption_key: Annotated[
        str | None,
        typer.Option(
            help="Field or column of the caption (text/1: the second of a list), or a field of x.json beside x.jpg.",
            show_default="text or caption",
        ),
    ] = None,
    text_features: Annotated[
        str | None, typer.Option(metavar="PATH", help="Folder or URI of the captions' features: x.npy for x.jpg.")
    ] = None,
    text_encoder: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="PATH", help="Folder of a T5 that computes them; needs transformers."),
    ] = None,
    npy: Annotated[list[Path] | None, typer.Option(help="Import the official .npy folders; repeatable.")] = None,
    features: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Feature network for --reference.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(parser=place, metavar="PATH", help="Write the statistics of the images to this .npz.")
    ] = None,
    trust_torchscript: Annotated[
        bool,
        typer.Option(
            "--trust-torchscript",
            help="Run --features also if it is a TorchScript program that is not NVIDIA's: it is code, which can do "
            "whatever you can.",
        ),
    ] = False,
    reference_size: Annotated[
        int, typer.Option(min=1, help="Side length, in pixels, for --reference.")
    ] = REFERENCE_SIZE,
    part_images: Annotated[
        int, typer.Option(min=1, help="Images per part; an interruption loses at most the parts in progress.")
    ] = PART_IMAGES,
    max_unreadable: Annotated[
        int, typer.Option(min=0, help="Number of unreadable images that may be skipped; they are listed.")
    ] = MOST_UNREADABLE,
    gpus: Annotated[
        int, typer.Option(min=0, help="Wait until the cluster has this many GPUs, for example from an autoscaler.")
    ] = 0,
) -> None:
    """Make a token set, reference statistics, or both, from images."""
    prepare(
        images, family, plugin, tokenizer, out, image_size, augment, classes, label_key, numeric_classes,
        allow_empty_classes, captions, caption_key, text_features, text_encoder, npy, features, reference,
        trust_torchscript, reference_size, part_images, max_unreadable, gpus,
    )  # fmt: skip


if __name__ == "__main__":
    run(main)
else:
    callable_module(__name__)
