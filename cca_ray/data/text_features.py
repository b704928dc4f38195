"""Where the features of captions come from: files that the user's text encoder left, or a T5 that runs here."""

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import ray
import torch
from pyarrow import fs
from ray.util import ActorPool

from cca_ray.cluster.device import local_device
from cca_ray.data.captioned import Caption, more
from cca_ray.data.contents import READERS, digest_of_some
from cca_ray.data.image_files import open_files
from cca_ray.errors import ConfigError, reading
from cca_ray.storage.arrays import read_array, read_arrays
from cca_ray.storage.files import atomically, fingerprint
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path, to_uri

ENDINGS = (".npy", ".npz")
FEATURES, MASKS = ("features", "caption_feature"), ("mask", "attention_mask")  # in a .npz; the latter are PixArt's
AT_A_TIME = 256  # captions
KEPT = "text"  # begins the names of files of features that were computed


class FeatureSource(Protocol):
    """Gives the features of captions. `name`: whose they are, in words; `digest`: which they are."""

    name: str
    digest: str

    def features(self, captions: Sequence[Caption], kept: Path) -> Iterator[np.ndarray]:
        """[words, C] of each, in order. `kept`: a folder for what is computed, until all are there."""


class FeatureFiles:
    """A file a caption: see `features_of`. ConfigError if one is not there, or would be that of two."""

    name = "files"

    def __init__(self, where: str, captions: Sequence[Caption]):
        self.filesystem, root = open_files(where)
        if self.filesystem.get_file_info(root).type != fs.FileType.Directory:
            raise ConfigError(f"--text-features {where}: no such folder")
        refuse_shared_places(root, captions)
        self.paths: dict[str, str] = {}
        sizes: dict[str, int] = {}
        for ending in ENDINGS:
            places = [c.place for c in captions if c.place not in self.paths]
            for place, info in zip(places, self.filesystem.get_file_info([f"{root}/{p}{ending}" for p in places]),
                                   strict=True):  # fmt: skip
                if info.is_file:
                    self.paths[place], sizes[place] = info.path, info.size
        if missing := [c for c in captions if c.place not in self.paths]:
            raise ConfigError(
                f"{root}/{missing[0].place}.npy: no such file, nor one that ends in .npz; it would be the features of "
                f"the caption {missing[0].text[:40]!r}{more(missing)}"
            )
        some = digest_of_some(self.content, sorted(self.paths.values()))
        self.digest = hashlib.sha256(json.dumps([sorted(sizes.items()), some]).encode()).hexdigest()[:16]

    def content(self, path: str) -> bytes:
        with self.filesystem.open_input_file(path) as file:
            return bytes(file.read())

    def features(self, captions: Sequence[Caption], kept: Path) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(READERS) as pool:
            for start in range(0, len(captions), AT_A_TIME):
                yield from pool.map(self.read, captions[start : start + AT_A_TIME])

    def read(self, caption: Caption) -> np.ndarray:
        path = self.paths[caption.place]
        with reading(path, "not the features of a caption"):
            return features_of(io.BytesIO(self.content(path)), path)


def refuse_shared_places(root: str, captions: Sequence[Caption]) -> None:
    """ConfigError if two texts have their features in one place, as those of `a.jpg` and `a.png`."""
    by_place: dict[str, Caption] = {}
    for caption in captions:
        if (other := by_place.setdefault(caption.place, caption)) is not caption:
            raise ConfigError(
                f"{root}/{caption.place}.npy: would be the features of two captions, {other.text[:40]!r} and "
                f"{caption.text[:40]!r}, for their images have one name without its ending; rename one"
            )


def features_of(content: io.BytesIO, path: str) -> np.ndarray:
    """[words, C]. ValueError if there are none, or what is no number.

    A `.npy` is [1, words, C], as LlamaGen's script leaves them of a T5.  A `.npz` has `features` [T, C] and a `mask`
    [T] that says where words are, or as PixArt's script names them, `caption_feature` and `attention_mask`; either may
    have a first axis of one.
    """
    if path.endswith(".npy"):
        array = read_array(content)
        if array.ndim != 3 or len(array) != 1:
            raise ValueError(f"{array.dtype} {list(array.shape)}; expected features [1, words, width]")
        array = array[0]
    else:
        arrays = read_arrays(content, FEATURES + MASKS)
        padded, mask = (next((arrays[n] for n in names if n in arrays), None) for names in (FEATURES, MASKS))
        if padded is None or mask is None:
            raise ValueError(f"holds {', '.join(arrays) or 'neither'}; expected 'features' and 'mask'")
        padded, mask = (a[0] if a.ndim == rank + 1 and len(a) == 1 else a for a, rank in ((padded, 2), (mask, 1)))
        if padded.ndim != 2 or mask.shape != padded.shape[:1]:
            raise ValueError(f"features {list(padded.shape)} and mask {list(mask.shape)}; expected [T, width] and [T]")
        array = padded[mask.astype(bool)]
    if array.dtype.kind != "f" or not array.size:
        raise ValueError(f"{array.dtype} {list(array.shape)}; expected at least one word, in floating point")
    if not np.isfinite(array).all():
        raise ValueError("holds what is no number")
    return array if array.dtype == np.float16 else array.astype(np.float32)


class T5:
    """Runs the encoder of a T5, one caption at a time: its features do not depend on which others there are.

    `folder`: as `transformers` keeps it. In bfloat16 on a GPU, as LlamaGen's script.
    """

    def __init__(self, folder: str, positions: int):
        self.folder, self.positions = folder, positions
        self.loaded: tuple[Any, Any, torch.device] | None = None

    def load(self) -> tuple[Any, Any, torch.device]:
        """Nothing is downloaded, and no code of the folder runs."""
        from transformers import AutoTokenizer, T5EncoderModel

        pull(folder := local_path(self.folder))
        device = local_device()
        kind = torch.bfloat16 if device.type == "cuda" else torch.float32
        with reading(folder, "not a T5 that transformers reads"):
            words = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = T5EncoderModel.from_pretrained(folder, local_files_only=True, dtype=kind)
        return words, model.to(device).eval(), device

    def features(self, texts: Sequence[str]) -> list[np.ndarray]:
        """[words, C] float32 of each, the end-of-text word included."""
        self.loaded = words, model, device = self.loaded or self.load()
        found = []
        for text in texts:
            given = words(text.lower(), max_length=self.positions, truncation=True, return_tensors="pt").to(device)
            with torch.inference_mode():
                out = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"])
            found.append(out["last_hidden_state"][0].float().cpu().numpy())
        return found


class T5Features:
    """Of a T5 in a folder, which runs on all GPUs of the Ray cluster, or on a CPU. ConfigError if it cannot."""

    def __init__(self, folder: Path, positions: int):
        if find_spec("transformers") is None:
            raise ConfigError(
                "--text-encoder needs the package transformers: pip install 'cca_ray[text]', or give --text-features"
            )
        if not (folder / "config.json").is_file():
            raise ConfigError(f"--text-encoder {folder}: no T5 here; expected a folder with config.json and weights")
        self.folder, self.positions, self.name = folder, positions, folder.name
        files = [[p.name, fingerprint(p)] for p in sorted(folder.iterdir()) if not p.name.startswith(".")]
        self.digest = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]

    def features(self, captions: Sequence[Caption], kept: Path) -> Iterator[np.ndarray]:
        """Computed once: a run that was cut short goes on at the first file that is missing among the `kept`."""
        texts = [caption.text for caption in captions]
        parts = {kept / f"{KEPT}-{n:05d}.npz": texts[start : start + AT_A_TIME]
                 for n, start in enumerate(range(0, len(texts), AT_A_TIME))}  # fmt: skip
        wanted = {path: part for path, part in parts.items() if not path.exists()}
        if wanted:
            cards = int(ray.cluster_resources().get("GPU", 0))
            actor = ray.remote(T5).options(num_gpus=1 if cards else 0)
            pool = ActorPool([actor.remote(to_uri(self.folder.absolute()), self.positions) for _ in range(cards or 1)])
            made = pool.map(lambda one, part: one.features.remote(part), list(wanted.values()))
            for path, arrays in zip(wanted, made, strict=True):
                save(path, arrays)
        for path in parts:
            yield from read_arrays(path, ("",)).values()


def save(path: Path, arrays: Sequence[np.ndarray]) -> None:
    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, *arrays)

    atomically(path, write)
