"""A small base from images: tokenizer, token set, feature network, model. On digits: the embedded default.

Everything is cached in a folder named by the digest of the images and settings; what is there is not made again.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from sklearn.datasets import load_digits
from torch import Tensor, nn

from cca_ray.config import PATHS, Pretrain, ResolvedStudy, StudyConfig
from cca_ray.data.images import centre_crop, decode, list_images, read_entry
from cca_ray.data.pairs import steps_per_epoch
from cca_ray.data.tokens import MANIFEST, TokenMeta, encode_images, read_token_set, to_input, write_token_set
from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import WHERE, extract
from cca_ray.evaluation.reference import Moments, Reference, evenly_spaced, merge_all
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.inputs import find_space
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import Tokenizer, build, build_tokenizer, load_tokenizer, save_official
from cca_ray.models.files import digest_of_weights, write_atomically
from cca_ray.models.llamagen_vq import LlamaGenVQ
from cca_ray.models.var_vqvae import PATCH_NUMS, VARVQVAE
from cca_ray.space_file import load_config
from cca_ray.storage.mirror import exists, pull, push
from cca_ray.storage.uris import here, named

Progress = Callable[[str, int, int], None]  # what is being made, steps done, steps in all


@dataclass(frozen=True)
class LabelledImages:
    """images [N, S, S, 3] uint8, labels [N] int64, one name a class."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]

    @property
    def digest(self) -> str:
        content = self.images.tobytes() + self.labels.tobytes() + "\0".join(self.class_names).encode()
        return hashlib.sha256(content).hexdigest()[:16]


def digits() -> LabelledImages:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, grey."""
    bunch = load_digits()
    images = (bunch.images / 16 * 255).round().astype(np.uint8)
    return LabelledImages(np.repeat(images[..., None], 3, axis=-1), bunch.target.astype(np.int64), tuple("0123456789"))


def read_folder(folder: str, size: int) -> LabelledImages:
    """A collection of images as squares of `size` pixels, all in memory. ValueError, naming the file, if one is bad."""
    listing = list_images(folder)
    squares = []
    for entry in listing.entries:
        try:
            squares.append(centre_crop(decode(read_entry(folder, entry.path, entry.start, entry.length)), size))
        except ValueError as error:
            raise ValueError(f"{entry.path}: {error}") from None
    return LabelledImages(np.stack(squares), listing.labels, listing.class_names)


def batches(count: int, batch: int, epochs: int, seed: int) -> Iterator[Tensor]:
    """Shuffled indices, full batches only."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(count, generator=generator)
        for step in range(steps_per_epoch(count, batch)):
            yield order[step * batch : (step + 1) * batch]


def train_network(
    network: nn.Module,
    loss_of: Callable[[Tensor, int], Tensor],
    count: int,
    batch: int,
    epochs: int,
    learning_rate: float,
    seed: int,
    progress: Callable[[int, int], None],
) -> None:
    """AdamW, a short warm-up, then linearly to zero: an annealed end is what makes a control meaningful.

    `loss_of(indices, step)` is the loss on these images.
    """
    optimizer = torch.optim.AdamW(network.parameters(), lr=learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    total = epochs * steps_per_epoch(count, batch)
    for step, index in enumerate(batches(count, batch, epochs, seed)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * min(1.0, (step + 1) / 20) * (1 - step / total)
        optimizer.zero_grad(set_to_none=True)
        loss_of(index, step).backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, total)


def blank_tokenizer(family: str, settings: Pretrain) -> Tokenizer:
    """A small tokenizer with seeded random weights."""
    common: dict[str, Any] = dict(
        ch=settings.tokenizer_width,
        ch_mult=(1,) + (2,) * int(math.log2(settings.downsample)),
        num_res_blocks=1,
        norm_groups=8,
    )
    if family == "var":
        side = settings.image_size // settings.downsample
        common |= dict(vocab_size=settings.codebook_size, z_channels=settings.code_dim, patch_nums=scales_of(side))
    else:
        common |= dict(codebook_size=settings.codebook_size, codebook_embed_dim=settings.code_dim,
                       z_channels=2 * settings.tokenizer_width)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return build_tokenizer(family, **common)


def scales_of(side: int) -> tuple[int, ...]:
    """VAR's ten scales of a 16 x 16 grid, shrunk to another; those that fall together once. 4 -> 1, 2, 3, 4."""
    return tuple(sorted({max(1, round(p * side / PATCH_NUMS[-1])) for p in PATCH_NUMS}))


class Codebook:
    """Keeps a codebook from falling idle: codes that nothing chose lately are moved onto vectors that exist."""

    def __init__(self, embedding: nn.Embedding, steps: int, seed: int):
        self.embedding, self.steps = embedding, steps
        self.used = torch.zeros(embedding.num_embeddings)
        self.generator = torch.Generator().manual_seed(seed)

    def chosen(self, tokens: Tensor) -> None:
        self.used += torch.bincount(tokens.flatten(), minlength=len(self.used))

    def revive(self, vectors: Tensor, step: int) -> None:
        """vectors [N, D]: what codes are wanted for."""
        if step % 50 or step >= 0.6 * self.steps:
            return
        dead = (self.used == 0).nonzero().squeeze(1)
        pick = torch.randint(len(vectors), (len(dead),), generator=self.generator)
        self.embedding.weight.data[dead] = vectors[pick].detach()
        self.used.zero_()


def quantised(tokenizer: LlamaGenVQ, latents: Tensor, codebook: Codebook, step: int) -> tuple[Tensor, Tensor]:
    """Straight-through codes for the decoder, and VQ-VAE's loss: codes towards latents, latents towards codes."""
    z = F.normalize(latents, dim=-1)
    codebook.revive(z.flatten(0, 1), step)
    tokens = tokenizer.quantize.nearest(z)
    codebook.chosen(tokens)
    q = tokenizer.quantize.codebook()[tokens]
    return z + (q - z).detach(), F.mse_loss(q, z.detach()) + 0.25 * F.mse_loss(z, q.detach())


def quantised_by_scales(tokenizer: VARVQVAE, latents: Tensor, codebook: Codebook, step: int) -> tuple[Tensor, Tensor]:
    """The same for a pyramid, whose finer scales want codes for what the coarser ones leave over."""
    quantizer, vectors, before = tokenizer.quantize, [], torch.zeros_like(latents)
    with torch.no_grad():
        for scale, (tokens, f_hat) in enumerate(quantizer.scales(latents)):
            vectors.append(quantizer.resized(latents - before, scale).flatten(0, 1))
            codebook.chosen(tokens)
            before = f_hat
    codebook.revive(torch.cat(vectors), step)
    return quantizer.train_pass(latents)


def train_tokenizer(data: LabelledImages, family: str, settings: Pretrain, progress: Progress) -> Tokenizer:
    """A VQ autoencoder on pixels and codes alone: images this small need no perceptual or adversarial loss."""
    tokenizer = blank_tokenizer(family, settings)
    x, batch = to_input(data.images), min(64, len(data.images))
    total = settings.tokenizer_epochs * steps_per_epoch(len(x), batch)
    codebook = Codebook(tokenizer.quantize.embedding, total, settings.seed)

    def loss_of(index: Tensor, step: int) -> Tensor:
        latents = tokenizer.latents(x[index])
        if isinstance(tokenizer, VARVQVAE):
            codes, loss = quantised_by_scales(tokenizer, latents, codebook, step)
        else:
            codes, loss = quantised(tokenizer, latents, codebook, step)
        return F.mse_loss(tokenizer.decode_latents(codes), x[index]) + loss

    train_network(
        tokenizer, loss_of, len(x), batch, settings.tokenizer_epochs, 2e-3, settings.seed,
        lambda done, of: progress("tokenizer", done, of),
    )  # fmt: skip
    return tokenizer.requires_grad_(False)


def feature_settings(data: LabelledImages) -> dict[str, int]:
    return {"image_size": data.images.shape[1], "num_classes": len(data.class_names)}


def train_features(data: LabelledImages, settings: Pretrain, progress: Progress) -> FeatureNet:
    """The classifier whose features stand for Inception's on such images."""
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        network = FeatureNet(**feature_settings(data))
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    train_network(
        network,
        lambda index, step: F.cross_entropy(network.logits(images[index])[1], labels[index]),
        len(images), min(64, len(images)), settings.feature_epochs, 2e-3, settings.seed,
        lambda done, of: progress("feature network", done, of),
    )  # fmt: skip
    return network.requires_grad_(False)


def train_model(
    tokens: Path, tokenizer: Tokenizer, family: str, size: str, settings: Pretrain, path: Path, progress: Progress
) -> None:
    """The autoregressive model, with null conditions, so that it can be guided."""
    data = read_token_set(tokens)
    shape: dict[str, Any] = dict(vocab_size=data.meta.codebook_size, num_classes=len(data.meta.class_names))
    if isinstance(tokenizer, VARVQVAE):
        shape |= dict(code_dim=tokenizer.config.z_channels, patch_nums=tokenizer.config.patch_nums)
    else:
        shape |= dict(block_size=data.meta.length)
    model = build(family, size, tokenizer, **shape)
    model.initialize(torch.Generator().manual_seed(settings.seed))
    codes, labels = torch.from_numpy(data.tokens[:, 0].astype(np.int64)), torch.from_numpy(data.labels)
    generator = torch.Generator().manual_seed(settings.seed)

    def loss_of(index: Tensor, step: int) -> Tensor:
        null = torch.rand(len(index), generator=generator) < settings.null_ratio
        conditions = torch.where(null, model.null_label, labels[index])
        keys = dropout_keys(index.numpy(), settings.seed, step)
        logits = model(conditions, codes[index], Dropout(settings.dropout, keys) if settings.dropout else None)
        return F.cross_entropy(logits.flatten(0, 1), codes[index].flatten())

    train_network(
        model, loss_of, len(codes), min(settings.batch, len(codes)), settings.epochs, settings.learning_rate,
        settings.seed, lambda done, of: progress(f"{family} {size}", done, of),
    )  # fmt: skip
    save_official(model, path)


def reference_of(network: FeatureNet, images: np.ndarray) -> Reference:
    """Statistics of the real images' features, and features of some."""
    chunks = [
        extract(network, torch.from_numpy(images[i : i + 1024])).pooled.numpy() for i in range(0, len(images), 1024)
    ]
    features = np.concatenate(chunks)[evenly_spaced(len(images))]
    return Reference.of(merge_all(map(Moments.of, chunks)), features=features)


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


def build_base(
    data: LabelledImages, name: str, family: str, size: str, settings: Pretrain, root: Path, progress: Progress
) -> BaseFiles:
    """Make what is missing below `root`; every file is written whole or not at all.

    The feature network serves both families, tokenizer and tokens all sizes of one: each depends on the images and
    on its own settings only.
    """
    kept = settings.model_dump()
    ours = {key: kept[key] for key in ("image_size", "downsample", "codebook_size", "code_dim", "tokenizer_width",
                                       "tokenizer_epochs", "seed")}  # fmt: skip
    root = root / f"{name}-{short_digest(data.digest, settings.image_size, settings.feature_epochs, settings.seed)}"
    folder = root / f"{family}-{short_digest(ours)}"
    files = BaseFiles(
        checkpoint=folder / f"{size}-{short_digest(kept)}.pt",
        tokenizer=folder / "tokenizer.pt",
        tokens=folder / name,  # its folder's name is the data set's, also in MLflow
        features=root / "features.pt",
        reference=root / "reference.npz",
    )
    pull(root)
    if not files.tokenizer.exists():
        save_official(train_tokenizer(data, family, settings, progress), files.tokenizer)
    tokenizer = load_tokenizer(family, files.tokenizer)
    if not (files.tokens / MANIFEST).exists():
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
        write_token_set(files.tokens, [(data.labels, codes[:, None])], meta)
    if not (files.features.exists() and files.reference.exists()):
        network = train_features(data, settings, progress)
        reference_of(network, data.images).save(files.reference)
        push(files.reference)
        write_atomically({"model": network.state_dict(), "config": feature_settings(data)}, files.features)
    if not files.checkpoint.exists():
        train_model(files.tokens, tokenizer, family, size, settings, files.checkpoint, progress)
    return files


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
            if not exists(here(path)):
                raise ConfigError(f"{config.name}: {section}.{key}: no such file: {path}; want {HINTS[key]}")


def resolve(config: StudyConfig, storage: Path, progress: Progress) -> ResolvedStudy:
    """Make the embedded base on first use; of a study with its own files, URIs become local paths."""
    if config.base.embedded is None:
        return ResolvedStudy.of(config, {key: str(here(path)) for key, path in config.paths().items()})
    base = config.base
    files = build_base(digits(), "digits", base.family, base.size, config.pretrain, storage / "bases", progress)
    return with_files(config, files)


def template_of(family: str, size: str) -> Path:
    """The embedded search space whose settings a base of one's own starts from."""
    return find_space("digits_var" if family == "var" else f"digits_{size.lower()}")


def space_for(files: BaseFiles, images: int, family: str, size: str, path: Path) -> dict[str, Any]:
    """A search space for a base made from someone's images: that of the digits, on these files.

    If there is one at `path`, it keeps its settings, which someone may have edited, and gets the files.
    """
    paths = {key: named(path.resolve()) for key, path in vars(files).items()}
    space: dict[str, Any]
    if pull(path):
        space = load_config(path).model_dump(mode="json", by_alias=True, exclude={"name"})
        space["base"] |= {"checkpoint": paths["checkpoint"], "tokenizer": paths["tokenizer"]}
        return space
    space = yaml.safe_load(template_of(family, size).read_text())
    samples = max(2, min(images, 5000))
    space["base"] = {
        "family": family,
        "size": size,
        "checkpoint": paths["checkpoint"],
        "tokenizer": paths["tokenizer"],
    }
    space["data"] = {"tokens": paths["tokens"]}
    space["score"] |= {"features": paths["features"], "reference": paths["reference"], "samples": samples}
    space["rungs"] = [
        {**rung, "samples": samples if rung["at"] == 1 else max(2, samples // 2)} for rung in space["rungs"]
    ]
    space["train"]["global_batch"] = min(space["train"]["global_batch"], images)
    space.pop("pretrain", None)
    return space
