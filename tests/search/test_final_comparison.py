"""How a study decides: ties, fronts and spreads."""

import numpy as np
import pytest

from cca_ray.contracts import FID
from cca_ray.search.final_comparison import Contender, Standing, winner_of


def standing(number: int, fids: list[list[float]], noise: float = 0.0, images: int = 100) -> Standing:
    """fids: of models and blocks; noise: what each group of the jackknife changes, of this model alone."""
    rows = np.array(fids)
    groups = noise * np.array([1.0, -1.0] * 5) * (1 + number)
    contender = Contender(f"t{number}", images=images, number=number)
    return Standing(contender, {"fid": rows}, {"fid": rows[..., None] + groups}, np.empty(0))


def test_the_best_mean_wins_where_nothing_ties():
    winner, tied = winner_of([standing(0, [[9.0, 9.1]]), standing(1, [[5.0, 5.2]]), standing(2, [[7.0, 7.0]])], FID)
    assert winner.contender.number == 1
    assert [s.contender.number for s in tied] == [1]


def test_what_cannot_be_told_apart_is_a_tie_and_the_cheaper_setting_wins_it():
    dear = standing(0, [[5.0, 5.2]], noise=0.1, images=200)
    cheap = standing(1, [[5.2, 5.3]], noise=0.1, images=100)
    worse = standing(2, [[9.0, 9.0]], noise=0.1, images=50)
    winner, tied = winner_of([dear, cheap, worse], FID)
    assert winner is cheap
    assert tied == [dear, cheap]
    same_cost = standing(1, [[5.2, 5.3]], noise=0.1, images=200)
    assert winner_of([dear, same_cost, worse], FID)[0] is dear


def test_models_of_several_training_seeds_say_what_a_tie_is():
    """The noise of training is larger than that of sampling: a difference within it is no difference."""
    lucky = standing(0, [[5.0, 5.0], [8.0, 8.0], [7.0, 7.0]])
    steady = standing(1, [[6.9, 6.9], [7.1, 7.1], [7.0, 7.0]])
    assert lucky.std("fid") == pytest.approx(np.std([5.0, 8.0, 7.0], ddof=1))
    assert winner_of([lucky, steady], FID)[1] == [lucky, steady]
    alone = [standing(0, [[5.0, 5.0]]), standing(1, [[6.9, 6.9]])]
    assert winner_of(alone, FID)[1] == alone[:1]


def test_the_spread_is_that_of_one_block_by_the_jackknife():
    three = standing(0, [[4.0, 5.0, 6.0]], noise=0.1)
    assert three.mean("fid") == 5.0
    assert three.std("fid") == pytest.approx((9 * 0.1**2) ** 0.5)


def test_where_more_is_better_the_highest_wins():
    low, high = (standing(number, [[value, value]], noise=1e-6) for number, value in ((0, 5.0), (1, 9.0)))
    assert winner_of([low, high], FID)[0] is low
    assert winner_of([low, high], FID.model_copy(update={"lower_is_better": False}))[0] is high
