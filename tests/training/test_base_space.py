"""The search space for a base of someone's own images: its ranges, and that it is valid."""

from pathlib import Path

import pytest
import yaml

from cca_ray.config import Range, StudyConfig
from cca_ray.data.tokens import read_token_set
from cca_ray.models.family import family_of
from cca_ray.space_file import load_config
from cca_ray.training.base_space import BaseFacts, betas, first_points, ranges, space_for
from cca_ray.training.small_base import BaseFiles

LLAMAGEN = family_of("llamagen")
PAPER = {"beta": 0.02, "lambda": (50, 100, 300, 500, 1000)}  # at 576 (LlamaGen) and 680 (VAR) tokens, 1,000 classes
# What was best for digits, ten classes, before there was this rule: tokens an image -> β and λ.
DIGITS = {16: ((0.05, 1), (0.1, 1), (0.08, 3), (0.08, 8)), 30: ((0.1, 3), (0.08, 3), (0.08, 20))}


def holds(bounds: dict[str, float], value: float) -> bool:
    return bounds["low"] <= value <= bounds["high"]


@pytest.mark.parametrize(
    ("tokens", "independent", "agreeing"),
    [(16, 0.08, 0.32), (64, 0.04, 0.08), (256, 0.02, 0.02), (680, 0.02, 0.02), (1, 0.32, 5.12)],
)
def test_beta_grows_as_tokens_become_fewer(tokens: int, independent: float, agreeing: float):
    assert betas(tokens) == pytest.approx((independent, agreeing))


@pytest.mark.parametrize("tokens", [576, 680])
def test_the_ranges_hold_what_the_paper_chose(tokens: int):
    found = ranges(BaseFacts(tokens, 1000, 1e-4))
    assert holds(found["beta"], PAPER["beta"])
    assert all(holds(found["lambda"], value) for value in PAPER["lambda"])
    assert first_points(BaseFacts(tokens, 1000, 1e-4))[1] == {"lambda": 1000, "beta": 0.02, "learning_rate": 2.5e-5}


@pytest.mark.parametrize("tokens", DIGITS)
def test_the_ranges_hold_what_was_best_for_digits(tokens: int):
    found = ranges(BaseFacts(tokens, 10, 2e-3))
    for beta, weight in DIGITS[tokens]:
        assert holds(found["beta"], beta)
        assert holds(found["lambda"], weight)
    assert all(holds(found["learning_rate"], rate) for rate in (1e-3, 3e-3))


@pytest.mark.parametrize("tokens", [4, 16, 30, 64, 155, 256, 680, 1024])
@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_every_range_is_one_and_holds_the_first_points(tokens: int, classes: int):
    facts = BaseFacts(tokens, classes, 1.3e-3)
    found = ranges(facts)
    for name, bounds in found.items():
        Range.model_validate(bounds)
        assert all(holds(bounds, point[name]) for point in first_points(facts))
        assert bounds["high"] >= 4 * bounds["low"]


@pytest.mark.parametrize(
    ("images", "batch", "epochs"), [(14_336, 128, 1), (14_335, 64, 1), (7_168, 64, 1), (7_167, 128, 3), (100, 100, 112)]
)
def test_a_fine_tuning_takes_112_steps_in_one_epoch_where_a_smaller_batch_makes_it_so(
    base_files: BaseFiles, tmp_path: Path, images: int, batch: int, epochs: int
):
    train = space_for(base_files, images, BaseFacts(64, 10, 2e-3), LLAMAGEN, "medium", tmp_path / "s.yaml")["train"]
    assert (train["global_batch"], train["epochs"]) == (batch, epochs)


def test_a_space_is_valid_and_keeps_what_someone_edited(base_files: BaseFiles, tmp_path: Path):
    path = tmp_path / "mine.yaml"
    length = read_token_set(base_files.tokens).meta.length

    def written(facts: BaseFacts | None) -> dict[str, float]:
        path.write_text(yaml.safe_dump(space_for(base_files, 240, facts, LLAMAGEN, "S", path)))
        config = load_config(path)
        assert config.base.checkpoint == str(base_files.checkpoint)
        assert config.score.samples == 240
        return {"beta": config.train.parameters.beta, "steps": config.train.epochs * (240 // config.train.global_batch)}

    assert written(None) == {"beta": 0.08, "steps": 8}  # those of the digits
    assert set(load_config(path).search.space) == {"lambda", "learning_rate"}
    path.unlink()
    assert written(BaseFacts(length, 10, 2e-3)) == {"beta": 0.32, "steps": 112}
    assert set(load_config(path).search.space) == {"lambda", "beta", "learning_rate"}
    path.write_text(path.read_text().replace("trials: 20", "trials: 7"))
    written(BaseFacts(length, 10, 2e-3))
    assert load_config(path).search.trials == 7


def test_a_space_whose_folder_was_moved_gets_the_files_where_they_are_and_keeps_someones_own(tmp_path: Path):
    path, own = tmp_path / "mine.yaml", tmp_path / "inception.pt"

    def below(root: str) -> BaseFiles:
        images = tmp_path / root / "photos-0123456789"
        kind = images / "llamagen-9876543210"
        return BaseFiles(
            kind / "medium-5.pt", kind / "tokenizer.pt", kind / "photos", images / "f.pt", images / "reference.npz"
        )

    def written(files: BaseFiles) -> StudyConfig:
        path.write_text(yaml.safe_dump(space_for(files, 240, BaseFacts(64, 10, 2e-3), LLAMAGEN, "medium", path)))
        return load_config(path)

    written(below("before"))
    path.write_text(path.read_text().replace(str(below("before").features), str(own)))
    now, found = below("after"), written(below("after"))
    assert (found.base.checkpoint, found.base.tokenizer) == (str(now.checkpoint), str(now.tokenizer))
    assert (found.data.tokens, found.score.reference) == (str(now.tokens), str(now.reference))
    assert found.score.features == str(own)
