"""How a study decides: ties, fronts and spreads."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from benchmarks.intervals import World, coverage, differences
from cca_ray.contracts import FID, Score
from cca_ray.search.standings import Contender, Standing, contested, difference, surely_better, winner_of

IMAGES = np.zeros((1, 2, 2, 3), np.uint8)


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


def test_who_is_surely_behind_is_not_scored_further_and_who_may_still_win_is():
    best, near, far = (standing(n, [[fid]], noise=0.1) for n, fid in ((0, 5.0), (1, 5.7), (2, 9.0)))
    assert contested([far, near, best], FID) == [near, best]  # standard errors of the differences: 0.3 and 0.6
    higher = FID.model_copy(update={"lower_is_better": False})
    assert contested([far, near, best], higher) == [far]
    assert contested([best], FID) == [best]


def test_with_too_few_images_for_an_error_all_may_still_win():
    fids = np.array([[5.0]]), np.array([[9.0]])
    unsure = [
        Standing(Contender(f"t{n}", number=n), {"fid": fid}, {"fid": fid[..., None]}, IMAGES)
        for n, fid in enumerate(fids)
    ]
    assert contested(unsure, FID) == unsure


def test_models_of_several_training_seeds_say_what_a_tie_is():
    """The noise of training is larger than that of sampling: a difference within it is no difference."""
    lucky = standing(0, [[5.0, 5.0], [8.0, 8.0], [7.0, 7.0]])
    steady = standing(1, [[6.9, 6.9], [7.1, 7.1], [7.0, 7.0]])
    assert lucky.std("fid") == pytest.approx(np.std([5.0, 8.0, 7.0], ddof=1))
    assert winner_of([lucky, steady], FID)[1] == [lucky, steady]
    alone = [standing(0, [[5.0, 5.0]]), standing(1, [[6.9, 6.9]])]
    assert winner_of(alone, FID)[1] == alone[:1]


def test_finalists_of_which_some_models_failed_are_compared_too():
    three, two, one = ([5.0, 5.0], [8.0, 8.0], [7.0, 7.0]), ([6.9, 6.9], [7.2, 7.2]), ([9.0, 9.0],)
    some = [standing(number, list(models)) for number, models in enumerate((three, two, one))]
    variances = [np.var([5.0, 8.0, 7.0], ddof=1) / 3, np.var([6.9, 7.2], ddof=1) / 2, 0.0]
    means = [20 / 3, 7.05, 9.0]
    for i, ours in enumerate(some):
        for j, theirs in enumerate(some):
            if i != j:
                found = ours.beside(theirs, "fid")
                assert found.value == pytest.approx(means[i] - means[j])
                assert found.error == pytest.approx((variances[i] + variances[j]) ** 0.5)
    assert winner_of(some, FID)[1] == some[:2]


def test_the_spread_is_that_of_one_block_by_the_jackknife():
    three = standing(0, [[4.0, 5.0, 6.0]], noise=0.1)
    assert three.mean("fid") == 5.0
    assert three.std("fid") == pytest.approx((9 * 0.1**2) ** 0.5)


def test_where_more_is_better_the_highest_wins():
    low, high = (standing(number, [[value, value]], noise=1e-6) for number, value in ((0, 5.0), (1, 9.0)))
    assert winner_of([low, high], FID)[0] is low
    assert winner_of([low, high], FID.model_copy(update={"lower_is_better": False}))[0] is high


def test_a_difference_counts_the_noise_that_two_models_do_not_share():
    """With its 95 % interval, against the same by hand; all that they share falls out."""
    ours, theirs = standing(1, [[5.0, 5.2, 5.1]], noise=0.1), standing(0, [[5.6, 5.7, 5.8]], noise=0.1)
    found = difference(ours, theirs, FID)
    assert found is not None
    error = (9 * 0.1**2) ** 0.5 / 3**0.5  # noise is 0.2 and 0.1, of one sign; three blocks
    half = stats.t.ppf(0.975, 27) * error
    np.testing.assert_allclose([found.value, found.low, found.high], [-0.6, -0.6 - half, -0.6 + half])
    assert found.at_least_as_good == pytest.approx(stats.t.cdf(0.6 / error, 27))
    shared = difference(standing(0, [[5.0]], noise=3.0), standing(0, [[5.5]], noise=3.0), FID)
    assert shared is not None
    assert (shared.low, shared.high) == pytest.approx((-0.5, -0.5))


def test_with_several_training_seeds_a_difference_counts_training_and_sampling():
    ours, theirs = standing(1, [[5.0], [5.4], [4.6]], noise=0.1), standing(0, [[5.6]], noise=0.1)
    found = difference(ours, theirs, FID)
    assert found is not None
    variance, noise = 0.4**2 / 3, 9 * 0.1**2
    freedom = (variance + noise) ** 2 / (variance**2 / 2 + noise**2 / 9)
    assert found.high - found.value == pytest.approx(stats.t.ppf(0.975, freedom) * (variance + noise) ** 0.5)


def test_where_more_is_better_a_positive_difference_is_the_good_one():
    higher = FID.model_copy(update={"lower_is_better": False})
    ours, theirs = standing(1, [[5.0]], noise=0.1), standing(0, [[5.6]], noise=0.1)
    up, down = difference(ours, theirs, higher), difference(ours, theirs, FID)
    assert up is not None
    assert down is not None
    assert up.at_least_as_good == pytest.approx(1 - down.at_least_as_good)


def test_a_single_group_of_images_gives_no_error_and_so_no_difference():
    few = Standing(Contender("a"), {"fid": np.ones((1, 2))}, {"fid": np.ones((1, 2, 1))}, np.empty(0))
    assert difference(few, few, FID) is None
    assert few.std("fid") is None
    assert few.score().std == {}
    more = replace(few, values={"fid": np.ones((1, 2)) + 1})
    assert [surely_better(few, more, FID), surely_better(more, few, FID)] == [True, False]  # by the means alone


def test_who_is_surely_better_has_an_interval_without_0():
    ours, near, far = (standing(i, [[value]], noise=0.03) for i, value in enumerate((5.0, 5.05, 6.0)))
    assert [surely_better(ours, other, FID) for other in (near, far)] == [False, True]
    higher = FID.model_copy(update={"lower_is_better": False})
    assert [surely_better(far, other, higher) for other in (near, ours)] == [True, True]
    assert not surely_better(ours, far, higher)


@pytest.mark.parametrize("world", [World(6, 100, 2), World(6, 100, 1, models=3, training=0.3)])
def test_intervals_of_simulated_studies_cover_the_truth(world: World):
    """benchmarks/intervals.py has larger ones. Of 120 at 95 %, 107 to 119 hold it in 99 of 100 cases."""
    *_, held = coverage(differences(world, 120))
    assert 107 / 120 <= held <= 119 / 120


@pytest.mark.parametrize(("ahead", "tie"), [(0.29, True), (0.59, True), (0.61, False), (0.91, False)])
def test_a_tie_is_within_two_standard_errors(ahead: float, tie: bool):
    """Groups are 0.1 apart from block to block: of ten, one block's difference has an error of √9 · 0.1."""
    best, other = standing(0, [[5.0]], noise=0.1), standing(1, [[5.0 + ahead]], noise=0.1)
    assert winner_of([best, other], FID)[1] == ([best, other] if tie else [best])


def test_of_what_is_equal_in_all_the_first_trial_wins():
    second, first = standing(2, [[5.0]]), standing(1, [[5.0]])
    winner, tied = winner_of([second, first], FID)
    assert winner is first
    assert tied == [second, first]


def variance_by_hand(without: np.ndarray) -> float:
    """Of the mean of blocks [B, G]: the jackknife's, (G - 1) / G times the sum of squares, of each block."""
    blocks, groups = without.shape
    of_blocks = [(groups - 1) / groups * sum((v - sum(row) / groups) ** 2 for v in row) for row in without]
    return float(sum(of_blocks)) / blocks**2


def test_what_sampling_does_to_each_model_alone_is_not_counted_twice():
    """Three models of ours and one of theirs, on two blocks of five groups, each with noise of its own."""
    rng = np.random.default_rng(0)
    values, their_values = rng.normal(5.0, 0.3, (3, 2)), rng.normal(6.0, 0.3, (1, 2))
    left = values[..., None] + 0.05 * rng.normal(size=(3, 2, 5))
    their_left = their_values[..., None] + 0.2 * rng.normal(size=(1, 2, 5))
    ours = Standing(Contender("a"), {"fid": values}, {"fid": left}, np.empty(0))
    theirs = Standing(Contender("b"), {"fid": their_values}, {"fid": their_left}, np.empty(0))
    sampling = variance_by_hand(left.mean(0) - their_left[0])
    own = sum(variance_by_hand(model - left.mean(0)) for model in left) / 3 / 2
    means = [row.mean() for row in values]
    training = sum((mean - sum(means) / 3) ** 2 for mean in means) / 2 / 3
    shared, found = sampling - own, ours.beside(theirs, "fid")
    assert shared > own > 0  # else neither would show
    assert found.value == pytest.approx(values.mean() - their_values.mean())
    assert found.error == pytest.approx((shared + training) ** 0.5)
    assert found.freedom == pytest.approx((shared + training) ** 2 / (shared**2 / 8 + training**2 / 2))


@pytest.mark.parametrize(("ours", "theirs"), [(3, 3), (3, 1), (3, 2)])
def test_the_error_of_simulated_differences_is_the_true_one(ours: int, theirs: int):
    """Models with noise of training and of sampling of their own, and noise of sampling that all share.

    Somewhat larger, for no variance is taken to be below zero. With one side's own noise counted twice it is by 40 %.
    """
    rng, groups = np.random.default_rng(0), 10

    def drawn(models: int, shared: np.ndarray) -> Standing:
        effects = shared + 0.5 * groups**0.5 * rng.standard_normal((models, 1, groups))
        trained = 0.2 * rng.standard_normal((models, 1)) * (models > 1)
        without = trained[..., None] + (effects.sum(2, keepdims=True) - effects) / (groups - 1)
        return Standing(Contender("a"), {"fid": trained + effects.mean(2)}, {"fid": without}, np.empty(0))

    found = []
    for _ in range(400):
        shared = 0.3 * groups**0.5 * rng.standard_normal((1, 1, groups))
        found.append(drawn(ours, shared).beside(drawn(theirs, shared), "fid"))
    true = sum(0.5**2 / n + (0.2**2 / n if n > 1 else 0.0) for n in (ours, theirs))
    assert np.mean([one.error**2 for one in found]) == pytest.approx(true, rel=0.25)


def test_noise_of_the_models_alone_leaves_no_sampling_to_add():
    """What both share is nothing here: the models' own noise is all that there is, and lies in their spread."""
    values = np.array([[5.0], [5.4], [4.6]])
    own = 0.1 * np.array([[1, -1, 0, 0], [-1, 1, 0, 0], [0, 0, 0, 0]])[:, None]
    ours = Standing(Contender("a"), {"fid": values}, {"fid": values[..., None] + own}, np.empty(0))
    theirs = Standing(Contender("b"), {"fid": np.array([[6.0]])}, {"fid": np.full((1, 1, 4), 6.0)}, np.empty(0))
    assert ours.beside(theirs, "fid").error == pytest.approx(0.4 / 3**0.5)


def test_the_spread_of_several_blocks_is_the_root_of_their_mean_variance():
    """Blocks with noise of 0.1 and 0.3: of each the jackknife's variance is 9 times its square."""
    sign = np.array([1.0, -1.0] * 5)
    left = np.stack([5.0 + 0.1 * sign, 5.0 + 0.3 * sign])[None]
    found = Standing(Contender("a"), {"fid": np.full((1, 2), 5.0)}, {"fid": left}, np.empty(0)).std("fid")
    assert found == pytest.approx((9 * (0.01 + 0.09) / 2) ** 0.5)


def test_a_standing_is_by_models_blocks_and_groups():
    def score(value: float) -> Score:
        return Score(values={"fid": value, "kid": -value}, without={"fid": (value, value + 1), "kid": (0.0, value)})

    found = Standing.of(
        Contender("a", guidance_scale=2.0), [[score(1.0), score(2.0)], [score(5.0), score(6.0)]], IMAGES
    )
    assert found.values["fid"].tolist() == [[1.0, 2.0], [5.0, 6.0]]
    assert found.without["kid"].tolist() == [[[0.0, 1.0], [0.0, 2.0]], [[0.0, 5.0], [0.0, 6.0]]]
    assert found.images is IMAGES
    summary = found.score()
    assert summary.values == {"fid": 3.5, "kid": -3.5}
    assert summary.std == pytest.approx({"fid": 8**0.5, "kid": 8**0.5})  # of 1.5 and 5.5
    assert summary.guidance_scale == 2.0


def test_a_contender_of_which_nothing_is_said_is_the_base_without_guidance():
    base = Contender("base")
    assert (base.guidance_scale, base.images, base.checkpoint) == (1.0, 0, None)  # nothing was trained
    assert base.number < 0  # no trial's


def test_few_images_are_taken_for_many():
    """What is too high by 9 / images, in ten groups."""
    images = 100
    value, without = 2.0 + 9 / images, np.full((1, 1, 10), 2.0 + 9 / (images - images // 10))
    few = Standing(Contender("base"), {"fid": np.array([[value]])}, {"fid": without}, np.empty(0))
    assert few.unbiased().mean("fid") == pytest.approx(2.0)
    alone = Standing(few.contender, few.values, {"fid": np.full((1, 1, 1), value)}, few.images)
    assert alone.unbiased().mean("fid") == value
