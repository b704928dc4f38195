"""Bases of later sizes, made by other processes meanwhile."""

from pathlib import Path

import pytest
import ray
from ray.exceptions import RayError

from cca_ray.config import StudyConfig
from cca_ray.inputs import find_space
from cca_ray.space_file import load_config
from cca_ray.training.bases_ahead import bases_ahead
from cca_ray.training.small_base import is_made, resolve


def quick(space: str, *settings: str) -> StudyConfig:
    few = [f"pretrain.{name}_epochs=1" for name in ("tokenizer", "feature")]
    return load_config(find_space(space), [*few, "pretrain.epochs=1", "pretrain.variants=1", *settings])


def weights(config: StudyConfig, storage: Path) -> bytes:
    def not_made_here(what: str, done: int, total: int) -> None:
        pytest.fail(f"{what} is made again")

    return Path(resolve(config, storage, not_made_here).base.checkpoint).read_bytes()


def test_what_is_missing_is_made_and_is_what_this_process_makes(tmp_path: Path, ray_here: None):
    first, second = quick("digits_s"), quick("digits_m")
    here, there = tmp_path / "here", tmp_path / "there"
    for config in (first, second):
        resolve(config, here, lambda what, done, total: None)
    resolve(first, there, lambda what, done, total: None)
    made = bases_ahead([first, second], there)
    assert list(made) == ["digits_m"]
    ray.get(list(made.values()))
    assert is_made(second, there)
    assert weights(second, there) == weights(second, here)
    assert bases_ahead([first, second], there) == {}


def test_one_that_cannot_be_made_fails_alone(tmp_path: Path, ray_here: None):
    storage = tmp_path / "storage"
    storage.write_text("a file where a folder is wanted")
    (failed,) = bases_ahead([quick("digits_s")], storage).values()
    with pytest.raises(RayError):
        ray.get(failed)
