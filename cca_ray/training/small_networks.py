"""The networks of a small base: tokenizer, feature network, model; each trained in minutes on a CPU."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.config import Pretrain
from cca_ray.data.labelled_images import LabelledImages
from cca_ray.data.pairs import steps_per_epoch
from cca_ray.data.tokens import TokenSet, to_input
from cca_ray.evaluation.features import extract
from cca_ray.evaluation.reference import Moments, Reference, evenly_spaced, merge_all
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.models.base import Model, Tokenizer
from cca_ray.models.codebook import Codebook
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import Family
from cca_ray.models.official import build

Progress = Callable[[str, int, int], None]  # what is being made, steps done, steps in all


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


def blank_tokenizer(family: Family, settings: Pretrain) -> Tokenizer:
    """A small tokenizer with seeded random weights."""
    config = family.small_tokenizer(settings)
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        return family.parts().tokenizer(config)


def train_tokenizer(data: LabelledImages, family: Family, settings: Pretrain, progress: Progress) -> Tokenizer:
    """A VQ autoencoder on pixels and codes alone: images this small need no perceptual or adversarial loss."""
    tokenizer = blank_tokenizer(family, settings)
    x, batch = to_input(data.images), min(64, len(data.images))
    total = settings.tokenizer_epochs * steps_per_epoch(len(x), batch)
    codebook = Codebook(family.codebook_of(tokenizer), total, settings.seed)

    def loss_of(index: Tensor, step: int) -> Tensor:
        codes, loss = family.quantised(tokenizer, tokenizer.latents(x[index]), codebook, step)
        return F.mse_loss(tokenizer.decode_latents(codes), x[index]) + loss

    train_network(
        tokenizer, loss_of, len(x), batch, settings.tokenizer_epochs, 2e-3, settings.seed,
        lambda done, of: progress("tokenizer", done, of),
    )  # fmt: skip
    return tokenizer.requires_grad_(False)


def feature_settings(data: LabelledImages) -> dict[str, int]:
    return {"image_size": data.images.shape[1], "num_classes": len(data.class_names)}


def train_features(data: LabelledImages, settings: Pretrain, progress: Progress) -> FeatureNet:
    """The classifier whose features stand for Inception's on such images. It measures, so no seed changes it."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = FeatureNet(**feature_settings(data))
    images, labels = torch.from_numpy(data.images), torch.from_numpy(data.labels)
    train_network(
        network,
        lambda index, step: F.cross_entropy(network.logits(images[index])[1], labels[index]),
        len(images), min(64, len(images)), settings.feature_epochs, 2e-3, 0,
        lambda done, of: progress("feature network", done, of),
    )  # fmt: skip
    return network.requires_grad_(False)


def train_model(
    data: TokenSet, tokenizer: Tokenizer, family: Family, size: str, settings: Pretrain, progress: Progress
) -> Model:
    """The autoregressive model, with null conditions, so that it can be guided."""
    shape = dict(vocab_size=data.meta.codebook_size, num_classes=len(data.meta.class_names))
    model = build(family.name, size, tokenizer, **shape, **family.small_model(tokenizer, data.meta.length))
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
        settings.seed, lambda done, of: progress(f"{family.name} {size}", done, of),
    )  # fmt: skip
    return model


def reference_of(network: FeatureNet, images: np.ndarray) -> Reference:
    """Statistics of the real images' features, and features of some."""
    chunks = [
        extract(network, torch.from_numpy(images[i : i + 1024])).pooled.numpy() for i in range(0, len(images), 1024)
    ]
    features = np.concatenate(chunks)[evenly_spaced(len(images))]
    return Reference.of(merge_all(map(Moments.of, chunks)), features=features)
