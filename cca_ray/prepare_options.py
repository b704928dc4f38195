"""What `prepare` is asked for, and whether its options say it: all that can be told before anything starts."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from cca_ray.data.token_set_making import Texts, tokens_an_image
from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import load_extractor
from cca_ray.models.family import Family, family_of
from cca_ray.models.official import load_tokenizer
from cca_ray.registry import FAMILIES
from cca_ray.storage.mirror import pull, reach

REFERENCE_SIZE = 256  # pixels along a side, as the official evaluation has them
PART_IMAGES = 2048
MOST_UNREADABLE = 100


@dataclass(frozen=True)
class Source:
    """Where the images are, and how their classes are told; see `list_images`."""

    images: str
    classes: Sequence[str] | None
    label_key: str | None
    numeric_classes: bool
    allow_empty_classes: bool


@dataclass(frozen=True)
class Tokens:
    """A token set that is wanted, in the folder `out`."""

    family: str
    tokenizer: Path
    size: int
    augmentations: Sequence[str]
    out: Path
    part_images: int


@dataclass(frozen=True)
class Statistics:
    """Reference statistics that are wanted, in the file `out`."""

    features: Path
    size: int
    out: Path
    trust_torchscript: bool


def check(images: str | None, npy: list[Path], tokenizer: Path | None, out: Path | None, features: Path | None,
          reference: Path | None) -> None:  # fmt: skip
    """ConfigError if the options do not say what to make of what."""
    if (images is None) == (not npy):
        raise ConfigError("give either IMAGES or --npy FOLDER")
    if out is None and reference is None:
        raise ConfigError("nothing to make: give --out FOLDER, --reference FILE.npz, or both")
    if out is not None and tokenizer is None:
        raise ConfigError("--out needs --tokenizer FILE, such as vq_ds16_c2i.pt or vae_ch160v4096z32.pth")
    if reference is not None and (features is None or npy):
        raise ConfigError("--reference needs IMAGES and --features FILE")
    if reference is not None and reference.suffix != ".npz":
        raise ConfigError(f"--reference {reference}: expected a file that ends in .npz")
    if features is not None and reference is None:
        raise ConfigError("--features is for --reference FILE.npz; give both or none")
    if out is not None and out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out}: is a file; expected a folder")


OF_CLASSES = ("--classes", "--label-key", "--numeric-classes", "--allow-empty-classes")
USES = {  # option -> those that do nothing without it
    "--out": ("--tokenizer", "--image-size", "--augment", "--part-images", *OF_CLASSES),
    "--reference": ("--reference-size", "--trust-torchscript"),
    "IMAGES": ("--augment", "--label-key", "--numeric-classes", "--allow-empty-classes", "--gpus", "--max-unreadable"),
}


def refuse_idle(given: Collection[str]) -> None:
    """ConfigError if one of the options that were `given` would do nothing, because another one is missing."""
    for needed, users in USES.items():
        idle = [option for option in users if option in given and needed not in given]
        if idle:
            raise ConfigError(f"{idle[0]} does nothing without {needed}; leave it out, or give {needed}")
    if {"--classes", "--numeric-classes"} <= set(given):
        raise ConfigError("--numeric-classes sorts the classes that are found, and --classes lists them; give one")


def checked_family(name: str, npy: list[Path]) -> Family:
    """ConfigError if there is none of this name, or its official code leaves no tokens that could be imported."""
    if name not in FAMILIES.names():
        raise ConfigError(f"--family {name}: one of {', '.join(FAMILIES.names())}")
    family = family_of(name)
    if npy and not family.official_codes:
        raise ConfigError(f"--npy: the official code of {name} leaves no tokens in .npy files")
    return family


def check_texts(family: Family, texts: Texts, of_classes: list[str], tokens: bool) -> None:
    """ConfigError if options of captions are given to a family of classes, or the other way, or some are missing."""
    given = {"captions": texts.captions, "caption-key": texts.key, "text-features": texts.features,
             "text-encoder": texts.encoder}  # fmt: skip
    of_texts = [name for name, value in given.items() if value is not None]
    if of_texts and not (family.text_positions and tokens):
        raise ConfigError(f"--{of_texts[0]} is for the token set (--out) of a family of texts, such as llamagen_t2i")
    if family.text_positions and of_classes:
        raise ConfigError(f"{of_classes[0]}: {family.name} takes captions, not classes")
    if family.text_positions and tokens and (texts.features is None) == (texts.encoder is None):
        raise ConfigError(
            f"a token set for {family.name} needs features of its captions: give either --text-features FOLDER, with "
            "those of a T5 in files, or --text-encoder FOLDER, with a T5 that is run here"
        )


def check_files(
    classes: Path | None, tokenizer: Path | None, features: Path | None, encoder: Path | None, tokens: Tokens | None,
    statistics: Statistics | None,
) -> list[str] | None:  # fmt: skip
    """ConfigError, before anything starts, if a file cannot be read, or what is wanted cannot be written or made.

    The names of the classes, if they are given.
    """
    for given in (classes, tokenizer, features, encoder):
        if given is not None:
            pull(given)
    if tokens is not None:
        reach(tokens.out, write=True)
    if statistics is not None:
        reach(statistics.out.parent, write=True)
    names = read_classes(classes)
    if tokens is not None:
        tokens_an_image(load_tokenizer(tokens.family, tokens.tokenizer), tokens.size)
    if statistics is not None:
        load_extractor(statistics.features, statistics.trust_torchscript)
    return names


def read_classes(path: Path | None) -> list[str] | None:
    """One class name per line, in the order of the labels."""
    if path is None:
        return None
    try:
        names = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8 text") from None
    if len(names) < 2:
        raise ConfigError(f"{path}: expected one class name per line, at least 2")
    return names
