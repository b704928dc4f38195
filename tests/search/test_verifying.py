"""A finalist scored again: the same here, another elsewhere; what a study says of cards that score higher."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import typer

from cca_ray.errors import ConfigError
from cca_ray.evaluate import tell_verified, verified
from tests.conftest import MakeStudy
from tests.real_studies import run


def made_elsewhere(scores: Iterable[Path], higher: float) -> None:
    """As if another card had made these scores."""
    for path in scores:
        with np.load(path) as content:
            arrays = dict(content)
        for name in ("value fid", "without fid"):
            arrays[name] = arrays[name] + higher
        np.savez(path, **{**arrays, "card": np.array("A40")})


def test_a_finalist_is_scored_again_and_a_study_warns_of_cards_whose_scores_are_higher(
    tmp_path: Path, make_study: MakeStudy, ray_here: None, capsys: pytest.CaptureFixture[str]
):
    folder, lines = tmp_path / "study", list[str]()
    size, config = run(folder, make_study, 2, lines), make_study(search={"trials": 2, "max_concurrent": 1})
    found = verified(config, folder, None)
    assert (found.trial, found.metric, found.card) == (size.winner.trial, "fid", "CPU")
    assert [(block.kept_card, block.here) for block in found.blocks] == [("CPU", block.kept) for block in found.blocks]
    assert len({block.seed for block in found.blocks}) == len(found.blocks) == config.score.blocks
    assert np.mean([block.kept for block in found.blocks]) == pytest.approx(size.value("tuned"))
    capsys.readouterr()
    tell_verified(found, folder)
    told = capsys.readouterr()
    assert (json.loads(told.out)["explained_by_noise"], json.loads(told.out)["difference"], told.err) == (True, 0, "")

    made_elsewhere((folder / "scores").glob(f"tiny-search-{size.winner.trial:04d}-*.npz"), 5.0)
    found = verified(config, folder, size.winner.trial)
    assert {block.kept_card for block in found.blocks} == {"A40"}
    with pytest.raises(typer.Exit) as ended:
        tell_verified(found, folder)
    told = capsys.readouterr()
    assert (ended.value.exit_code, json.loads(told.out)["explained_by_noise"]) == (1, False)
    assert told.err.startswith(f"error: {folder}: fid of trial {size.winner.trial} differs here by -5.00 ")
    assert told.err.count("\n") == 1

    with pytest.raises(ConfigError, match="trial 99 was not in the final comparison"):
        verified(config, folder, 99)
    other = config.model_copy(update={"score": config.score.model_copy(update={"samples": 60})})
    with pytest.raises(ConfigError, match=f"no score of trial {size.winner.trial} under protocol"):
        verified(other, folder, None)

    assert not any("warning: scores" in line for line in lines)
    made_elsewhere(sorted((folder / "scores").glob("*.npz"))[::2], 50.0)
    run(folder, make_study, 2, lines)
    (warning,) = (line for line in lines if "warning: scores" in line)
    assert warning.startswith("tiny  warning: scores made on ")
    assert warning.endswith("cca-ray evaluate --verify scores a finalist again on another card")
