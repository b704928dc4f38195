"""A small base from images: tokenizer, token set, feature network, model. On digits: the embedded default.

Everything is cached in a folder named by the digest of the images and settings; what is there is not made again, and
a training that was cut short goes on.

cca-ray pretrain --images photos --image-size 32     one subfolder per class, images of any size and kind
cca-ray pretrain --images photos --size M            a model of about 1 M parameters
cca-ray pretrain --family var --size M               on the digits
"""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated

import typer
import yaml

from cca_ray.config import MOST_SEED, Pretrain
from cca_ray.data.labelled_images import LabelledImages, digits, read_folder
from cca_ray.data.listing import open_files
from cca_ray.errors import ConfigError
from cca_ray.evaluation.guidance_check import check_guidance
from cca_ray.models.family import Family, family_of, letter
from cca_ray.models.official import parameters
from cca_ray.registry import FAMILIES, load_plugins
from cca_ray.space_file import load_config
from cca_ray.storage.mirror import push, reach
from cca_ray.storage.uris import command_line, to_uri
from cca_ray.terminal.console import Console, StorageOption, place, run
from cca_ray.training.base_space import BaseFacts, space_for, template_of
from cca_ray.training.scale import Corpus, choose, reason, settings_for
from cca_ray.training.small_base import build_base, resolve
from cca_ray.training.small_networks import blank_model, blank_tokenizer

CODES = 256  # of the tokenizer of someone's images


@dataclass(frozen=True)
class Plan:
    """What is made, of which images. `facts`: of someone's own, for the ranges of their search space."""

    name: str
    data: LabelledImages
    size: str
    settings: Pretrain
    facts: BaseFacts | None


def known_family(name: str) -> Family:
    if name not in FAMILIES.names():
        raise ConfigError(f"--family {name}: one of {', '.join(FAMILIES.names())}")
    return family_of(name)


def known_size(text: str | None, sizes: tuple[str, ...]) -> str | None:
    """The size that an option means: by its name or, of small, medium and large, its first letter."""
    if not sizes:
        raise ConfigError("--family: of this one no small bases can be made")
    letters = {letter(size): size for size in sizes}
    if text is not None and text not in {*letters, *sizes}:
        raise ConfigError(f"--size {text}: one of {', '.join(letters)}")
    return None if text is None else letters.get(text, text)


def plan_for_images(
    images: str, family: Family, size: str | None, start: Pretrain, epochs: int | None, console: Console
) -> Plan:
    """Read someone's images, choose the size unless it is given, say why, and how a base of it is trained."""
    data = read_folder(images, start.image_size)
    classes, tokenizer = len(data.class_names), blank_tokenizer(family, start)
    console.say(f"{len(data.images):,} images of {classes} classes, {start.image_size} pixels wide")
    corpus = Corpus(len(data.images), tokenizer.config.length(start.image_size))
    models = {own: blank_model(family, own, tokenizer, classes, corpus.tokens) for own in family.own_sizes()}
    counts = {own: parameters(model) for own, model in models.items()}
    chosen = size or choose(counts, corpus)
    console.say(reason(letter(chosen), counts[chosen], corpus, asked=size is not None))
    settings = settings_for(start, counts[chosen], corpus, epochs)
    facts = BaseFacts(corpus.tokens, classes, settings.learning_rate)
    name = re.sub(r"[^\w.-]+", "_", PurePosixPath(open_files(images)[1]).name)
    return Plan(name, data, chosen, settings, facts)


def main(
    images: Annotated[
        str | None, typer.Option(help="Class folders, .tar or .parquet shards; without it, the digits.")
    ] = None,
    image_size: Annotated[int, typer.Option(min=4, help="Pixels along a side, for --images.")] = 32,
    downsample: Annotated[int, typer.Option(min=1, help="Pixels a token along a side, for --images.")] = 4,
    family: Annotated[str, typer.Option(help="llamagen, var, or a plug-in's.")] = "llamagen",
    size: Annotated[
        str | None, typer.Option(help="S, M or L, for --images; by default as their number says. S or M of the digits.")
    ] = None,
    plugin: Annotated[list[str] | None, typer.Option(help="Module that brings the family; repeatable.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Epochs of the model, at most.")] = None,
    ema_decay: Annotated[float, typer.Option(min=0, max=0.9999, help="Average the model's weights; 0: off.")] = 0.0,
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
    kind = known_family(family)
    sizes = kind.small_sizes if images is None else kind.own_sizes()
    size = known_size(size, sizes)
    reach(out, write=True)
    template = load_config(template_of(kind, size or sizes[0])).pretrain
    changes = {"seed": seed, "ema_decay": ema_decay, "epochs": epochs or template.epochs}
    if images is None:
        settings = Pretrain.model_validate({**template.model_dump(), **changes})
        plan = Plan("digits", digits(), size or sizes[0], settings, None)
        console.say(f"{len(plan.data.images):,} images of the digits, {settings.image_size} pixels wide")
    else:
        changes |= {"image_size": image_size, "downsample": downsample, "codebook_size": CODES, "variants": 1}
        start = Pretrain.model_validate({**template.model_dump(), **changes})
        plan = plan_for_images(images, kind, size, start, epochs, console)
    make(plan, kind, out, console)


def make(plan: Plan, family: Family, out: Path, console: Console) -> None:
    """The base, its search space, and what guidance does for it."""
    count = len(plan.data.images)
    files = build_base(plan.data, plan.name, family.name, plan.size, plan.settings, out, console.progress, console.note)
    console.note("")
    path = files.checkpoint.parent / f"{family.space_name(plan.name, plan.size)}.yaml"
    space = space_for(files, count, plan.facts, family, plan.size, path)
    path.write_text(yaml.safe_dump(space, sort_keys=False))
    study = resolve(load_config(path), out, console.progress)
    push(path)
    check = check_guidance(study, count, lambda done, total: console.progress("samples", done, total))
    console.say(str(check))
    console.say(f"base: {to_uri(files.checkpoint)}")
    console.say(f"search: {command_line('python', '-m', 'cca_ray.tune', path)}")


if __name__ == "__main__":
    run(main)
