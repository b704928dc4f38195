"""Token sets -> the pairs of an epoch -> global batches -> one worker's micro-batches.

Everything random is a function of (seed, epoch, index): the order, the crop, the negative condition, the
null mask, an order of the tokens.  Nothing depends on the number of workers or the micro-batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cca_ray.config import TokenOrder
from cca_ray.data.moving import moved
from cca_ray.data.tokens import TokenSet
from cca_ray.models.condition import Condition, TextFeatures, joined

ORDER, CROP, NULL, PLACES = 0, 1, 2, 3  # one stream of random numbers for each purpose


@dataclass(frozen=True)
class EpochPlan:
    """All decisions of an epoch. Except `order`, arrays [N] are indexed by image.

    `labels` and `negative_labels` are the conditions to train with: the null label where `null` is set.
    `shuffled`: seed and epoch, of which every image's tokens have an order of their own; None: raster order.
    """

    order: np.ndarray
    crops: np.ndarray
    null: np.ndarray
    labels: np.ndarray
    negative_labels: np.ndarray
    shuffled: tuple[int, int] | None = None


def plan_epoch(
    labels: np.ndarray, crops: int, null_label: int, null_ratio: float, seed: int, epoch: int,
    places: TokenOrder = "raster",
) -> EpochPlan:  # fmt: skip
    """The negative condition is the label of the next image in the epoch's order: the official roll, but over
    the whole epoch instead of one GPU's micro-batch."""

    def stream(purpose: int) -> np.random.Generator:
        return np.random.default_rng([seed, epoch, purpose])

    order = stream(ORDER).permutation(len(labels))
    negative = np.empty_like(labels)
    negative[order] = labels[np.roll(order, -1)]
    null = stream(NULL).random(len(labels)) < null_ratio
    return EpochPlan(
        order=order,
        crops=stream(CROP).integers(0, crops, len(labels)),
        null=null,
        labels=np.where(null, null_label, labels),
        negative_labels=np.where(null, null_label, negative),
        shuffled=(seed, epoch) if places == "random" else None,
    )


def places_of(seed: int, epoch: int, index: np.ndarray, length: int) -> np.ndarray:
    """Where in these images their tokens lie, in the order in which they come: [B, length], a permutation a row."""
    streams = (np.random.default_rng([seed, epoch, PLACES, image]) for image in index.tolist())
    return np.stack([stream.permutation(length) for stream in streams])


def steps_per_epoch(images: int, global_batch: int) -> int:
    """Full global batches only, as in the official code. ValueError if there is not even one."""
    if images < global_batch:
        raise ValueError(f"global_batch {global_batch} is larger than the token set ({images} images)")
    return images // global_batch


@dataclass(frozen=True)
class Batch:
    """tokens [B, L]; labels, negative_labels [B] (null label where null); null [B] bool; index [B] of the image,
    which finds rows in tables and stays on the CPU; places [B, L]: where in the image each token lies, if not in
    raster order; texts, negative_texts: of the captions whose numbers the labels are, if they are. Where null, both
    are the null condition of the image's own caption: a family's may tell how many words that has."""

    index: Tensor
    tokens: Tensor
    labels: Tensor
    negative_labels: Tensor
    null: Tensor
    places: Tensor | None = None
    texts: TextFeatures | None = None
    negative_texts: TextFeatures | None = None

    def to(self, device: torch.device) -> "Batch":
        def there(tensor: Tensor) -> Tensor:
            return moved(tensor, device)

        return Batch(
            index=self.index,
            tokens=there(self.tokens),
            labels=there(self.labels),
            negative_labels=there(self.negative_labels),
            null=there(self.null),
            places=None if self.places is None else there(self.places),
            texts=None if self.texts is None else self.texts.each(there),
            negative_texts=None if self.negative_texts is None else self.negative_texts.each(there),
        )

    @property
    def condition(self) -> Condition:
        """The true one."""
        return self.labels if self.texts is None else self.texts

    def both(self) -> tuple[Condition, Tensor, Tensor | None]:
        """Conditions, tokens and places of the images under their true conditions, then the same under the negative."""
        places = None if self.places is None else torch.cat([self.places, self.places])
        negative = self.negative_labels if self.negative_texts is None else self.negative_texts
        return joined(self.condition, negative), torch.cat([self.tokens, self.tokens]), places


def gather(data: TokenSet, plan: EpochPlan, index: np.ndarray) -> Batch:
    """The pairs of the given images."""
    tokens, places = data.tokens[index, plan.crops[index]].astype(np.int64), None
    if plan.shuffled is not None:
        places = places_of(*plan.shuffled, index, tokens.shape[1])
        tokens = np.take_along_axis(tokens, places, axis=1)
    texts = negative_texts = None
    if data.captions is not None:
        own, null = data.labels[index], plan.null[index]
        texts = data.captions.of(own, null)
        negative_texts = data.captions.of(np.where(null, own, plan.negative_labels[index]), null)
    return Batch(
        index=torch.from_numpy(index),
        tokens=torch.from_numpy(tokens),
        labels=torch.from_numpy(plan.labels[index]),
        negative_labels=torch.from_numpy(plan.negative_labels[index]),
        null=torch.from_numpy(plan.null[index]),
        places=None if places is None else torch.from_numpy(places),
        texts=texts,
        negative_texts=negative_texts,
    )


def micro_batches(
    data: TokenSet, plan: EpochPlan, step: int, global_batch: int, micro_batch: int, rank: int = 0, world: int = 1
) -> Iterator[Batch]:
    """This worker's share of global batch `step` of the epoch, `micro_batch` pairs at a time."""
    batch = plan.order[step * global_batch : (step + 1) * global_batch]
    mine = batch[rank::world]
    for start in range(0, len(mine), micro_batch):
        yield gather(data, plan, mine[start : start + micro_batch])
