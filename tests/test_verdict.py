"""What is better, what ties, and what nothing beats."""

import numpy as np
import pytest

from cca_ray.contracts import FID, INCEPTION_SCORE, Difference, Edge, Prospect, Score, SizeSummary, TradeOff
from cca_ray.reporting.text import closing
from cca_ray.verdict import (
    advice,
    advice_in_short,
    best_of,
    compared,
    difference,
    ended_early,
    front,
    headline,
    in_short,
    noise,
    ratio,
    scored,
    ties,
    told,
    verdict,
    verdict_in_words,
    why_another,
    worst,
)
from tests.studies import summary_of


@pytest.mark.parametrize(("fid", "outcome"), [(17.0, 1), (17.8, 0), (18.2, 0), (19.0, -1)])
def test_two_models_are_equal_within_their_spread(fid: float, outcome: int):
    assert compared(summary_of(fid=fid, std=0.2), "guided") == outcome


@pytest.mark.parametrize(
    ("low", "high", "outcome", "word"),
    [(-0.9, -0.1, 1, "✓ better"), (-0.6, 0.2, 0, "≈ equal"), (0.1, 0.9, -1, "✗ WORSE")],
)
def test_the_interval_of_the_difference_decides_and_the_verdict_begins_with_it(
    low: float, high: float, outcome: int, word: str
):
    found = Difference(value=(low + high) / 2, low=low, high=high, at_least_as_good=0.5)
    size = summary_of(fid=17.1, std=1.5, differences={"guided": found})
    assert compared(size, "guided") == outcome
    assert verdict(size).startswith(f"digits_s: {word}")
    assert in_short(size, "guided") == f"{word}, 0.95 ×"
    assert headline([size]).startswith(f"Against the guided base: {word}: digits_s. Against the control: ✓ better")
    assert worst(size) == outcome
    assert f"{found.value:+.2f} (95 %: {low:+.2f} to {high:+.2f})" in verdict(size)
    assert compared(by_inception_score(size), "guided") == -outcome


def test_it_is_said_which_noise_a_spread_covers():
    one = summary_of()
    assert "sampling noise only" in noise([one])
    several = one.model_copy(update={"winner": one.winner.model_copy(update={"models": 3})})
    assert "3 training seeds" in noise([several])
    assert "one training seed" not in noise([several])
    both = noise([one, several.model_copy(update={"size": "digits_m"})])
    assert (
        "the spread between 3 training seeds; intervals cover both. Of digits_s, with one training seed, they" in both
    )
    more = several.model_copy(update={"winner": one.winner.model_copy(update={"models": 2})})
    assert "several training seeds" in noise([more, several])


def by_inception_score(size: SizeSummary) -> SizeSummary:
    return size.model_copy(update={"metrics": (INCEPTION_SCORE, FID)})


def test_where_more_is_better_more_is_better():
    good, bad = (by_inception_score(summary_of(fid=fid)) for fid in (12.0, 40.0))
    assert (compared(good, "guided"), compared(bad, "guided")) == (1, -1)
    assert ratio(good, "guided") > 1
    assert "inception score 8.40 ± 0.01: ✓ better than the guided base (8.10)" in verdict_in_words(good)


def test_the_control_has_as_many_steps_only_where_their_number_is_not_searched():
    size = summary_of()
    assert "plain fine-tuning with the same number of steps" in verdict_in_words(size)
    params = {**size.winner.params, "epochs": 3.0, "ema_decay": 0.9}
    other = size.model_copy(update={"winner": size.winner.model_copy(update={"params": params})})
    assert "plain fine-tuning with the epochs and ema_decay of `train`" in verdict_in_words(other)


def test_the_verdict_compares_with_guidance_and_control():
    said = verdict(summary_of(fid=17.1))
    assert "better than the guided base (0.95 × 18.00)" in said
    assert "better than the control (0.72 × 23.70)" in said


def test_the_winner_does_not_tie_with_itself():
    size = summary_of(winner=3)
    assert [finalist.trial for finalist in ties(size)] == [4]


def test_of_equal_trials_the_first_is_the_best():
    scores = {n: Score(values={"fid": fid, "inception_score": -fid}) for n, fid in ((4, 2.0), (2, 2.0), (1, 3.0))}
    assert best_of(scores, FID) == 2
    assert best_of(scores, INCEPTION_SCORE) == 2
    assert best_of({}, FID) is None


def test_the_front_holds_what_nothing_beats():
    points = np.array([[1.0, 5.0], [2.0, 2.0], [5.0, 1.0], [3.0, 3.0], [2.0, 2.0], [5.0, 5.0]])
    assert front(points).tolist() == [True, True, True, False, True, False]
    assert front(np.array([[3.0], [1.0], [1.0]])).tolist() == [False, True, True]


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.5), (-0.5, 0.0), (0.0, 0.0)])
def test_an_interval_that_ends_at_0_holds_it(low: float, high: float):
    found = Difference(value=(low + high) / 2, low=low, high=high, at_least_as_good=0.5)
    assert compared(summary_of(differences={"guided": found}), "guided") == 0


@pytest.mark.parametrize(("fid", "outcome"), [(17.51, 0), (17.49, 1), (18.49, 0), (18.51, -1)])
def test_without_a_difference_two_spreads_are_added_as_squares(fid: float, outcome: int):
    """0.3 and the guided base's 0.4, whose FID is 18: half a point."""
    assert compared(summary_of(fid=fid, std=0.3), "guided") == outcome


def test_models_without_a_spread_are_compared_as_they_are():
    size = summary_of(fid=17.99)
    models = {role: model.model_copy(update={"std": {}}) for role, model in size.models.items()}
    bare = size.model_copy(update={"models": models})
    assert compared(bare, "guided") == 1
    assert scored(bare, "tuned") == "17.99"
    same = {**models, "tuned": models["guided"]}
    assert compared(size.model_copy(update={"models": same}), "guided") == 0


def test_a_difference_is_said_with_its_sign_and_interval():
    found = Difference(value=-2.361, low=-3.1, high=1.619, at_least_as_good=0.5)
    size = summary_of(differences={"guided": found})
    assert difference(size, "guided") == "-2.36 (95 %: -3.10 to +1.62)"
    assert difference(size, "control") == ""
    assert ", -2.36 (95 %: -3.10 to +1.62));" in verdict(size)


def test_of_no_sizes_and_of_two_models_a_spread_says_its_noise():
    assert "sampling noise only" in noise([])
    two = summary_of().model_copy(update={"winner": summary_of().winner.model_copy(update={"models": 2})})
    assert "2 training seeds" in noise([two])
    assert "2 training seeds" in noise([two, two])


def test_the_ratio_is_the_tuned_models_value_in_multiples_of_the_others():
    assert ratio(summary_of(fid=9.0), "guided") == 0.5


def test_a_score_is_said_by_the_headline_unless_another_metric_is_given():
    size = summary_of(fid=17.1, std=0.21)
    assert scored(size, "tuned") == "17.10 ± 0.21"
    assert scored(size, "guided", INCEPTION_SCORE).startswith("8.10")


def test_only_finalists_that_tie_tie():
    size = summary_of(winner=3)
    apart = size.finalists[1].model_copy(update={"trial": 9, "tied": False})
    assert [finalist.trial for finalist in ties(size.model_copy(update={"finalists": (*size.finalists, apart)}))] == [4]


def test_a_point_that_is_equal_in_one_and_worse_in_another_is_beaten():
    assert front(np.array([[1.0, 2.0], [1.0, 3.0], [0.5, 3.0]])).tolist() == [True, False, True]


def three_sizes() -> list[SizeSummary]:
    """Better, equal and worse than the guided base; all better than the control."""
    found = [Difference(value=high - 0.3, low=high - 0.6, high=high, at_least_as_good=0.5) for high in (-0.1, 0.4, 0.9)]
    return [summary_of(name, differences={"guided": each}) for name, each in zip("abc", found, strict=True)]


def test_the_headline_names_every_size_and_begins_with_those_that_are_worse():
    assert headline(three_sizes()) == (
        "Against the guided base: ✗ WORSE: c; ≈ equal: b; ✓ better: a. Against the control: ✓ better: a, b, c."
    )


def test_of_every_size_it_is_told_what_to_do():
    edge = Edge(of="lambda", value=0.52, low=0.5, high=20, end="low", setting="search.space.lambda.low=0.08")
    good, equal, bad = three_sizes()
    lost = good.model_copy(update={"size": "d", "differences": {"control": bad.differences["guided"]}})
    lines = advice([good.model_copy(update={"edges": (edge,)}), lost, equal, bad])
    assert lines == [
        "a: λ is at the lower end of what was searched (0.5 to 20): --fresh --set search.space.lambda.low=0.08",
        "d: plain fine-tuning did better: was the base trained to its end? If so, search wider ranges",
        "c: worse than guidance: search on with more --trials, or keep guidance",
        "b: equal within noise: use winner.pt, or search on with more --trials",
        "a: better than both: use winner.pt",
        "one training seed per size: --replicates 2 adds training noise",
    ]
    of_guided = Edge(of="guidance_scale", value=3, low=1.25, high=3, end="high", setting="score.widen_guidance=6")
    ends = [bad.model_copy(update={"edges": edges}) for edges in ((edge,), (of_guided,))]
    assert [line.partition(":")[2].strip()[:9] for line in advice(ends[:1])[:-1]] == ["λ is at t"]
    assert advice(ends[1:])[1] == "c: worse than guidance: search on with more --trials, or keep guidance"
    assert advice_in_short(ends[1:]) == "search on or keep guidance: c"
    again = [
        size.model_copy(update={"winner": size.winner.model_copy(update={"models": 3}), "size": name})
        for size, name in ((good, "a"), (equal, "b"), (good, "c"))
    ]
    assert advice(again) == [
        "b: equal within noise: use winner.pt, or search on with more --trials",
        "a, c: better than both: use winner.pt",
    ]
    assert advice([*again[:2], good.model_copy(update={"size": "c"})])[-1] == (
        "c: one training seed: --replicates 2 adds training noise"
    )


def test_nobody_is_sent_to_search_on_where_another_trial_would_hardly_help():
    def after(size: SizeSummary, expected_gain: float) -> SizeSummary:
        return size.model_copy(update={"prospect": Prospect(expected_gain=expected_gain, chance=0.1)})

    assert advice([after(size, 0.009) for size in three_sizes()])[:-1] == [
        "c: worse than guidance, and more trials would hardly help: keep guidance, or search wider ranges",
        "b: equal within noise, and more trials would hardly help: use winner.pt",
        "a: better than both: use winner.pt",
    ]
    assert advice_in_short([after(size, 0.009) for size in three_sizes()]) == (
        "keep guidance or search wider ranges: c; use winner.pt: a, b"
    )
    assert advice([after(size, 0.011) for size in three_sizes()]) == advice(three_sizes())


def test_an_edge_is_told_with_an_option_that_a_shell_takes():
    ends = Edge(of="lambda", value=0.52, low=0.5, high=20, end="low", setting="search.space.lambda.low=0.08")
    assert told(ends) == (
        "λ, 0.52, lies at the lower end of what was searched (0.5 to 20), so the optimum may lie beyond it: "
        "search again with --fresh --set search.space.lambda.low=0.08"
    )
    rate = Edge(of="control_learning_rate", value=3e-3, low=3e-4, high=3e-3, end="high", setting="control.widen=6")
    assert told(rate).endswith("continue with --set control.widen=6")
    listed = rate.model_copy(update={"setting": "control.learning_rates=[0.001,0.003]"})
    assert told(listed).endswith("--fresh --set 'control.learning_rates=[0.001,0.003]'")


def test_a_search_that_ended_for_it_would_gain_too_little_says_so_in_report_and_terminal():
    size = summary_of(stopped_below=0.01)
    told = (
        f"The search ended after {size.trials} trials, before its number was reached, because another trial was "
        "expected to improve the best by less than 1 % (search.stop_when)."
    )
    assert ended_early(size) == told
    assert closing(size).endswith(f" {told}")
    assert ended_early(summary_of()) == ""
    assert "search.stop_when" not in closing(summary_of())


def test_why_the_winner_is_not_the_best_of_optuna_is_told():
    rows = tuple(
        TradeOff(trial=trial, params={}, values={"fid": fid, "inception_score": 8.0}, front=False)
        for trial, fid in ((2, 17.0), (3, 16.5), (4, 16.2))
    )
    size = summary_of(winner=3, trade_off=rows)
    assert why_another(size).startswith("Trial 4 is the best in Optuna, by FID 16.20 at its last rung")
    assert "trial 3 won" in why_another(size)
    assert why_another(summary_of(winner=4, trade_off=rows)) == ""
    assert why_another(summary_of(winner=3)) == ""
    assert why_another(size.model_copy(update={"searched": ("fid", "inception_score")})) == ""
