"""The networks of a small base: tokenizer, feature network, model; each trained in minutes on a CPU."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.config import Pretrain
from cca_ray.data.labelled_images import LabelledImages
from cca_ray.data.tokens import TokenSet, to_input
from cca_ray.evaluation.features import Extractor, extract
from cca_ray.evaluation.reference import Moments, Reference, evenly_spaced, merge_all
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.models.base import Model, Tokenizer
from cca_ray.models.codebook import Codebook
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import Family
from cca_ray.models.official import build, refuse_tied
from cca_ray.training.fitting import Fit, HeldOut, Hooks, Keeping, Recipe

SEED = 0  # of tokenizer and feature network: bases of all seeds are models of the same tokens, measured alike
STEPS_BETWEEN = 50  # at least, from one validation to the next


@dataclass(frozen=True)
class Making:
    """Who watches the training of one network, and where it is kept until it is done."""

    hooks: Hooks
    keeping: Keeping | None = None


class NullConditions:
    """Which images of a batch are trained under the null condition, batch after batch."""

    def __init__(self, ratio: float, seed: int):
        self.ratio, self.generator = ratio, torch.Generator().manual_seed(seed)

    def draw(self, count: int) -> Tensor:
        return torch.rand(count, generator=self.generator) < self.ratio

    def state(self) -> dict[str, Tensor]:
        return {"generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.generator.set_state(state["generator"])


def blank_tokenizer(family: Family, settings: Pretrain) -> Tokenizer:
    """A small tokenizer with random weights, always the same. ValueError if it ties weights."""
    config = family.small_tokenizer(settings)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        tokenizer = family.parts().tokenizer(config)
    refuse_tied(tokenizer, family.name)
    return tokenizer


def train_tokenizer(data: LabelledImages, family: Family, settings: Pretrain, making: Making) -> Tokenizer:
    """A VQ autoencoder on pixels and codes alone: images this small need no perceptual or adversarial loss."""
    tokenizer = blank_tokenizer(family, settings)
    x = to_input(data.images)
    recipe = Recipe(len(x), min(64, len(x)), settings.tokenizer_epochs, 2e-3, SEED)
    codebook = Codebook(family.codebook_of(tokenizer), recipe.steps, SEED)

    def loss_of(index: Tensor, step: int) -> Tensor:
        codes, loss = family.quantised(tokenizer, tokenizer.latents(x[index]), codebook, step)
        return F.mse_loss(tokenizer.decode_latents(codes), x[index]) + loss

    Fit(tokenizer, loss_of, recipe, parts={"codebook": codebook}, keeping=making.keeping).run(making.hooks)
    return tokenizer.requires_grad_(False)


def feature_settings(data: LabelledImages) -> dict[str, int]:
    return {"image_size": data.images.shape[1], "num_classes": len(data.class_names)}


def train_features(data: LabelledImages, settings: Pretrain, making: Making) -> FeatureNet:
    """The classifier whose features stand for Inception's on such images."""
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        network = FeatureNet(**feature_settings(data))
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    recipe = Recipe(len(images), min(64, len(images)), settings.feature_epochs, 2e-3, SEED)

    def loss_of(index: Tensor, step: int) -> Tensor:
        return F.cross_entropy(network.logits(images[index])[1], labels[index])

    Fit(network, loss_of, recipe, keeping=making.keeping).run(making.hooks)
    return network.requires_grad_(False)


def blank_model(family: Family, size: str, tokenizer: Tokenizer, classes: int, length: int) -> Model:
    """A model for such tokens, `length` an image, with random weights, always the same."""
    shape = dict(vocab_size=tokenizer.config.codebook_size, num_classes=classes)
    return build(family.name, size, tokenizer, **shape, **family.small_model(tokenizer, length))


def split(count: int, settings: Pretrain) -> tuple[np.ndarray, np.ndarray]:
    """Which of `count` images the model is trained on, and which it is not.

    Of the second there are no variants among the first, nor among themselves.
    """
    images = count // settings.variants
    held_out = min(math.ceil(settings.validation * images), images - 1)
    left_out = np.random.default_rng(settings.seed).permutation(images)[:held_out]
    return np.flatnonzero(~np.isin(np.arange(count) % images, left_out)), np.sort(left_out)


@torch.no_grad()
def mean_loss(model: nn.Module, labels: Tensor, codes: Tensor) -> float:
    """Cross-entropy a token, under the true conditions and without dropout."""
    total = torch.zeros((), dtype=torch.float64)
    for some in torch.arange(len(codes)).split(256):
        logits = model(labels[some], codes[some])
        total += F.cross_entropy(logits.flatten(0, 1), codes[some].flatten(), reduction="sum")
    return float(total) / codes.numel()


def train_model(
    data: TokenSet, tokenizer: Tokenizer, family: Family, size: str, settings: Pretrain, making: Making
) -> Model:
    """The autoregressive model, with null conditions, so that it can be guided."""
    model = blank_model(family, size, tokenizer, len(data.meta.class_names), data.meta.length)
    model.initialize(torch.Generator().manual_seed(settings.seed))
    used, left_out = split(len(data.labels), settings)
    codes, labels = torch.from_numpy(data.tokens[:, 0].astype(np.int64)), torch.from_numpy(data.labels)
    null = NullConditions(settings.null_ratio, settings.seed)

    def loss_of(chosen: Tensor, step: int) -> Tensor:
        index = torch.from_numpy(used)[chosen]
        conditions = torch.where(null.draw(len(index)), model.null_label, labels[index])
        keys = dropout_keys(index.numpy(), settings.seed, step)
        logits = model(conditions, codes[index], Dropout(settings.dropout, keys) if settings.dropout else None)
        return F.cross_entropy(logits.flatten(0, 1), codes[index].flatten())

    recipe = Recipe(
        len(used), min(settings.batch, len(used)), settings.epochs, settings.learning_rate, settings.seed,
        settings.ema_decay,
    )  # fmt: skip
    validation = HeldOut(
        lambda network: mean_loss(network, labels[left_out], codes[left_out]),
        epochs=math.ceil(STEPS_BETWEEN / recipe.steps_per_epoch),
    )
    parts = {"null": null}
    Fit(model, loss_of, recipe, validation if len(left_out) else None, parts, making.keeping).run(making.hooks)
    return model


def reference_of(network: Extractor, images: np.ndarray) -> Reference:
    """Statistics of the real images' features, and features of some."""
    chunks = [
        extract(network, torch.from_numpy(images[i : i + 1024])).pooled.numpy() for i in range(0, len(images), 1024)
    ]
    features = np.concatenate(chunks)[evenly_spaced(len(images))]
    return Reference.of(merge_all(map(Moments.of, chunks)), features=features, image_size=images.shape[1])
