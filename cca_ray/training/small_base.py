"""A small base from images: tokenizer, token set, feature network, model. On digits: the embedded default.

Everything is cached in a folder named by the digest of the images and settings; what is there is not made again.
The shipped search spaces' tokenizers and feature networks come with the project, below `NETWORKS`: what FID means there
depends on no processor.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from cca_ray.config import PATHS, Pretrain, ResolvedStudy, StudyConfig
from cca_ray.data.labelled_images import LabelledImages, digits
from cca_ray.data.tokens import MANIFEST, TokenMeta, encode_images, read_token_set, write_token_set
from cca_ray.data.variants import with_variants
from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import WHERE, load_extractor
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.models.base import Tokenizer
from cca_ray.models.family import family_of
from cca_ray.models.files import digest_of_weights, write_atomically
from cca_ray.models.official import load_tokenizer, save_official
from cca_ray.registry import owner_of
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import exists, pull, push, remove
from cca_ray.storage.uris import local_path
from cca_ray.training.fitting import KEEP_EVERY_S, Hooks, Keeping
from cca_ray.training.small_networks import (
    Making,
    feature_settings,
    reference_of,
    train_features,
    train_model,
    train_tokenizer,
)

Progress = Callable[[str, int, int], None]  # what is being made, steps done, steps in all

NETWORKS = Path(__file__).parent / "networks"  # `tests/networks.py` makes them anew
TRAINING = ".training"  # ends the name of a training's own file, beside that of what it makes


def short_digest(*parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:10]


@dataclass(frozen=True)
class BaseFiles:
    """Where a small base lies."""

    checkpoint: Path
    tokenizer: Path
    tokens: Path
    features: Path
    reference: Path


def files_of(data: LabelledImages, name: str, family: str, size: str, settings: Pretrain, root: Path) -> BaseFiles:
    """Where such a base lies below `root`.

    The feature network serves all families, tokenizer and tokens all sizes of one: each depends on the images and
    on its own settings only, and on no seed: bases of several seeds are models of the same tokens, measured alike.
    """
    kept = settings.content
    of_tokenizer = ("variants", "image_size", "downsample", "codebook_size", "code_dim", "tokenizer_width",
                    "tokenizer_epochs")  # fmt: skip
    ours: dict[str, object] = {key: kept[key] for key in of_tokenizer if key in kept}
    if owner := owner_of("family", family):
        ours["family"] = owner.digest  # another version of its code makes another tokenizer
    measure = short_digest(data.digest, settings.variants, settings.image_size, settings.feature_epochs)
    root = root / f"{name}-{measure}"
    folder = root / f"{family}-{short_digest(ours)}"
    return BaseFiles(
        checkpoint=folder / f"{size}-{short_digest(kept)}.pt",
        tokenizer=folder / "tokenizer.pt",
        tokens=folder / name,  # its folder's name is the data set's, also in MLflow
        features=root / "features.pt",
        reference=root / "reference.npz",
    )


def take_shipped(file: Path, root: Path) -> None:
    """Put a network below `root` if it is not there and comes with the project, which has it by the same name."""
    shipped = NETWORKS / file.relative_to(root)
    if not file.exists() and shipped.exists():
        atomically(file, lambda partial: shutil.copyfile(shipped, partial))


def build_base(
    data: LabelledImages, name: str, family: str, size: str, settings: Pretrain, root: Path, progress: Progress,
    note: Callable[[str], None] = lambda text: None, keep_every_s: float = KEEP_EVERY_S,
) -> BaseFiles:  # fmt: skip
    """Make what is missing below `root`; every file is written whole or not at all.

    A training that was killed goes on from where it last was kept. `note`: what there is to say beside progress.
    """

    @contextmanager
    def making(what: str, file: Path) -> Iterator[Making]:
        """Once the network is in its file, what its training needed to go on is not wanted any more."""
        keeping = Keeping(file.with_name(f"{file.name}{TRAINING}"), keep_every_s)
        yield Making(Hooks(lambda step, steps: progress(what, step, steps), note), keeping)
        remove(keeping.path)

    @cache
    def varied() -> LabelledImages:
        """Made only for what is missing: a study that goes on wants none of them."""
        return with_variants(data, settings.variants)

    kind, files = family_of(family), files_of(data, name, family, size, settings, root)
    pull(files.features.parent)
    for file in (files.tokenizer, files.features):
        take_shipped(file, root)
    if not files.tokenizer.exists():
        with making("tokenizer", files.tokenizer) as how:
            save_official(train_tokenizer(varied(), kind, settings, how), files.tokenizer)
    tokenizer = load_tokenizer(family, files.tokenizer)
    if not (files.tokens / MANIFEST).exists():
        encode_all(varied(), tokenizer, settings, files.tokens)
    if not files.features.exists():
        with making("feature network", files.features) as how:
            save_features(train_features(varied(), settings, how), data, files.features)
    if not files.reference.exists():
        reference_of(load_extractor(files.features), varied().images).save(files.reference)
        push(files.reference)
    if not files.checkpoint.exists():
        with making(f"{family} {size}", files.checkpoint) as how:
            model = train_model(read_token_set(files.tokens), tokenizer, kind, size, settings, how)
            save_official(model, files.checkpoint)
    return files


def save_features(network: FeatureNet, data: LabelledImages, file: Path) -> None:
    write_atomically({"model": network.state_dict(), "config": feature_settings(data)}, file)


def encode_all(data: LabelledImages, tokenizer: Tokenizer, settings: Pretrain, folder: Path) -> None:
    """The token set of all images, one crop each."""
    codes = np.concatenate(list(encode_images(tokenizer, data.images)))
    meta = TokenMeta(
        tokenizer=digest_of_weights(tokenizer),
        codebook_size=settings.codebook_size,
        length=codes.shape[1],
        crops=1,
        image_size=settings.image_size,
        augmentations=("centre",),
        class_names=data.class_names,
    )
    write_token_set(folder, [(data.labels, codes[:, None])], meta)


def with_files(config: StudyConfig, files: BaseFiles) -> ResolvedStudy:
    """The study with every path filled in."""
    return ResolvedStudy.of(config, {key: str(path.resolve()) for key, path in vars(files).items()})


HINTS = {
    "checkpoint": "the base's official weights, such as LlamaGen's c2i_B_384.pt",
    "tokenizer": "the tokenizer's official weights, such as LlamaGen's vq_ds16_c2i.pt",
    "tokens": "a token set, which python -m cca_ray.prepare makes from images",
    "features": WHERE,
    "reference": "ADM's VIRTUAL_imagenet256_labeled.npz, or what python -m cca_ray.prepare --reference makes",
}


def check_files(config: StudyConfig) -> None:
    """ConfigError, before anything starts, if a file is not there or the settings do not fit the embedded images."""
    if config.base.embedded is not None:
        if config.pretrain.image_size != 8:
            raise ConfigError(f"{config.name}: pretrain.image_size: the embedded digits are 8 pixels wide")
        return
    for section, keys in PATHS.items():
        for key in keys:
            path = getattr(getattr(config, section), key)
            if not exists(local_path(path)):
                raise ConfigError(f"{config.name}: {section}.{key}: no such file: {path}; expected {HINTS[key]}")


def is_made(config: StudyConfig, storage: Path) -> bool:
    """Whether the embedded base of a study is there."""
    base = config.base
    return files_of(digits(), "digits", base.family, base.size, config.pretrain, storage / "bases").checkpoint.exists()


def resolve(config: StudyConfig, storage: Path, progress: Progress) -> ResolvedStudy:
    """Make the embedded base on first use; of a study with its own files, URIs become local paths."""
    if config.base.embedded is None:
        return ResolvedStudy.of(config, {key: str(local_path(path)) for key, path in config.paths().items()})
    base = config.base
    with one_thread():
        files = build_base(digits(), "digits", base.family, base.size, config.pretrain, storage / "bases", progress)
    return with_files(config, files)


@contextmanager
def one_thread() -> Iterator[None]:
    """Meanwhile PyTorch computes in one thread: of networks this small, more of them wait for one another.

    And with as many threads everywhere, the number of cores changes no digit.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
