"""What lies at an end of what was tried is found, and the baselines look beyond it until they are bracketed."""

import math
from collections.abc import Mapping, Sequence
from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.trial import TrialState

from cca_ray.config import MOST_GUIDANCE, Range, StudyConfig
from cca_ray.contracts import FID, Edge
from cca_ray.inputs import find_space
from cca_ray.search.arms import open_arms
from cca_ray.search.blocks import FEW, Wanted
from cca_ray.search.fresh_scores import Chooser
from cca_ray.search.ledger import Ledger
from cca_ray.search.standings import Contender, Standing
from cca_ray.search.widening import (
    edge_of_control,
    edge_of_guidance,
    edges_of_search,
    further_end,
    next_rate,
    next_scale,
)
from cca_ray.space_file import load_config
from cca_ray.training.reports import TrialFailure
from tests.conftest import MakeStudy
from tests.search.ledgers import DIGESTS, at_rung

RATES = (1e-4, 1e-3, 3e-3)


@pytest.mark.parametrize(
    ("costs", "following"),
    [
        ((5.0, 4.0, 6.0), None),  # inside
        ((5.0, 4.0, 3.0), 9e-3),  # by the step between the two largest
        ((3.0, 4.0, 5.0), 1e-5),  # by that between the two smallest
        ((4.0, 4.0, 4.0), 1e-5),  # of equal ones the smallest counts as the best
        ((math.inf, math.inf, 3.0), 9e-3),
        ((math.inf, math.inf, math.inf), 1e-5),  # where all fail, a lower one may not
    ],
)
def test_a_rate_is_tried_beyond_the_end_at_which_the_best_lies(costs: Sequence[float], following: float | None):
    assert next_rate(dict(zip(RATES, costs, strict=True)), RATES, 3) == following


def test_rates_are_tried_until_the_best_lies_inside_or_as_many_as_may_be():
    def tried(best: float, most: int) -> list[float]:
        costs = {rate: abs(math.log(rate / best)) for rate in RATES}
        while (rate := next_rate(costs, RATES, most)) is not None:
            costs[rate] = abs(math.log(rate / best))
        return sorted(costs)[len(RATES) :]

    assert tried(1e-3, 3) == []
    assert tried(8e-3, 3) == [9e-3, 0.027]  # the second brackets it
    assert tried(10.0, 3) == [9e-3, 0.027, 0.081]
    assert tried(10.0, 0) == []
    assert next_rate({1e-3: 1.0}, (1e-3,), 3) is None  # one alone is no grid


def test_a_rate_that_fails_is_a_bracket():
    assert next_rate({1e-4: 5.0, 1e-3: 4.0, 3e-3: 3.0, 9e-3: math.inf}, RATES, 3) is None


def test_guidance_widens_upwards_alone_and_no_further_than_logits_bear():
    assert next_scale({1.5: 5.0, 2.0: 4.0, 3.0: 3.0}, (1.5, 2.0, 3.0), 3) == 5.0
    assert next_scale({1.5: 3.0, 2.0: 4.0, 3.0: 5.0}, (1.5, 2.0, 3.0), 3) is None
    assert next_scale({1.5: 5.0, 2.0: 4.0, 3.0: 3.0, 5.0: 6.0}, (1.5, 2.0, 3.0), 3) is None
    assert next_scale({1.5: 5.0, 3.0: 3.0, 9.0: 1.0}, (1.5, 3.0), 1) is None
    assert next_scale({2.0: 5.0, MOST_GUIDANCE: 3.0}, (2.0, MOST_GUIDANCE), 3) is None


class Known:
    """Scores that depend on the scale alone, and which of them were asked for, of how many images.

    Of few images FID is higher, by the same at all scales, and has an error.
    """

    def __init__(self, best: float, samples: int = 1800):
        self.best, self.asked = best, list[tuple[float, int]]()
        self.config = SimpleNamespace(score=SimpleNamespace(samples=samples, blocks=3))

    def standings(self, wanted: Sequence[Wanted]) -> list[Standing]:
        found = []
        for (contender,), _, samples in wanted:
            ask = (contender.guidance_scale, samples or self.config.score.samples)
            self.asked += [ask] if ask not in self.asked else []
            value, noise = abs(ask[0] - self.best), np.random.default_rng(round(100 * ask[0])).normal(0, 0.01, 10)
            value += 20_000 / ask[1]
            without = {"fid": (value + noise - noise.mean())[None, None]}
            found.append(Standing(contender, {"fid": np.array([[value]])}, without, np.empty(0)))
        return found


@pytest.mark.parametrize(
    ("best", "chosen", "tried"),
    [(2.0, 2.0, (1.5, 2.0, 3.0)), (4.8, 5.0, (1.5, 2.0, 3.0, 5.0, 9.0)), (99.0, 17.0, (1.5, 2.0, 3.0, 5.0, 9.0, 17.0))],
)
def test_the_guided_base_is_that_of_the_best_scale_also_beyond_those_given(
    best: float, chosen: float, tried: tuple[float, ...]
):
    known = Known(best)
    found, scales = Chooser(known, FID).guided(Contender("base"), (1.5, 2.0, 3.0), 3)  # type: ignore[arg-type]
    assert (found.guidance_scale, scales) == (chosen, tried)
    assert known.asked == [(scale, 1800) for scale in tried]  # each once


def test_few_images_tell_which_scales_are_worth_a_whole_block():
    known = Known(2.24, samples=50_000)
    found, scales = Chooser(known, FID).guided(Contender("base"), (1.5, 2.0, 2.5, 3.0), 3)  # type: ignore[arg-type]
    assert (found.guidance_scale, scales) == (2.0, (1.5, 2.0, 2.5, 3.0))
    assert known.asked == [*((scale, FEW) for scale in scales), (2.0, 50_000), (2.5, 50_000)]


def test_where_few_images_leave_one_scale_no_block_is_scored_and_the_grid_still_widens():
    known = Known(5.0, samples=50_000)
    found, scales = Chooser(known, FID).guided(Contender("base"), (1.5, 2.0, 3.0), 3)  # type: ignore[arg-type]
    assert (found.guidance_scale, scales) == (5.0, (1.5, 2.0, 3.0, 5.0, 9.0))
    assert known.asked == [(scale, FEW) for scale in scales]


def test_one_scale_is_a_choice_and_costs_no_score():
    known = Known(9.0)
    found, scales = Chooser(known, FID).guided(Contender("base"), (1.5,), 3)  # type: ignore[arg-type]
    assert (found.guidance_scale, scales, known.asked) == (1.5, (1.5,), [])


@pytest.fixture
def grid(make_config: MakeStudy) -> StudyConfig:
    return make_config(control={"learning_rates": [1e-3, 3e-3]}, search={"trials": 1})


def run_control(ledger: Ledger, fids: Mapping[float, float]) -> list[float]:
    """Its trials, one after another, by what each rate comes to; those of the search end at once."""
    rates = []
    while (trial := ledger.propose("a")) is not None:
        rate = trial.params["learning_rate"]
        rates += [rate] * (trial.arm == "control")
        ledger.record("a", at_rung(10, 10, fids[rate] if trial.arm == "control" else 9.0))
        ledger.finish("a")
    return rates


@pytest.mark.parametrize(("rates", "widen", "tried"), [([1e-3, 3e-3], 1, 3), ([1e-3, 3e-3], 0, 2), ([1e-3], 3, 1)])
def test_where_all_rates_of_the_control_fail_the_search_does_not_begin(
    storage: optuna.storages.RDBStorage, make_config: MakeStudy, rates: list[float], widen: int, tried: int
):
    """Without a control no study ends; a lower rate is tried before, if there may be one more."""
    config = make_config(control={"learning_rates": rates, "widen": widen}, search={"trials": 3})
    ledger, found = Ledger(config, open_arms(config, "study", storage, DIGESTS)), list[float]()
    while (trial := ledger.propose("a")) is not None:
        assert trial.arm == "control"
        found.append(trial.params["learning_rate"])
        ledger.record("a", TrialFailure(reason="Diverged: the loss is nan at step 3"))
        ledger.finish("a")
    assert len(found) == tried
    assert widen == 0 or len(rates) == 1 or min(found) == pytest.approx(1e-3 / 3, rel=1e-2)
    assert ledger.halted
    assert "no trial was completed" in ledger.hopeless
    assert "--fresh --set control.learning_rates=[" in ledger.hopeless
    assert "--trials" not in ledger.hopeless


def test_a_lower_rate_that_can_be_trained_makes_a_control(storage: optuna.storages.RDBStorage, grid: StudyConfig):
    ledger = Ledger(grid, open_arms(grid, "study", storage, DIGESTS))
    for _ in grid.control.learning_rates:
        assert ledger.propose("a")
        ledger.record("a", TrialFailure(reason="Diverged: the loss is nan at step 3"))
        ledger.finish("a")
    lower, lowest = 3.33e-4, 1.11e-4
    assert run_control(ledger, {lower: 5.0, lowest: 6.0}) == [lower, lowest]
    assert (ledger.done(), ledger.hopeless) == (True, "")


def test_a_control_goes_on_beyond_its_rates_and_knows_again_where_it_was(
    storage: optuna.storages.RDBStorage, grid: StudyConfig
):
    fids = {1e-3: 5.0, 3e-3: 4.0, 9e-3: 3.0, 0.027: 6.0}

    def ledger() -> Ledger:
        return Ledger(grid, open_arms(grid, "study", storage, DIGESTS))

    assert run_control(ledger(), fids) == [1e-3, 3e-3, 9e-3, 0.027]
    again = ledger()
    assert again.done()
    assert again.propose("b") is None
    assert "found 5 of 5 trials ended" in again.found()


def test_a_search_that_has_ended_waits_for_what_the_control_shows(
    storage: optuna.storages.RDBStorage, grid: StudyConfig
):
    ledger = Ledger(grid, open_arms(grid, "study", storage, DIGESTS))
    for name, fid in (("a", 5.0), ("b", 4.0), ("c", 9.0)):
        assert ledger.propose(name)
        ledger.record(name, at_rung(10, 10, fid))
    ledger.finish("a")
    ledger.finish("c")
    assert ledger.propose("d") is None
    assert ledger.undecided()  # b may be the best, and is the largest
    ledger.finish("b")
    assert not ledger.done()
    further = ledger.propose("d")
    assert further
    assert (further.arm, further.params, further.planned) == ("control", {"learning_rate": 9e-3}, 3)


def test_a_rate_that_waited_when_the_driver_was_killed_is_tried_once(
    storage: optuna.storages.RDBStorage, grid: StudyConfig
):
    control = open_arms(grid, "study", storage, DIGESTS)[0]
    for fid in (5.0, 4.0):
        trial = control.propose([])
        assert trial
        control.study.tell(trial, fid)
    control.study.enqueue_trial({"learning_rate": 9e-3}, skip_if_exists=True)
    again = open_arms(grid, "study", storage, DIGESTS)[0]
    assert again.planned() == 3
    trial = again.propose([])
    assert trial
    assert trial.params == {"learning_rate": 9e-3}
    assert again.propose([]) is None
    assert len(again.study.trials) == 3


def test_fresh_noise_says_anew_whether_the_best_lies_inside(
    storage: optuna.storages.RDBStorage, make_config: MakeStudy
):
    config = make_config(control={"learning_rates": list(RATES)})
    control = open_arms(config, "study", storage, DIGESTS)[0]

    def end_next(cost: float) -> None:
        trial = control.propose([])
        assert trial
        control.study.tell(trial, cost)

    for cost in (5.0, 4.0, 6.0):
        end_next(cost)
    assert control.propose([]) is None
    control.keep_fresh({0: 5.0, 1: 4.5, 2: 4.0})
    assert (control.planned(), control.rates()) == (4, dict(zip(RATES, (5.0, 4.5, 4.0), strict=True)))
    end_next(4.5)
    assert control.ended()[-1].params == {"learning_rate": 9e-3}
    # The new one has no score on fresh noise yet: rungs are compared with rungs.
    assert (control.planned(), control.rates()[3e-3]) == (4, 6.0)
    control.keep_fresh({0: 5.0, 1: 4.5, 2: 4.0, 3: 4.2})
    assert (control.planned(), control.rates()[3e-3], control.propose([])) == (4, 4.0, None)


def test_without_widening_the_control_is_that_of_its_rates(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    config = make_config(control={"learning_rates": [1e-3, 3e-3], "widen": 0})
    control = open_arms(config, "study", storage, DIGESTS)[0]
    while trial := control.propose([]):
        control.study.tell(trial, -trial.params["learning_rate"])
    assert [t.state for t in control.study.trials] == [TrialState.COMPLETE] * 2


def test_how_far_baselines_widen_may_change_under_one_name(storage: optuna.storages.RDBStorage, make_config: MakeStudy):
    open_arms(make_config(), "study", storage, DIGESTS)
    open_arms(make_config(control={"widen": 9}, score={"widen_guidance": 9}), "study", storage, DIGESTS)


SPACE = {
    "lambda": {"low": 1, "high": 100},
    "learning_rate": {"low": 1e-4, "high": 1e-2},
    "dropout": {"low": 0, "high": 0.5, "log": False},
    "epochs": {"low": 1, "high": 4, "log": False},
}


def settings_of(edges: Sequence[Edge]) -> list[str]:
    return [edge.setting for edge in edges]


@pytest.mark.parametrize(
    ("changes", "settings"),
    [
        ({}, []),
        ({"lambda": 99.0}, ["search.space.lambda.high=1000"]),
        (
            {"lambda": 1.1, "learning_rate": 1e-2},
            ["search.space.lambda.low=0.1", "search.space.learning_rate.high=0.1"],
        ),
        ({"learning_rate": 1.08e-4}, ["search.space.learning_rate.low=1e-05"]),
        ({"dropout": 0.001}, []),  # there is nothing below 0
        ({"dropout": 0.5}, ["search.space.dropout.high=0.75"]),
        ({"epochs": 1}, []),
        ({"epochs": 4}, ["search.space.epochs.high=6"]),
    ],
)
def test_a_winner_at_an_end_of_its_range_is_told_with_the_setting_that_widens_it(
    changes: Mapping[str, float], settings: list[str], make_config: MakeStudy
):
    config = make_config(search={"space": SPACE, "first_points": []})
    found = edges_of_search(config, {"lambda": 10.0, "learning_rate": 1e-3, "dropout": 0.2, "epochs": 2, **changes})
    assert settings_of(found) == settings
    assert not any(edge.continues for edge in found)


def test_a_narrow_range_is_widened_all_the_same():
    narrow = Range(low=100, high=101, log=False)
    assert (further_end(narrow, "low", False), further_end(narrow, "high", False)) == (99.5, 101.5)


def test_a_control_at_the_end_of_its_rates_is_told(make_config: MakeStudy):
    config, costs = make_config(control={"learning_rates": list(RATES)}), {1e-4: 5.0, 1e-3: 4.0, 3e-3: 3.0}
    assert edge_of_control(config, 1e-3, costs, RATES, beats_base=True) == ()
    (edge,) = edge_of_control(config, 3e-3, costs, RATES, beats_base=False)
    assert (edge.end, edge.low, edge.high, edge.setting, edge.continues) == (
        "high",
        1e-4,
        3e-3,
        "control.widen=6",
        True,
    )
    assert edge_of_control(config, 3e-3, {**costs, 9e-3: math.inf}, RATES, beats_base=True) == ()
    # The rungs found the middle, fresh noise the end: further rates must be named.
    (edge,) = edge_of_control(config, 3e-3, {1e-4: 5.0, 1e-3: 2.9, 3e-3: 3.0}, RATES, beats_base=True)
    assert (edge.setting, edge.continues) == ("control.learning_rates=[0.0001,0.001,0.003,0.009]", False)
    chosen_low = {1e-4: 3.0, 1e-3: 2.9, 3e-3: 3.0}
    (edge,) = edge_of_control(config, 1e-4, chosen_low, RATES, beats_base=True)
    assert edge.setting == "control.learning_rates=[1e-05,0.0001,0.001,0.003]"
    # Ever smaller rates come to the base, which the table has.
    assert edge_of_control(config, 1e-4, chosen_low, RATES, beats_base=False) == ()


def test_the_largest_scale_of_several_is_told(make_config: MakeStudy):
    config = make_config()
    assert settings_of(edge_of_guidance(config, 3.0, (1.5, 3.0))) == ["score.widen_guidance=6"]
    assert edge_of_guidance(config, 1.5, (1.5, 3.0)) == ()
    assert edge_of_guidance(config, 1.5, (1.5,)) == ()


def test_every_setting_that_is_told_can_be_given():
    config = load_config(find_space("digits_s"))
    told = [
        *edges_of_search(config, {"lambda": 0.5, "learning_rate": 0.02}),
        *edge_of_guidance(config, 3.0, config.score.guidance_scales),
        *edge_of_control(
            config, 3e-4, {3e-4: 5.0, 1e-3: 4.0, 3e-3: 6.0}, config.control.learning_rates, beats_base=True
        ),
        *edge_of_control(
            config, 3e-3, {3e-4: 5.0, 1e-3: 4.0, 3e-3: 3.0}, config.control.learning_rates, beats_base=True
        ),
    ]
    wider = load_config(find_space("digits_s"), settings_of(told))
    assert wider.search.space["lambda"].low < 0.5
    assert wider.search.space["learning_rate"].high > 0.02
    assert wider.score.widen_guidance > config.score.widen_guidance
    assert wider.control.widen > config.control.widen
    assert min(wider.control.learning_rates) < 3e-4
