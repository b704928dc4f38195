"""A small base from images: tokenizer, token set, feature network, model. On digits: the embedded default.

Everything is cached in a folder named by the digest of the images and settings; what is there is not made again.

cca-ray pretrain --images photos --image-size 32     one subfolder per class, images of any size and kind
cca-ray pretrain --family var --size M               on the digits
"""

import re
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
import yaml

from cca_ray.config import MOST_SEED, Pretrain
from cca_ray.data.labelled_images import digits, read_folder
from cca_ray.data.listing import open_files
from cca_ray.errors import ConfigError
from cca_ray.models.family import family_of
from cca_ray.registry import FAMILIES, load_plugins
from cca_ray.space_file import load_config
from cca_ray.storage.mirror import push, reach
from cca_ray.storage.uris import command_line, to_uri
from cca_ray.terminal.console import Console, StorageOption, place, run
from cca_ray.training.small_base import build_base, space_for, template_of


def main(
    images: Annotated[
        str | None, typer.Option(help="Class folders, .tar or .parquet shards; without it, the digits.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=4, help="Pixels along a side, for --images.")] = 32,
    downsample: Annotated[int, typer.Option(min=1, help="Pixels a token along a side, for --images.")] = 4,
    family: Annotated[str, typer.Option(help="llamagen, var, or a plug-in's.")] = "llamagen",
    size: Annotated[str, typer.Option(help="Size of the model: S or M.")] = "S",
    plugin: Annotated[list[str] | None, typer.Option(help="Module that brings the family; repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the model.")] = None,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED)] = 0,
    storage: StorageOption = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="PATH", help="Where the base is made; by default `bases` in the storage."),
    ] = None,
) -> None:
    """Make a small base from images, and a search space that uses it."""
    console, out = Console(), out or storage / "bases"
    load_plugins(plugin or [])
    if family not in FAMILIES.names():
        raise ConfigError(f"--family {family}: one of {', '.join(FAMILIES.names())}")
    kind = family_of(family)
    if size not in kind.small_sizes:
        made = ", ".join(kind.small_sizes) or "none, for this family"
        raise ConfigError(f"--size {size}: one of {made}")
    reach(out, write=True)
    template = load_config(template_of(kind, size))
    changes = {"seed": seed, "epochs": epochs or template.pretrain.epochs}
    of_images = {"image_size": image_size, "downsample": downsample, "variants": 1} if images is not None else {}
    settings = Pretrain.model_validate({**template.pretrain.model_dump(), **changes, **of_images})
    data = digits() if images is None else read_folder(images, image_size)
    name = "digits" if images is None else re.sub(r"[^\w.-]+", "_", PurePosixPath(open_files(images)[1]).name)
    console.say(f"{len(data.images):,} images of {len(data.class_names)} classes, {settings.image_size} pixels wide")
    files = build_base(data, name, family, size, settings, out, console.progress)
    path = files.checkpoint.parent / f"{kind.space_name(name, size)}.yaml"
    path.write_text(yaml.safe_dump(space_for(files, len(data.images), kind, size, path), sort_keys=False))
    load_config(path)
    push(path)
    console.say(f"base: {to_uri(files.checkpoint)}")
    console.say(f"search: {command_line('python', '-m', 'cca_ray.tune', path)}")


if __name__ == "__main__":
    run(main)
