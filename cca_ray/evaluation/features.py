"""Images -> features: the face of the networks behind FID, and how one is found in a file.

The networks themselves: our own small classifier (`small_network`), and Inception in two ports (`inception`).
"""

import hashlib
import io
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from cca_ray.errors import first_line
from cca_ray.models.base import finite
from cca_ray.models.files import digest_of_weights, read_checkpoint
from cca_ray.registry import EXTRACTORS, PluginInfo, owner_of

# Of NVIDIA's inception-2015-12-05.pt: clean-fid, k-diffusion and others check or record the same one.
NVIDIA_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"

Provided = Literal["pooled", "spatial", "probabilities"]
WHERE = (
    "the FID Inception weights: pt_inception-2015-12-05-6726825d.pth of pytorch-fid's GitHub releases, or NVIDIA's "
    "inception-2015-12-05.pt; without them, score with your own network (python -m cca_ray.pretrain), or write "
    "samples (python -m cca_ray.sample --npz) and run the ADM evaluator"
)


@dataclass(frozen=True)
class FeatureArrays:
    """Of some images, on the CPU: pooled [N, D]; class probabilities [N, K] and spatial [N, S] where there are any."""

    pooled: np.ndarray
    probabilities: np.ndarray | None = None
    spatial: np.ndarray | None = None

    def of(self, rows: np.ndarray) -> "FeatureArrays":
        """Those of some of the images: bool [N]."""
        rest = (None if x is None else x[rows] for x in (self.probabilities, self.spatial))
        return FeatureArrays(self.pooled[rows], *rest)


@dataclass(frozen=True)
class Features:
    """Of a batch: pooled [B, D]; class probabilities [B, K] and spatial [B, S], where the network has them."""

    pooled: Tensor
    probabilities: Tensor | None = None
    spatial: Tensor | None = None

    def arrays(self) -> FeatureArrays:
        rest = (None if x is None else x.cpu().numpy() for x in (self.probabilities, self.spatial))
        return FeatureArrays(self.pooled.cpu().numpy(), *rest)

    @staticmethod
    def joined(parts: Sequence["Features"]) -> "Features":
        """Of several batches."""
        probabilities = [part.probabilities for part in parts if part.probabilities is not None]
        spatial = [part.spatial for part in parts if part.spatial is not None]
        rest = (torch.cat(some) if some else None for some in (probabilities, spatial))
        return Features(torch.cat([part.pooled for part in parts]), *rest)


class Extractor(nn.Module):
    """`extractor(images [B, H, W, 3] uint8) -> Features`: what is scored is what would be saved."""

    digest: str  # names its weights; `load_extractor` sets it
    width: int  # D
    provides: frozenset[Provided] = frozenset({"pooled", "probabilities"})  # what its `Features` hold
    at_a_time = 256  # images, as many as memory allows
    image_size: int | None = None  # pixels along a side; None: any, it resizes them itself

    def forward(self, images: Tensor) -> Features:
        raise NotImplementedError


class FeatureFile:
    """A file that may hold a feature network. What of it is read is read once.

    No code in it runs, but for TorchScript: that of NVIDIA's published file, and any other if it is `trusted`.
    """

    def __init__(self, path: Path, trusted: bool = False):
        self.path, self.trusted = path, trusted

    @cached_property
    def program(self) -> torch.jit.ScriptModule | None:
        """Of TorchScript, whose archives hold code; None if it is none.

        ValueError if it is one that cannot be read, or that nobody trusts.
        """
        if not zipfile.is_zipfile(self.path) or not any("/code/" in n for n in zipfile.ZipFile(self.path).namelist()):
            return None
        content = self.path.read_bytes()  # what is compared is what is loaded
        sha256 = hashlib.sha256(content).hexdigest()
        if not self.trusted and sha256 != NVIDIA_SHA256:
            raise ValueError(
                f"{self.path}: is TorchScript, a program that would run on your machine, and not NVIDIA's published "
                f"inception-2015-12-05.pt (its SHA-256 is {sha256}); if you trust whoever made it, say so: "
                "score.trust_torchscript=true, or prepare --trust-torchscript"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript, which NVIDIA's file is
            try:
                return torch.jit.load(io.BytesIO(content), map_location="cpu").eval()
            except RuntimeError as error:
                raise ValueError(f"{self.path}: not a readable program ({first_line(error)})") from None

    @cached_property
    def checkpoint(self) -> tuple[Mapping[str, Tensor], Mapping[str, Any]] | str:
        """State dict and settings, which are whatever its maker wrote; or why there are none."""
        if self.program is not None:
            return f"{self.path}: is a program"
        try:
            return read_checkpoint(self.path)
        except ValueError as error:
            return str(error)

    @property
    def state(self) -> Mapping[str, Tensor]:
        """Tensors by name; none if it is no checkpoint."""
        return {} if isinstance(self.checkpoint, str) else self.checkpoint[0]

    @property
    def settings(self) -> Mapping[str, Any]:
        """The `config` that its maker put beside the tensors, to be checked by whoever recognises the file."""
        return {} if isinstance(self.checkpoint, str) else self.checkpoint[1]


class ExtractorKind(ABC):
    """A kind of feature networks: knows its files by what is in them, never by their names."""

    kind = "extractor"
    name: str

    @abstractmethod
    def recognises(self, file: FeatureFile) -> bool:
        """Whether the file holds one of this kind."""

    @abstractmethod
    def load(self, file: FeatureFile) -> Extractor:
        """The network in a file that was recognised. ValueError, naming the file, if it is not whole."""


@torch.inference_mode()
def extract(extractor: Extractor, images: Tensor, share: int = 1) -> Features:
    """Features of images [B, H, W, 3] uint8, in full float32 on every card: TF32 would make a FID depend on it.

    1/`share` of them at a time that could be.
    """
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        features = Features.joined([extractor(some) for some in images.split(max(1, extractor.at_a_time // share))])
    finite(features.pooled, "the feature network (score.features)")
    return features


def load_extractor(path: str | Path, trust_torchscript: bool = False) -> Extractor:
    """A frozen feature network of any registered kind. ValueError, which says where to get one, if there is none.

    `trust_torchscript`: run any program in the file, not only NVIDIA's.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path}: no such file; score.features must name {WHERE}")
    file = FeatureFile(Path(path), trust_torchscript)
    for name in EXTRACTORS.names():
        kind = EXTRACTORS.get(name)
        if not isinstance(kind, ExtractorKind):
            raise ValueError(f"extractor {name!r}: is not a cca_ray.evaluation.features.ExtractorKind")
        if kind.recognises(file):
            return frozen(kind.load(file), owner_of("extractor", name))
    if file.program is None and isinstance(file.checkpoint, str):
        raise ValueError(file.checkpoint)
    raise ValueError(f"{path}: not a feature network; score.features must name {WHERE}")


def frozen(extractor: Extractor, plugin: PluginInfo | None = None) -> Extractor:
    """As it is used: with its digest, without gradients. That of a plug-in is also known by its code."""
    extractor.digest = digest_of_weights(extractor) + (f" {plugin}" if plugin else "")
    return extractor.requires_grad_(False).eval()
