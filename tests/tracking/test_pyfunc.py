"""What MLflow loads as a study's winner, without MLflow: `search/test_mlflow_pages.py` has the way through a store."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cca_ray.config import ResolvedStudy
from cca_ray.evaluation.scoring import load_base, load_tokens, protocol_of, sample_shards, scoring_of
from cca_ray.models.parallel import Group
from cca_ray.tracking.pyfunc import SETTINGS, Champion, Settings
from tests.conftest import MakeStudy


def champion_of(config: ResolvedStudy, folder: Path) -> Champion:
    """The base of a study, packed."""
    for part, path in (("model", config.base.checkpoint), ("tokenizer", config.base.tokenizer)):
        (folder / part).mkdir(parents=True)
        shutil.copy(path, folder / part)
    meta = load_tokens(config.data.tokens).meta
    (folder / SETTINGS).write_text(Settings.of(config, meta).model_dump_json())
    return Champion(folder)


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
    assert (champion.predict({"label": [7, 3]}, {"seed": 1})[0] != seven).any()


@pytest.mark.parametrize("labels", [[], [10], [-1, 3]])
def test_what_is_no_label_is_one_line(make_study: MakeStudy, tmp_path: Path, labels: list[Any]):
    with pytest.raises(ValueError, match="label: expected at least one, each from 0 to 9"):
        champion_of(make_study(), tmp_path).predict({"label": labels})
