"""What MLflow loads as a study's winner, without MLflow: `search/test_mlflow_pages.py` has the way through a store."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cca_ray.config import ResolvedStudy
from cca_ray.errors import ConfigError
from cca_ray.evaluation.scoring import load_base, load_tokens, protocol_of, sample_shards, scoring_of
from cca_ray.models.parallel import Group
from cca_ray.tracking.pyfunc import SETTINGS, Champion, Settings, champion_in, packed_champion, write_champion
from tests.conftest import MakeStudy


def champion_of(config: ResolvedStudy, folder: Path) -> Champion:
    """The base of a study, packed."""
    for part, path in (("model", config.base.checkpoint), ("tokenizer", config.base.tokenizer)):
        (folder / part).mkdir(parents=True)
        shutil.copy(path, folder / part)
    meta = load_tokens(config.data.tokens).meta
    (folder / SETTINGS).write_text(Settings.of(config, meta).model_dump_json())
    return packed_champion(folder)


@pytest.mark.parametrize("family", ["llamagen", "var", "rar"])
def test_it_samples_as_the_study_does(make_study: MakeStudy, tmp_path: Path, family: str):
    config = make_study(family=family, score={"top_k": 5, "top_p": 0.9, "temperature": 0.8, "last_temperature": 0.3})
    scoring = scoring_of(config, Group().device)
    protocol = protocol_of(config, scoring, 12, seed=3)
    ((_, images, labels),) = sample_shards(load_base(config), scoring, protocol, Group())
    found = champion_of(config, tmp_path).predict({"label": labels.tolist()}, {"seed": 3})
    assert (found.shape, found.dtype) == ((12, 8, 8, 3), np.uint8)
    np.testing.assert_array_equal(found, images.cpu().numpy())


def test_an_image_depends_on_its_label_and_its_place_only(make_study: MakeStudy, tmp_path: Path):
    champion = champion_of(make_study(), tmp_path)
    seven, three = champion.predict({"label": [7, 3]})
    assert (champion.predict({"label": np.array([7], dtype=np.int32)}) == seven).all()
    assert (champion.predict({"label": [1, 3, 5]})[1] == three).all()
    assert (champion.predict({"label": [7.0]}) == seven).all()
    assert (champion.predict({"label": [7, 3]}, {"seed": 1})[0] != seven).any()


NO_LABELS = [[], [10], [-1, 3], [1.9], [1.9, True], [True, False], [float("nan")], [2**70], ["1"], [None]]


@pytest.mark.parametrize("labels", NO_LABELS)
def test_what_is_no_label_is_one_line(make_study: MakeStudy, tmp_path: Path, labels: list[Any]):
    with pytest.raises(ValueError, match="label: expected at least one, each a whole number from 0 to 9"):
        champion_of(make_study(), tmp_path).predict({"label": labels})


def test_a_studys_folder_has_its_champion_wherever_the_storage_moves(make_study: MakeStudy, tmp_path: Path):
    config, storage = make_study(), tmp_path / "runs"
    (folder := storage / "study" / "tiny").mkdir(parents=True)
    tokenizer = storage / "bases" / "tokenizer.pt"
    tokenizer.parent.mkdir()
    shutil.copy(config.base.tokenizer, tokenizer)
    shutil.copy(config.base.checkpoint, folder / "winner.pt")
    write_champion(folder, storage, Settings.of(config, load_tokens(config.data.tokens).meta), tokenizer)
    expected = champion_of(config, tmp_path / "packed").sample([3, 1], seed=2)
    moved = storage.rename(tmp_path / "moved")
    champion = champion_in(moved / "study" / "tiny", moved)
    np.testing.assert_array_equal(champion.sample([3, 1], seed=2), expected)
    assert champion.classes == 10
    (moved / "bases" / "tokenizer.pt").unlink()
    with pytest.raises(ConfigError, match=r"tokenizer\.pt: no such file"):
        champion_in(moved / "study" / "tiny", moved)
    (moved / "study" / "tiny" / "champion.json").write_text("{")
    with pytest.raises(ConfigError, match=r"champion\.json: does not say how to sample"):
        champion_in(moved / "study" / "tiny", moved)
