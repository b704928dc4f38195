"""The final comparison: scores are made where a decision needs them."""

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import FrozenTrial, create_trial

from cca_ray.contracts import SizeSummary
from cca_ray.search.cleaning import WEIGHTS
from cca_ray.search.final_comparison import keep_former_winner
from cca_ray.search.size_study import SizeStudy, StudyContext
from cca_ray.storage.files import fingerprint
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.trial import trial_folder
from tests.conftest import MakeStudy

BLOCKS = 2


@pytest.mark.parametrize("cleaned", [True, False])
def test_before_another_takes_its_place_the_former_winner_keeps_its_weights(tmp_path: Path, cleaned: bool):
    """After `clean` they are in `winner.pt` alone; who has them itself, or is another model, gets nothing."""
    winner, trials = tmp_path / "tiny" / "winner.pt", list[FrozenTrial]()
    for number in range(3):
        key = f"tiny-search-{number:04d}"
        weights = trial_folder(tmp_path, key) / WEIGHTS
        weights.parent.mkdir(parents=True)
        weights.write_bytes(bytes([number]) * 100)
        score = tmp_path / "scores" / f"{key}-abc.npz"
        score.parent.mkdir(exist_ok=True)
        np.savez(score, study="id", weights=fingerprint(weights))
        trials.append(create_trial(value=1.0, user_attrs={"key": key}))
    first, second, third = (trial_folder(tmp_path, trial.user_attrs["key"]) / WEIGHTS for trial in trials)
    winner.parent.mkdir()
    shutil.copyfile(second, winner)
    third.unlink()
    if cleaned:
        second.unlink()
    keep_former_winner(trials, tmp_path, "id")
    assert second.read_bytes() == b"\1" * 100
    assert first.read_bytes() == b"\0" * 100
    assert not third.exists()
    assert winner.exists()


def test_a_finalist_that_is_surely_behind_is_scored_on_two_blocks(
    tmp_path: Path, tracker: Tracker, make_study: MakeStudy, ray_here: None
):
    space = {"lambda": {"low": 0.5, "high": 10}, "learning_rate": {"low": 1e-4, "high": 0.5}}
    points = [{"lambda": 2.0, "learning_rate": rate} for rate in (1e-4, 0.5)]
    config = make_study(
        search={"trials": 2, "max_concurrent": 1, "space": space, "first_points": points, "grace_trials": 2},
        score={"finalists": 2, "blocks": BLOCKS, "samples": 2400, "guidance_scales": [1.25, 1.5], "widen_guidance": 0},
        control={"learning_rates": [1e-3]},
    )
    folder = tmp_path / "study"
    folder.mkdir()

    def run() -> SizeSummary:
        return SizeStudy(config, StudyContext("study", folder, tracker, lambda line: None)).run().summary

    summary = run()
    winner, loser = summary.winner.trial, 1 - summary.winner.trial
    assert {f.trial: f.tied for f in summary.finalists} == {winner: True, loser: False}
    made = Counter(path.name.rsplit("-", 1)[0] for path in (folder / "scores").iterdir())
    assert made == {
        f"tiny-search-{winner:04d}": 2 * BLOCKS,
        f"tiny-search-{loser:04d}": 2,  # the first that chooses, the first of the table
        "tiny-base": BLOCKS + 2 + BLOCKS,  # the table, both guidance scales, the table at the better one
        "tiny-control-0000": BLOCKS,  # there is nothing to choose
    }
    shutil.rmtree(folder / "trials" / f"tiny-search-{loser:04d}")  # it had all the blocks that it needs
    assert run() == summary
