"""Codes that the official extraction left, one int64 `.npy` an image -> a token set."""

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np

from cca_ray.data.contents import READERS, digest_of_some
from cca_ray.data.encode import Columns, Progress, claim, write_stream
from cca_ray.data.token_set_making import cut_into_parts, plan_of, token_meta
from cca_ray.data.tokens import TokenMeta
from cca_ray.errors import ConfigError, first_line
from cca_ray.models.official import load_tokenizer
from cca_ray.storage.arrays import read_array

MOST_CODES = 2**24  # bytes of an image's codes; ten crops of 1,024 are a two-hundredth
NAMES = {1: ["centre"], 2: ["flips/0", "flips/1"], 10: [f"ten-crop/{i}" for i in range(10)]}  # of official codes


def npy_folders(root: Path) -> tuple[Path, Path]:
    """The official extraction's folders of codes and labels."""
    codes, labels = sorted(root.glob("*_codes")), sorted(root.glob("*_labels"))
    if len(codes) != 1 or len(labels) != 1:
        raise ConfigError(
            f"{root}: expected one folder *_codes and one *_labels, as the official extraction leaves them"
        )
    return codes[0], labels[0]


def load_npy(path: Path) -> np.ndarray:
    """ConfigError, naming the file, if it holds no integers."""
    try:
        with path.open("rb") as file:
            content = read_array(file, MOST_CODES)
    except Exception as error:  # see `errors.reading`; here one that is gone is no better than a damaged one
        raise ConfigError(f"{path}: not readable ({first_line(error)})") from None
    if not np.issubdtype(content.dtype, np.integer) or not content.ndim or not content.size:
        raise ConfigError(f"{path}: {content.dtype} {list(content.shape)}; expected an array of integers")
    return content


def read_npy(roots: Sequence[tuple[Path, Path]], meta: TokenMeta, index: int) -> tuple[int, np.ndarray]:
    """Label and tokens [crops, length] of one image. ConfigError, naming the file."""
    number, of_roots = f"{index}.npy", [load_npy(codes / f"{index}.npy") for codes, _ in roots]
    labels = sorted({int(load_npy(folder / number).flat[0]) for _, folder in roots})
    path, folder = roots[0][0] / number, roots[0][1]
    shapes = [list(content.shape) for content in of_roots]
    if any(shape[-1] != meta.length for shape in shapes) or sum(math.prod(s[:-1]) for s in shapes) != meta.crops:
        raise ConfigError(
            f"{path}: {' and '.join(map(str, shapes))}; expected {meta.crops} crops of {meta.length} codes in all: "
            f"{meta.image_size} pixels, as many crops as image 0 has"
        )
    tokens = np.concatenate([content.reshape(-1, meta.length) for content in of_roots])
    if tokens.min() < 0 or tokens.max() >= meta.codebook_size:
        raise ConfigError(f"{path}: code {tokens.max()} is not in the codebook of {meta.codebook_size}")
    if len(labels) != 1 or not 0 <= labels[0] < len(meta.class_names):
        raise ConfigError(f"{folder / number}: label {labels}; expected one below {len(meta.class_names)}")
    return labels[0], tokens.astype(np.uint16)


def numbered(folder: Path) -> int:
    """How many files 0.npy, 1.npy, ... there are. ConfigError if there are none, or gaps."""
    numbers = {int(path.stem) for path in folder.glob("*.npy") if re.fullmatch(r"\d+", path.stem)}
    if not numbers or numbers != set(range(len(numbers))):
        raise ConfigError(f"{folder}: expected 0.npy, 1.npy, ... without gaps; found {len(numbers)}")
    return len(numbers)


def content(path: Path) -> bytes:
    """None of a file that cannot be read, which is told later."""
    try:
        return path.read_bytes()
    except OSError:
        return b""


def import_npy(
    roots: Sequence[Path], family: str, tokenizer: Path, size: int, classes: Sequence[str] | None, out: Path,
    part_images: int, progress: Progress,
) -> str:  # fmt: skip
    """Make a token set of the official code's files, one int64 `.npy` an image; crops of several roots are joined."""
    pairs = [npy_folders(root.absolute()) for root in roots]
    counts = [numbered(codes) for codes, _ in pairs]
    if len(set(counts)) > 1:
        raise ConfigError(f"--npy: the folders hold {' and '.join(map(str, counts))} images; expected the same")
    names: list[str] = []
    for codes, _ in pairs:
        crops = math.prod(load_npy(codes / "0.npy").shape[:-1])
        names += [f"{codes.parent.name}/{name}" for name in NAMES.get(crops, [f"crop/{i}" for i in range(crops)])]
    meta = token_meta(load_tokenizer(family, tokenizer), size, names, classes or [str(i) for i in range(1000)])
    states = [[str(folder), folder.stat().st_mtime_ns] for pair in pairs for folder in pair]
    source = hashlib.sha256(json.dumps([states, counts]).encode()).hexdigest()[:16]
    files = [folder / f"{i}.npy" for pair in pairs for folder in pair for i in range(counts[0])]
    if finished := claim(out, plan_of(source, digest_of_some(content, files), meta, part_images)):
        return finished

    def rows_of(parts: Sequence[np.ndarray]) -> Iterator[tuple[int, Columns]]:
        with ThreadPoolExecutor(READERS) as pool:
            for number, index in enumerate(parts):
                labels, tokens = zip(*pool.map(partial(read_npy, pairs, meta), index), strict=True)
                problem = np.full(len(index), "")
                yield (
                    number,
                    {"index": index, "label": np.array(labels), "tokens": np.stack(tokens), "problem": problem},
                )

    return write_stream(out, cut_into_parts(counts[0], part_images), rows_of, meta, 0, progress)
