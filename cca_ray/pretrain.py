"""A small base from images: tokenizer, token set, feature network, model. On digits: the embedded default.

Everything is cached in a folder named by the digest of the images and settings; what is there is not made again, and
a training that was cut short goes on.

cca-ray pretrain --images photos --image-size 32     one subfolder per class, images of any size and kind
cca-ray pretrain --images photos --size M            a model of about 1 M parameters
cca-ray pretrain --family var --size M               on the digits
"""

import re
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
import yaml

from cca_ray.config import MOST_SEED, Pretrain
from cca_ray.data.image_files import open_files
from cca_ray.data.labelled_images import digits, read_folder
from cca_ray.errors import ConfigError
from cca_ray.evaluation.guidance_check import GuidanceCheck, check_guidance
from cca_ray.inputs import SPACES
from cca_ray.models.family import Family, family_of, letter
from cca_ray.registry import FAMILIES, load_plugins
from cca_ray.space_file import load_config
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import reach
from cca_ray.storage.uris import command_line, to_uri
from cca_ray.terminal.calling import callable_module, in_python
from cca_ray.terminal.console import Console, StorageOption, place, run
from cca_ray.training.base_space import Yaml, content_of, space_for, template_of
from cca_ray.training.plan import Plan, plan_for
from cca_ray.training.small_base import BaseFiles, build_base, one_thread, resolve

CODES = 256  # of the tokenizer of someone's images
IMAGE_SIZE, DOWNSAMPLE = 32, 4  # of these, unless others are asked for


def known_family(name: str) -> Family:
    if name not in FAMILIES.names():
        raise ConfigError(f"--family {name}: one of {', '.join(FAMILIES.names())}")
    return family_of(name)


def known_size(text: str | None, sizes: tuple[str, ...]) -> str | None:
    """The size that an option means: by its name or, of small, medium and large, its first letter."""
    if not sizes:
        raise ConfigError("--family: this family has no small bases")
    letters = {letter(size): size for size in sizes}
    if text is not None and text not in {*letters, *sizes}:
        raise ConfigError(f"--size {text}: one of {', '.join(letters)}")
    return None if text is None else letters.get(text, text)


def size_of_the_digits(family: Family) -> str:
    """That of the shipped search space, so that `pretrain` makes what a study of it would."""
    size = load_config(template_of(family, family.small_sizes[0])).base.size
    return size if size in family.small_sizes else family.small_sizes[0]


@dataclass(frozen=True)
class Base:
    """A small base: its weights, the search space that uses it, and whether guidance helps it."""

    checkpoint: Path
    space: Path
    guidance: GuidanceCheck


@in_python
def pretrain(
    images: str | Path | None = None,
    image_size: int | None = None,
    downsample: int | None = None,
    family: str = "llamagen",
    size: str | None = None,
    plugin: Sequence[str] | None = None,
    epochs: int | None = None,
    ema_decay: float = 0.0,
    seed: int = 0,
    storage: str | Path = "runs",
    out: str | Path | None = None,
    *,
    quiet: bool = False,
) -> Base:
    """Make a small base from images, and a search space that uses it: `tune(base.space)`.

    `images`: class folders, or .tar or .parquet shards, a path or a URI; by default the digits. `image_size`: pixels
    along a side, by default 32, of which `downsample`, by default 4, are a token's. `size`: S, M or L, by default what
    suits the number of images; of the digits, that of the embedded default. `out`: the folder of the base, by default
    `bases` in the storage. What is there already is not made again.
    """
    images = None if images is None else str(images)
    if images is None and (image_size or downsample):
        raise ConfigError("--image-size and --downsample are for --images; the digits are 8 pixels wide")
    console, root = Console(quiet=quiet), Path(storage) / "bases" if out is None else Path(out)
    load_plugins(plugin or [])
    kind = known_family(family)
    sizes = kind.small_sizes if images is None else kind.own_sizes()
    size = known_size(size, sizes)
    reach(root, write=True)
    if images is None:
        size = size or size_of_the_digits(kind)
    template = load_config(template_of(kind, size or sizes[0])).pretrain
    changes = {"seed": seed, "ema_decay": ema_decay, "epochs": epochs or template.epochs}
    if images is not None:
        pixels = {"image_size": image_size or IMAGE_SIZE, "downsample": downsample or DOWNSAMPLE}
        changes |= {**pixels, "codebook_size": CODES, "variants": 1}
    settings = Pretrain.model_validate({**template.model_dump(), **changes})
    data = digits() if images is None else read_folder(images, settings.image_size, console.say)
    name = "digits" if images is None else re.sub(r"[^\w.-]+", "_", PurePosixPath(open_files(images)[1]).name)
    console.say(f"{len(data.images):,} images of {len(data.class_names)} classes, {settings.image_size} pixels wide")
    plan = Plan(str(size), settings) if images is None else plan_for(data, kind, size, settings, epochs)
    if plan.why:
        console.say(plan.why)
    with one_thread() if images is None else nullcontext():  # of the digits, the same base as a study makes
        files = build_base(data, name, family, plan.size, plan.settings, root, console.progress, console.note)
    return finish(files, name, len(data.images), plan, kind, console)


def main(
    images: Annotated[
        str | None, typer.Option(help="Class folders, or .tar or .parquet shards.", show_default="the digits")
    ] = None,
    image_size: Annotated[
        int | None,
        typer.Option(min=4, help="Side length of the images in pixels, with --images.", show_default=str(IMAGE_SIZE)),
    ] = None,
    downsample: Annotated[
        int | None,
        typer.Option(min=1, help="Pixels per token along a side, with --images.", show_default=str(DOWNSAMPLE)),
    ] = None,
    family: Annotated[
        str, typer.Option(help=f"Model family: {', '.join(FAMILIES.built_in)}, or that of a plug-in.")
    ] = "llamagen",
    size: Annotated[
        str | None,
        typer.Option(
            help="S, M or L; of the digits a size of the family, such as tiny, S or M.",
            show_default="by the number of images; of the digits that of the shipped search space",
        ),
    ] = None,
    plugin: Annotated[
        list[str] | None, typer.Option(help="Python module that registers the family; repeatable.")
    ] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            min=1, help="Maximum number of epochs for the model.", show_default="chosen by the number of images"
        ),
    ] = None,
    ema_decay: Annotated[
        float,
        typer.Option(min=0, max=0.9999, help="Decay of the moving average of the model's weights; 0 turns it off."),
    ] = 0.0,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="Seed of the model.")] = 0,
    storage: StorageOption = Path("runs"),
    out: Annotated[
        Path | None,
        typer.Option(parser=place, metavar="PATH", help="Folder for the base.", show_default="bases in the storage"),
    ] = None,
) -> None:
    """Make a small base from images, and a search space that uses it."""
    pretrain(images, image_size, downsample, family, size, plugin, epochs, ema_decay, seed, storage, out)


def finish(files: BaseFiles, name: str, images: int, plan: Plan, family: Family, console: Console) -> Base:
    """Write the base's search space, and say what guidance does for the base."""
    console.note("")
    space = family.space_name(name, plan.size)
    if (SPACES / f"{space}.yaml").exists():  # of the same name, its study would be
        space += "_own"
    path = files.checkpoint.parent / f"{space}.yaml"
    write_space(path, space_for(files, images, plan.facts, family, plan.size, path))
    study = resolve(load_config(path), path.parent, console.progress)
    check = check_guidance(study, images, lambda done, total: console.progress("samples", done, total))
    console.say(str(check))
    console.say(f"base: {to_uri(files.checkpoint)}")
    console.say(f"search: {command_line('python', '-m', 'cca_ray.tune', path)}")
    return Base(files.checkpoint, path, check)


def write_space(path: Path, content: Yaml) -> None:
    """Not where the file there says the same: whoever has edited it may have written comments, too."""
    if path.exists() and content == content_of(path):
        return
    atomically(path, lambda partial: partial.write_text(yaml.safe_dump(content, sort_keys=False)))


if __name__ == "__main__":
    run(main)
else:
    callable_module(__name__)
