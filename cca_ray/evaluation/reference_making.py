"""A collection of images -> reference statistics, by Ray Data on all nodes."""

from pathlib import Path

import numpy as np
import torch

from cca_ray.cluster.device import local_device
from cca_ray.data.encode import (
    Columns,
    Progress,
    ReadImages,
    Worker,
    refuse_more_than,
    stream_parts,
    without_pixels,
)
from cca_ray.data.images import Square
from cca_ray.data.listing import Listing
from cca_ray.data.token_set_making import cut_into_parts
from cca_ray.data.tokens import UNREADABLE, write_unreadable
from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import Extractor, extract, load_extractor
from cca_ray.evaluation.reference import Moments, Reference, evenly_spaced
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path, to_uri


class ExtractFeatures(Worker):
    """Holds a feature network: the centre squares -> pooled [B, D] and, if it has them, spatial [B, S]."""

    def __init__(self, features: str, size: int, trust_torchscript: bool):
        pull(path := local_path(features))
        self.extractor: Extractor = load_extractor(path, trust_torchscript).to(local_device())
        self.square = Square("adm", size)

    def __call__(self, rows: Columns) -> Columns:
        images = torch.from_numpy(rows[self.square.key].copy()).to(local_device())
        found = extract(self.extractor, images)
        spatial = {"spatial": found.spatial.cpu().numpy()} if found.spatial is not None else {}
        return {**without_pixels(rows), "pooled": found.pooled.cpu().numpy(), **spatial}


def make_reference(
    listing: Listing, features: Path, size: int, out: Path, limit: int, progress: Progress,
    trust_torchscript: bool = False,
) -> Reference:  # fmt: skip
    """Statistics of a collection's images, centre-cropped; the same to the last digit on any number of nodes."""
    parts = cut_into_parts(len(listing.entries), 2048)
    unreadable: list[str] = []
    listed = out.with_name(f"{out.name}.{UNREADABLE}")
    arguments = {
        "features": to_uri(features.absolute()),
        "size": size,
        "trust_torchscript": trust_torchscript,
    }
    chosen = evenly_spaced(len(listing.entries))  # whose features are kept
    waiting: dict[int, dict[str, Moments]] = {}
    merged: dict[str, Moments] = {}
    kept: dict[int, np.ndarray] = {}  # by part
    done = following = 0
    progress(0, len(listing.entries), 0)
    stream = stream_parts(listing, parts, ReadImages(listing.where, [Square("adm", size)]), ExtractFeatures, arguments)
    for number, rows in stream:
        good = rows["problem"] == ""
        unreadable += [str(problem) for problem in rows["problem"] if problem]
        done += len(good)
        refuse_more_than(limit, unreadable, listed)
        kinds = [kind for kind in ("pooled", "spatial") if kind in rows and good.any()]
        waiting[number] = {kind: Moments.of(rows[kind][good]) for kind in kinds}
        if "pooled" in kinds:
            kept[number] = rows["pooled"][good & np.isin(rows["index"], chosen)]
        while following in waiting:  # in order, whoever was first
            for kind, moments in waiting.pop(following).items():
                merged[kind] = merged[kind].merge(moments) if kind in merged else moments
            following += 1
        progress(done, len(listing.entries), len(unreadable))
    write_unreadable(listed, unreadable)
    if "pooled" not in merged or merged["pooled"].n < 2:
        raise ConfigError(f"{listing.where}: expected at least 2 readable images")
    some = np.concatenate([kept[number] for number in sorted(kept)])
    reference = Reference.of(merged["pooled"], merged.get("spatial"), some if len(some) > 1 else None, size)

    def write(path: Path) -> None:
        with path.open("wb") as file:
            reference.save(file)

    atomically(out, write)
    return reference
