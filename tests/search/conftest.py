"""What the tests of the search share."""

from pathlib import Path
from typing import Any

import optuna
import pytest

from cca_ray.config import StudyConfig
from cca_ray.space_file import parse
from cca_ray.tracking.tracker import Tracker
from tests.conftest import MakeStudy, tiny_space


@pytest.fixture
def storage(tmp_path: Path) -> optuna.storages.RDBStorage:
    return optuna.storages.RDBStorage(f"sqlite:///{tmp_path / 'study.db'}")


@pytest.fixture
def tracker(tmp_path: Path) -> Tracker:
    return Tracker(f"sqlite:///{tmp_path / 'mlflow.db'}", "test", tmp_path / "artifacts")


@pytest.fixture
def make_config() -> MakeStudy:
    """The tiny study's configuration, without a base: nothing is trained."""

    def make(**sections: Any) -> StudyConfig:
        content = tiny_space()
        for key, value in sections.items():
            content[key] = {**content.get(key, {}), **value}
        return parse(content, "tiny", "tiny.yaml")

    return make
