"""Files of our own that a disk has damaged: what reads them says which file it is, or does without it.

Each is cut and has bytes flipped, in a hundred ways. What is found may then be another value only where nothing in the
file could tell.
"""

import errno
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.cluster.sign import Sign
from cca_ray.contracts import Score
from cca_ray.data.encode import claim
from cca_ray.data.official_npy import load_npy
from cca_ray.data.tokens import MANIFEST, TokenMeta, read_footer, read_labels, read_token_set, write_token_set
from cca_ray.errors import ConfigError, reading
from cca_ray.evaluation.npz import open_images
from cca_ray.evaluation.reference import Reference
from cca_ray.evaluation.scoring import Scored
from cca_ray.models.files import read_checkpoint
from cca_ray.prepare import counts_of
from cca_ray.reporting.results import read_summary
from cca_ray.terminal.snapshot import STATUS, DriverStatus, read_driver_status
from cca_ray.training.out_of_memory import Halved, read_halved
from cca_ray.training.reference_logps import Part, read_part, write_part
from cca_ray.training.tasks import MadeOf, keep_score, kept_score, scored_weights
from tests.studies import make_study

META = TokenMeta(
    tokenizer="t", codebook_size=32, length=4, crops=1, image_size=8, augmentations=("centre",), class_names=("a", "b")
)
IMAGES = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 3), dtype=np.uint8)
OURS = MadeOf("w", "s")
Made = tuple[Path, Callable[[], object]]


def token_set(folder: Path) -> Path:
    rng = np.random.default_rng(0)
    write_token_set(folder, [(np.arange(6) % 2, rng.integers(0, 32, (6, 1, 4)))], META)
    return folder


def a_score(folder: Path) -> Path:
    path = folder / "search-0001-p.npz"
    score = Score(values={"fid": 1.5, "kid": 0.25}, without={"fid": (1.0, 2.0), "kid": (0.1, 0.2)})
    keep_score(path, Scored(score, IMAGES), OURS)
    return path


def packed(folder: Path) -> Path:
    """As version 0.1.0 could have left it, and as anything else that packs its arrays."""
    np.savez_compressed(folder / "search-0001-p.npz", **dict(np.load(a_score(folder))))
    return folder / "search-0001-p.npz"


def kept_scores(folder: Path) -> Made:
    path = packed(folder)
    return path, lambda: (kept_score(path, OURS, folder / "gone"), scored_weights(folder, "search-0001", "s"))


def score(folder: Path) -> Made:
    path = a_score(folder)
    return path, lambda: (kept_score(path, OURS, folder / "gone"), scored_weights(folder, "search-0001", "s"))


def statistics(folder: Path) -> Made:
    path = folder / "reference.npz"
    features = np.random.default_rng(0).normal(size=(20, 3))
    np.savez_compressed(path, mu=features.mean(0), sigma=np.cov(features, rowvar=False), features=features)
    return path, lambda: Reference.load(path)


def images(folder: Path) -> Made:
    np.savez_compressed(folder / "images.npz", IMAGES)
    return folder / "images.npz", lambda: list(open_images(folder / "images.npz")[1])


def codes(folder: Path) -> Made:
    np.save(folder / "0.npy", np.arange(64).reshape(1, 4, 16))
    return folder / "0.npy", lambda: load_npy(folder / "0.npy")


def table(folder: Path) -> Made:
    part = Part(0, 0, 50)
    write_part(folder, part, "key", *np.random.default_rng(0).normal(size=(2, 50)).astype(np.float32))
    path = part.path(folder)
    return path, lambda: read_part(path, "key", 50)


def tokens(folder: Path) -> Made:
    path = token_set(folder) / "part-00000.parquet"
    return path, lambda: read_token_set(folder)


def part(folder: Path) -> Made:
    path = token_set(folder) / "part-00000.parquet"
    return path, lambda: (read_footer(path), read_labels(path))


def manifest(folder: Path) -> Made:
    path = token_set(folder) / MANIFEST
    return path, lambda: (read_token_set(folder), counts_of(folder))


def plan(folder: Path) -> Made:
    claim(folder / "t", {"images": "x"})
    token_set(folder / "t")
    return folder / "t" / "plan.json", lambda: claim(folder / "t", {"images": "x"})


def finished(folder: Path) -> Made:
    claim(folder / "t", {"images": "x"})
    return token_set(folder / "t") / MANIFEST, lambda: claim(folder / "t", {"images": "x"})


def weights(folder: Path) -> Made:
    torch.save({"model": {"w": torch.randn(4, 4)}, "config": {"dim": 4}, "steps": 3}, folder / "w.pt")
    return folder / "w.pt", lambda: read_checkpoint(folder / "w.pt")


def summary(folder: Path) -> Made:
    path = make_study(folder / "hand", completed=2) / "summary.json"
    return path, lambda: read_summary(path)


def halved(folder: Path) -> Made:
    path = folder / "micro_batch"
    path.write_text(Halved(micro_batch=4, halvings=1).model_dump_json())
    return path, lambda: read_halved(path)


def status(folder: Path) -> Made:
    DriverStatus.of_this_process("λ", ("digits_s",), folder / "log.txt").write(folder)
    return folder / STATUS, lambda: read_driver_status(folder)


def sign(folder: Path) -> Made:
    (folder / "alive-0").write_text(json.dumps({"pid": 1, "started": "2", "node": "abc"}))
    return folder / "alive-0", lambda: Sign.read(folder / "alive-0")


KINDS = [kept_scores, score, statistics, images, codes, table, tokens, part, manifest, plan, finished, weights, summary,
         halved, status, sign]  # fmt: skip


DONE_WITHOUT = [kept_scores, score, status, sign]


def damages(whole: bytes, count: int = 100) -> list[bytes]:
    """Cut short at random, or with some bytes changed: of which the first and last ones tell what all others are."""
    rng, made = np.random.default_rng(0), []
    for number in range(count):
        if number % 4 == 0:
            made.append(whole[: rng.integers(0, len(whole))])
            continue
        content = bytearray(whole)
        start, stop = {1: (0, len(whole)), 2: (0, min(len(whole), 300)), 3: (max(0, len(whole) - 300), len(whole))}[
            number % 4
        ]
        for place in rng.integers(start, stop, rng.integers(1, 4)):
            content[place] = rng.integers(0, 256)
        made.append(bytes(content))
    return made


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=[kind.__name__ for kind in KINDS])
def test_a_damaged_file_is_named_or_done_without(kind: Callable[[Path], Made], tmp_path: Path):
    path, read = kind(tmp_path)
    read()
    whole, refusals = path.read_bytes(), list[str]()
    for content in damages(whole):
        path.write_bytes(content)
        try:
            read()
        except ValueError as error:
            refusals.append(str(error))
    assert [line for line in refusals if str(path.parent) not in line or "\n" in line] == []
    assert bool(refusals) == (kind not in DONE_WITHOUT)
    path.write_bytes(whole)
    read()


def test_a_fault_of_the_storage_is_not_taken_for_damage(tmp_path: Path):
    with pytest.raises(IsADirectoryError), reading(tmp_path, "damaged"):
        tmp_path.read_bytes()
    with pytest.raises(OSError, match="disk"), reading(tmp_path, "damaged"):
        raise OSError(errno.EIO, "the disk fails")
    with pytest.raises(ConfigError, match=r"gone: no such file$"), reading(tmp_path / "gone", "damaged"):
        (tmp_path / "gone").read_bytes()
