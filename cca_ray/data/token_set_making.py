"""A collection of images -> a token set, by Ray Data on all nodes."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cca_ray.data.captioned import CaptionedImages, list_captioned
from cca_ray.data.captions import FEATURES, TEXTS, CaptionMeta, sha256_of, write_captions
from cca_ray.data.contents import contents_of
from cca_ray.data.encode import CONTENTS, Encode, Progress, ReadImages, claim, stream_parts, write_stream
from cca_ray.data.images import crops_of
from cca_ray.data.listing import Listing
from cca_ray.data.text_features import KEPT, FeatureFiles, FeatureSource, T5Features
from cca_ray.data.tokens import TokenMeta, count_images
from cca_ray.errors import ConfigError, reading
from cca_ray.models.base import Tokenizer
from cca_ray.models.files import digest_of_weights
from cca_ray.models.official import load_tokenizer
from cca_ray.registry import owner_of
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import listed, remove
from cca_ray.storage.uris import to_uri

CAPTIONS = "captions.json"  # says that the files of captions are all there


@dataclass(frozen=True)
class Captioning:
    """What makes a token set one of captions. positions: of a text, of the models that are to read it."""

    images: CaptionedImages
    source: FeatureSource
    positions: int

    @property
    def plan(self) -> Mapping[str, object]:
        """See `plan_of`."""
        return {"captions": self.images.digest, "text features": self.source.digest, "text positions": self.positions}

    def made(self, out: Path) -> CaptionMeta:
        """The captions and their features, in the folder of a token set that was begun; once."""
        path = out / CAPTIONS
        if path.exists():
            with reading(path, "damaged; delete it to make it again"):
                meta = CaptionMeta.model_validate_json(path.read_text())
            if meta.sha256 == (sha256_of(out / TEXTS), sha256_of(out / FEATURES)):
                return meta
        features = self.source.features(self.images.captions, out)
        meta = write_captions(out, self.images.texts, features, self.positions, self.source.name)
        atomically(path, lambda partial: partial.write_text(meta.model_dump_json()))
        for computed in listed(out, f"{KEPT}-*.npz"):
            remove(computed)
        return meta


@dataclass(frozen=True)
class Texts:
    """Where captions are (see `list_captioned`), and who gives their features: files, or a T5 in a folder."""

    captions: str | None
    key: str | None
    features: str | None
    encoder: Path | None
    positions: int

    def of(self, images: str, each: Callable[..., Iterable[Any]] = map) -> Captioning:
        """ConfigError if an image has no caption, or a caption no features."""
        captioned = list_captioned(images, self.captions, self.key, each)
        if self.encoder is not None:
            return Captioning(captioned, T5Features(self.encoder, self.positions), self.positions)
        assert self.features is not None
        return Captioning(captioned, FeatureFiles(self.features, captioned.captions), self.positions)


def cut_into_parts(count: int, size: int) -> list[np.ndarray]:
    return [np.arange(start, min(start + size, count)) for start in range(0, count, size)]


def tokens_an_image(tokenizer: Tokenizer, size: int) -> int:
    """ConfigError if the tokenizer cannot take such images, or its codes do not fit."""
    if tokenizer.config.codebook_size > 2**16:
        raise ConfigError(f"a codebook of {tokenizer.config.codebook_size} does not fit into 16 bits")
    try:
        return tokenizer.config.length(size)
    except ValueError as error:
        raise ConfigError(f"--image-size: {error}") from None


def token_meta(tokenizer: Tokenizer, size: int, names: Sequence[str], class_names: Sequence[str]) -> TokenMeta:
    """What names a token set."""
    return TokenMeta(
        tokenizer=digest_of_weights(tokenizer),
        codebook_size=tokenizer.config.codebook_size,
        length=tokens_an_image(tokenizer, size),
        crops=len(names),
        image_size=size,
        augmentations=tuple(names),
        class_names=tuple(class_names),
    )


def plan_of(source: str, contents: str, meta: TokenMeta, part_images: int) -> Mapping[str, object]:
    """What must be the same for a run to go on in a folder."""
    return {"images": source, CONTENTS: contents, "part_images": part_images, **meta.model_dump(mode="json")}


def tokenize(
    listing: Listing, family: str, tokenizer: Path, size: int, augmentations: Sequence[str], out: Path,
    part_images: int, limit: int, progress: Progress, allow_empty: bool = False, captioning: Captioning | None = None,
) -> str:  # fmt: skip
    """Make the token set of a collection, of classes or, `captioning`, of captions; returns its digest.

    ConfigError if more than `limit` images cannot be read, none can, or, unless `allow_empty`, none of a class.
    """
    crops = crops_of(augmentations, size)
    meta = token_meta(load_tokenizer(family, tokenizer), size, [crop.name for crop in crops], listing.class_names)
    owner, plan = owner_of("family", family), dict(plan_of(listing.digest, contents_of(listing), meta, part_images))
    if owner:
        plan["plug-in"] = owner.digest  # another version of its code encodes otherwise
    if finished := claim(out, {**plan, **captioning.plan} if captioning else plan):
        return finished
    if captioning is not None:
        meta = meta.model_copy(update={"captions": captioning.made(out)})
    squares = list(dict.fromkeys(crop.square for crop in crops))
    plugins = [owner.module] if owner else []
    arguments = {
        "plugins": plugins, "family": family, "tokenizer": to_uri(tokenizer.absolute()), "crops": crops, "size": size
    }  # fmt: skip
    return write_stream(
        out,
        cut_into_parts(len(listing.entries), part_images),
        lambda parts: stream_parts(listing, parts, ReadImages(listing.where, squares), Encode, arguments),
        meta,
        limit,
        progress,
        lambda parts: count_images(out, meta, parts, listing.labels, dict(listing.passed_over), allow_empty),
    )
