"""Whether guidance helps a base, and what is said of it."""

import math

import numpy as np
import pytest
import torch

from cca_ray.contracts import Score
from cca_ray.evaluation.guidance_check import SCALES, GuidanceCheck, check_guidance, difference
from cca_ray.evaluation.scoring import load_base, protocol_of, score, scoring_of
from cca_ray.models.parallel import Group
from tests.conftest import MakeStudy

CPU = torch.device("cpu")


def test_the_best_scale_is_chosen_on_other_noise_than_it_is_shown_on(make_study: MakeStudy):
    study = make_study()
    told: list[tuple[int, int]] = []
    found = check_guidance(study, 60, lambda done, total: told.append((done, total)))

    def fid(scale: float, seed: int) -> float:
        scoring = scoring_of(study, CPU)
        return score(
            load_base(study), scoring, protocol_of(study, scoring, 60, scale, seed), Group(device=CPU)
        ).score.values["fid"]

    assert found.samples == 60
    assert found.scale == min(SCALES, key=lambda scale: fid(scale, 0))
    assert (found.unguided, found.guided) == (fid(1.0, 1), fid(found.scale, 1))
    assert found.low < found.guided - found.unguided < found.high
    assert told == [(done, 5) for done in range(1, 6)]


def scored(value: float, without: list[float]) -> Score:
    return Score(values={"fid": value}, without={"fid": tuple(without)})


def test_common_noise_makes_the_interval_of_the_difference_small():
    noise = np.array([1.0, -2.0, 3.0, -1.0, 0.5])
    apart = difference(scored(20, [*(20 + noise)]), scored(30, [*(30 + noise)]))
    assert apart == pytest.approx((-10, -10))
    low, high = difference(scored(20, [*(20 + noise)]), scored(30, [*(30 - noise)]))
    error = math.sqrt(4 * np.var(2 * noise))
    assert (low, high) == pytest.approx((-10 - 2.776 * error, -10 + 2.776 * error), rel=1e-3)  # t, four degrees
    assert difference(scored(20, []), scored(30, [])) == (-math.inf, math.inf)


def check(low: float, high: float) -> GuidanceCheck:
    return GuidanceCheck(samples=1000, unguided=30.0, guided=30.0 + (low + high) / 2, scale=2.0, low=low, high=high)


def test_what_is_said_is_one_line_with_the_figures_and_the_consequence():
    helps, tie, harms = check(-12, -8), check(-1, 3), check(1, 5)
    assert str(helps) == (
        "guidance helps this base: FID 30.00 without, 20.00 at scale 2 (1,000 samples; difference -10.00, 95 %: "
        "-12.00 to -8.00, noise of sampling alone); so CCA has something to learn"
    )
    assert str(check(-3, -2)).startswith("guidance helps this base only a little: FID 30.00 without, 27.50 at scale 2")
    assert str(check(-3, -2)).endswith("so CCA has little to learn, if anything")
    assert str(tie).startswith("it is unclear whether guidance helps this base: FID 30.00 without, 31.00")
    assert str(harms).startswith("guidance does not help this base: FID 30.00 without, 33.00 at scale 2")
    assert str(tie).endswith("noise of sampling alone). If it does not, CCA will hardly help either")
    assert "CCA trains towards what guidance samples from, so it will hardly help either: the base" in str(harms)
    assert not any("\n" in str(found) for found in (helps, tie, harms))
    assert [c.helps for c in (helps, tie, harms)] == [True, False, False]
