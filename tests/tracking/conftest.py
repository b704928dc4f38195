"""What the tests of MLflow share: a server, a picture, trackers and what they say."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cca_ray.tracking.tracker import Tracker
from tests.tracking.servers import empty_mlflow, server, the_server

__all__ = ["server", "the_server"]  # fixtures
Make = Callable[..., Tracker]


@pytest.fixture
def lines() -> list[str]:
    return []


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_mlflow(tmp_path_factory.mktemp("empty") / "mlflow.db")


@pytest.fixture
def make(tmp_path: Path, empty: Path, lines: list[str]) -> Iterator[Make]:
    """Trackers, by default of one database, that are closed in the end."""
    made: list[Tracker] = []
    shutil.copy(empty, tmp_path / "mlflow.db")

    def make(uri: str = f"sqlite:///{tmp_path / 'mlflow.db'}", journal: Path | None = None) -> Tracker:
        made.append(Tracker(uri, f"study {tmp_path.name}", tmp_path / "artifacts", journal, lines.append))
        return made[-1]

    yield make
    for tracker in made:
        tracker.close(0)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8)).save(tmp_path / "grid.png")
    return tmp_path / "grid.png"
