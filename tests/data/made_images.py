"""Images of noise, each known by its seed, and the collections that people keep images in, made of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from cca_ray.data.image_files import read_entry
from cca_ray.data.images import decode
from cca_ray.data.listing import Listing


def picture(seed: int, width: int = 30, height: int = 20) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(folder: Path) -> Path:
    for name, label in (("cat", 0), ("dog", 1)):
        (folder / name).mkdir(parents=True)
        for i in range(3):
            (folder / name / f"{i}.png").write_bytes(png(picture(10 * label + i)))
    (folder / "dog" / "notes.txt").write_text("not an image")
    (folder / ".cache").mkdir()
    return folder


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def write_webdataset(folder: Path) -> Path:
    folder.mkdir()
    for label in (0, 1):
        with tarfile.open(folder / f"shard-{label}.tar", "w") as archive:
            for i in range(3):
                add(archive, f"{label}{i}.png", png(picture(10 * label + i)))
                add(archive, f"{label}{i}.cls", str(label).encode())
    return folder


def write_class_tars(folder: Path) -> Path:
    """ImageNet's own: one tar a class, named by it."""
    folder.mkdir()
    for label, name in enumerate(("cat", "dog")):
        with tarfile.open(folder / f"{name}.tar", "w") as archive:
            for i in range(3):
                add(archive, f"{name}_{i}.png", png(picture(10 * label + i)))
    return folder


def write_tree_tar(folder: Path) -> Path:
    write_tree(folder)
    with tarfile.open(folder.with_suffix(".tar"), "w") as archive:
        archive.add(folder, "train")
    return folder.with_suffix(".tar")


def write_parquet(folder: Path) -> Path:
    """As Hugging Face keeps them."""
    folder.mkdir()
    for label in (0, 1):
        images = [{"bytes": png(picture(10 * label + i)), "path": f"{i}.png"} for i in range(3)]
        pq.write_table(pa.table({"image": images, "label": [label] * 3}), folder / f"{label}.parquet")
    return folder


def pixels(listing: Listing) -> list[np.ndarray]:
    return [np.asarray(decode(read_entry(listing.where, e.path, e.start, e.length))) for e in listing.entries]


def damaged_avif() -> bytes:
    """A file that Pillow's decoder meets with a RuntimeError, as of a photo that was torn on its way."""
    buffer = io.BytesIO()
    picture(0, 200, 160).save(buffer, "AVIF")
    whole, random = buffer.getvalue(), np.random.default_rng(0)
    for _ in range(3000):
        torn = bytearray(whole)
        for place in random.integers(0, len(torn), 3):
            torn[place] = int(random.integers(0, 256))
        try:
            Image.open(io.BytesIO(bytes(torn))).convert("RGB")
        except RuntimeError:
            return bytes(torn)
        except Exception:  # another kind of damage
            continue
    pytest.fail("no damage found that makes Pillow raise a RuntimeError")
