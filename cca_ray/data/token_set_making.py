"""A collection of images -> a token set, by Ray Data on all nodes."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cca_ray.data.encode import Encode, Progress, ReadImages, claim, stream_parts, write_stream
from cca_ray.data.images import crops_of
from cca_ray.data.listing import Listing
from cca_ray.data.tokens import TokenMeta, count_images
from cca_ray.errors import ConfigError
from cca_ray.models.base import Tokenizer
from cca_ray.models.files import digest_of_weights
from cca_ray.models.official import load_tokenizer
from cca_ray.registry import owner_of
from cca_ray.storage.uris import to_uri


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


def plan_of(source: str, meta: TokenMeta, part_images: int) -> Mapping[str, object]:
    """What must be the same for a run to go on in a folder."""
    return {"images": source, "part_images": part_images, **meta.model_dump(mode="json")}


def tokenize(
    listing: Listing, family: str, tokenizer: Path, size: int, augmentations: Sequence[str], out: Path,
    part_images: int, limit: int, progress: Progress, allow_empty: bool = False,
) -> str:  # fmt: skip
    """Make the token set of a collection; returns its digest.

    ConfigError if more than `limit` images cannot be read, none can, or, unless `allow_empty`, none of a class.
    """
    crops = crops_of(augmentations, size)
    meta = token_meta(load_tokenizer(family, tokenizer), size, [crop.name for crop in crops], listing.class_names)
    if finished := claim(out, plan_of(listing.digest, meta, part_images)):
        return finished
    squares = list(dict.fromkeys(crop.square for crop in crops))
    owner = owner_of("family", family)
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
