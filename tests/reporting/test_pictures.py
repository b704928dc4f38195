"""Pictures in the page are as they were if they are small, and small if they were not."""

import base64
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cca_ray.evaluation.sampler import image_grid
from cca_ray.reporting import pictures
from cca_ray.reporting.page import trial_samples
from cca_ray.reporting.pictures import MODEL_WIDTH, TRIAL_WIDTH, Picture, of_model, of_trial
from cca_ray.reporting.results import read_study
from tests.studies import make_study


def drawn(path: Path, side: int, classes: int = 10) -> np.ndarray:
    images = np.random.default_rng(0).integers(0, 200, (80, side, side, 3), dtype=np.uint8)
    grid = image_grid(images, classes)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid).save(path)
    return grid


def shown(picture: Picture | None) -> np.ndarray:
    assert picture is not None
    with Image.open(io.BytesIO(base64.b64decode(picture.data.partition(",")[2]))) as image:
        assert image.size == (picture.width, picture.height)
        return np.asarray(image.convert("RGB"))


def test_small_pictures_of_models_are_as_they_were(tmp_path: Path):
    grid = drawn(tmp_path / "grid.png", 8)
    picture = of_model(tmp_path / "grid.png")
    np.testing.assert_array_equal(shown(picture), grid)
    assert picture is not None
    assert picture.pixels


def test_large_pictures_are_made_small_and_are_not_pixels(tmp_path: Path):
    drawn(tmp_path / "grid.png", 96)
    for picture, width in (
        (of_model(tmp_path / "grid.png"), MODEL_WIDTH),
        (of_trial(tmp_path / "grid.png"), TRIAL_WIDTH),
    ):
        assert picture is not None
        assert picture.data.startswith("data:image/jpeg;")
        assert shown(picture).shape[1] == width
        assert not picture.pixels


@pytest.mark.parametrize(("classes", "rows"), [(10, 5), (2, 1)])
def test_of_a_trial_the_first_whole_rows_are_shown(classes: int, rows: int, tmp_path: Path):
    grid = drawn(tmp_path / "grid.png", 8, classes)
    image = shown(of_trial(tmp_path / "grid.png"))
    assert image.shape == (25 * rows + 1, *grid.shape[1:])
    assert np.abs(image.astype(int) - grid[: len(image)]).mean() < 20  # in 64 colours


def test_what_is_no_picture_is_left_out(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    assert of_model(tmp_path / "bad.png") is None
    assert of_trial(tmp_path / "bad.png") is None


def test_the_samples_of_trials_have_a_bound_and_the_best_come_first(tmp_path: Path):
    """Ten completed trials and two that were stopped or interrupted."""
    make_study(tmp_path / "one")
    study = read_study(tmp_path, "one")
    (size,) = study.sizes
    for t in size.of("search"):
        if t.rungs:
            drawn(tmp_path / "one" / "trials" / t.frozen.user_attrs["key"] / f"samples-{t.rungs[-1].step:06d}.png", 8)
    every = trial_samples(study, size, pictures.OF_TRIALS)
    assert len(every) == 12
    assert [sample.trial for sample in every[:3]] == ["search-3", "search-2", "search-1"]
    assert every[0].caption == "trial 3: FID 16.17"
    assert {sample.trial for sample in every[10:]} == {"search-10", "search-12"}
    room = sum(len(sample.picture.data) for sample in every[:4]) + 100
    assert trial_samples(study, size, room) == every[:4]
