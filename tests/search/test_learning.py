"""What a search keeps of earlier studies and makes of it: real Optuna storage, surfaces whose optimum is known."""

from collections.abc import Iterator, Mapping, Sequence
from typing import overload

import numpy as np
import optuna
import pytest
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from cca_ray.config import StudyConfig
from cca_ray.search.arms import Arm, open_arms
from cca_ray.search.learning import LEARNT, Learnt, Lesson, Lessons, as_ours, learnt_by, usable
from cca_ray.search.records import rung_scores
from cca_ray.search.samplers import Distribution
from tests.conftest import MakeStudy
from tests.search.ledgers import DIGESTS, score_of

SPACE = {"lambda": {"low": 1.0, "high": 100.0}, "learning_rate": {"low": 1e-4, "high": 1e-2}}
BOX: dict[str, Distribution] = {
    name: FloatDistribution(bounds["low"], bounds["high"], log=True) for name, bounds in SPACE.items()
}
WIDTHS = {"lambda": 0.5, "learning_rate": 0.3}  # decades
BEST = {"lambda": 30.0, "learning_rate": 4e-4}


def fid(params: Mapping[str, float], best: Mapping[str, float] = BEST) -> float:
    return 8 * float(np.exp(0.4 * sum((np.log10(params[n] / best[n]) / WIDTHS[n]) ** 2 for n in WIDTHS)))


def attributes(scores: Sequence[float]) -> dict[str, object]:
    """Of a trial with these FIDs at its rungs; the error of each is 1 %."""
    noise = np.linspace(-0.005, 0.005, 8)
    made = [score_of(i, {"fid": v, "inception_score": 2.0}, {"fid": list(noise * v)}) for i, v in enumerate(scores)]
    return {f"rung {i}": score.model_dump() for i, score in enumerate(made)}


def trial(
    params: Mapping[str, float],
    state: TrialState = TrialState.COMPLETE,
    scores: Sequence[float] = (26.0, 20.0),
    space: Mapping[str, Distribution] = BOX,
) -> FrozenTrial:
    value = scores[-1] if state == TrialState.COMPLETE else None
    return create_trial(
        state=state, params=dict(params), distributions=dict(space), value=value, user_attrs=attributes(scores)
    )


def lesson(best: Mapping[str, float] = BEST, seed: int = 0, parameters: int = 1000) -> Lesson:
    """Twelve trials drawn evenly; its protocol gives three times our FIDs."""
    drawn = 10 ** np.random.default_rng(seed).uniform([0, -4], [2, -2], (12, 2))
    points = [dict(zip(SPACE, map(float, row), strict=True)) for row in drawn]
    found = min(points, key=lambda point: fid(point, best))
    trials = [trial(point, scores=[3.9 * fid(point, best), 3 * fid(point, best)]) for point in points]
    return Lesson("before", "s", parameters, (0.5, 1.0), found, trials)


@pytest.fixture
def learner(make_config: MakeStudy) -> StudyConfig:
    return make_config(search={"space": SPACE, "trials": 12, "sampler": "gp", "learn_from": ["before"]})


def opened(config: StudyConfig, storage: optuna.storages.BaseStorage, lessons: Lessons, name: str = "study") -> Arm:
    """Of a model of 1000 parameters."""
    return open_arms(config, name, storage, DIGESTS, parameters=1000, lessons=lessons)[1]


def gone() -> Sequence[Lesson]:
    raise AssertionError("an earlier study is read again")


def search(arm: Arm, count: int, best: Mapping[str, float] = BEST) -> list[dict[str, float]]:
    """Its next trials, one after another."""
    tried = []
    for _ in range(count):
        asked = arm.propose([])
        assert asked is not None
        for name, value in attributes([1.3 * fid(asked.params, best), fid(asked.params, best)]).items():
            asked.set_user_attr(name, value)
        arm.study.tell(asked, fid(asked.params, best))
        tried.append(dict(asked.params))
    return tried


def moved(seed: int, decades: float) -> tuple[dict[str, float], dict[str, float]]:
    """An optimum anywhere within, and where it was in an earlier study: so far away, in any direction."""
    rng = np.random.default_rng([seed, 1])
    logs, angle = rng.uniform([0.4, -3.6], [1.6, -2.4]), rng.uniform(0, 2 * np.pi)
    before = logs + decades * np.array([np.cos(angle), np.sin(angle)])
    now, then = (dict(zip(SPACE, map(float, 10**x), strict=True)) for x in (logs, before))
    return now, then


def regrets(
    config: StudyConfig, storage: optuna.storages.BaseStorage, lessons: Lessons, seed: int, best: Mapping[str, float]
) -> float:
    """How far the best of three trials is above the optimum, as a share."""
    tried = search(opened(config, storage, lessons, f"study-{len(optuna.get_all_study_names(storage))}"), 3, best)
    return min(fid(params, best) for params in tried) / 8 - 1


@pytest.mark.parametrize("decades", [0.0, 0.15])
def test_after_a_few_trials_who_has_learnt_is_nearer_to_the_optimum(
    decades: float, learner: StudyConfig, storage: optuna.storages.RDBStorage
):
    """Than who has not; and than who was told the best point alone, which the scores beside it improve on."""
    with_, point, without = list[float](), list[float](), list[float]()
    for seed in range(4):
        best, before = moved(seed, decades)
        known = lesson(before, seed)
        told = Lesson(known.study, known.size, 1000, known.rungs, known.best, [])
        with_.append(regrets(learner, storage, lambda known=known: [known], seed, best))  # type: ignore[misc]
        point.append(regrets(learner, storage, lambda told=told: [told], seed, best))  # type: ignore[misc]
        without.append(regrets(learner, storage, lambda: [], seed, best))
    assert all(a < b for a, b in zip(with_, without, strict=True))
    assert np.mean(with_) < 0.75 * np.mean(point)


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_other_samplers_try_the_best_points_first(
    sampler: str, learner: StudyConfig, storage: optuna.storages.RDBStorage
):
    config = with_search(learner, sampler=sampler, first_points=({"lambda": 2.0, "learning_rate": 2e-3},))
    large = Lesson("before", "l", 8000, (1.0,), {"lambda": 300.0, "learning_rate": 1e-3, "beta": 0.5}, [])
    near = Lesson("before", "m", 2100, (1.0,), {"lambda": 7.0, "learning_rate": 3e-4}, [])
    arm = opened(config, storage, lambda: [large, near])
    assert search(arm, 3) == [
        {"lambda": 2.0, "learning_rate": 2e-3},
        {"lambda": 7.0, "learning_rate": 3e-4},
        {"lambda": 100.0, "learning_rate": 1e-3},
    ]
    alone = opened(with_search(config, learn_from=()), storage, gone, "alone")
    search(alone, 3)
    assert search(arm, 1)[0].keys() == search(alone, 1)[0].keys()


def with_search(config: StudyConfig, **changes: object) -> StudyConfig:
    return config.model_copy(update={"search": config.search.model_copy(update=changes)})


class Cut(Sequence[FrozenTrial]):
    """Trials of which the reader is killed in the midst."""

    def __init__(self, trials: Sequence[FrozenTrial]):
        self.trials = trials

    def __len__(self) -> int:
        return len(self.trials)

    @overload
    def __getitem__(self, index: int) -> FrozenTrial: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[FrozenTrial]: ...
    def __getitem__(self, index: int | slice) -> FrozenTrial | Sequence[FrozenTrial]:
        return self.trials[index]

    def __iter__(self) -> Iterator[FrozenTrial]:
        yield from self.trials[:5]
        raise KeyboardInterrupt


def test_a_kill_while_it_learns_and_the_loss_of_the_earlier_study_change_nothing(
    learner: StudyConfig, storage: optuna.storages.RDBStorage
):
    known = lesson()
    undisturbed = search(opened(learner, storage, lambda: [known], "undisturbed"), 5)
    cut = Lesson(known.study, known.size, known.parameters, known.rungs, known.best, Cut(known.trials))
    with pytest.raises(KeyboardInterrupt):
        opened(learner, storage, lambda: [cut])
    kept = f"study/{learner.name}/{LEARNT}"
    assert len(optuna.load_study(study_name=kept, storage=storage).trials) == 5
    assert learnt_by(storage, f"study/{learner.name}") == Learnt()  # what is not whole counts as nothing
    tried = search(opened(learner, storage, lambda: [known]), 1)
    assert len(optuna.load_study(study_name=kept, storage=storage).trials) == 12
    for _ in range(4):
        tried += search(opened(learner, storage, gone), 1)
    assert tried == undisturbed
    assert learnt_by(storage, f"study/{learner.name}").sizes[0].trials == 12


def test_what_was_learnt_before_the_search_began_stays_unless_other_studies_are_named(
    learner: StudyConfig, storage: optuna.storages.RDBStorage
):
    """A kill between the two: the next run finds it whole."""
    name = f"study/{learner.name}"

    def begin(config: StudyConfig, lessons: Lessons) -> None:
        opened(config, storage, lessons)
        for arm in ("search", "control"):  # as if it had been killed before
            optuna.delete_study(study_name=f"{name}/{arm}", storage=storage)

    begin(learner, lambda: [lesson()])
    begin(learner, gone)
    assert str(learnt_by(storage, name)) == "s of before (12 trials)"
    begin(with_search(learner, learn_from=("other",)), lambda: [lesson(), lesson(seed=1)])
    assert learnt_by(storage, name).named == ("other",)
    assert len(learnt_by(storage, name).sizes) == 2
    begin(with_search(learner, learn_from=()), gone)
    assert f"{name}/{LEARNT}" not in optuna.get_all_study_names(storage)


def test_a_search_that_has_begun_learns_nothing_more_and_says_so(
    learner: StudyConfig, storage: optuna.storages.RDBStorage
):
    arm = opened(learner, storage, lambda: [lesson()])
    size, other, none = (
        f"study/{learner.name}",
        with_search(learner, learn_from=("b", "c")),
        with_search(learner, learn_from=()),
    )
    for config in (other, none):
        again = opened(config, storage, gone)
        assert again.question([], 0).earlier == arm.question([], 0).earlier
        assert len(again.question([], 0).earlier[0].trials) == 12
    learnt = learnt_by(storage, size)
    assert learnt.told(("before",)) == "learnt from s of before (12 trials)"
    assert learnt.told(("b", "c")) == (
        "search.learn_from is b, c now, but this search began with what it learnt from s of before (12 trials); "
        "see --fresh"
    )
    assert "learn_from is empty now" in learnt.told(())
    assert Learnt().told(()) == ""
    assert Learnt().told(("b",)).endswith("began with what it learnt from nothing; see --fresh")


def test_another_study_is_further_away_than_another_size(learner: StudyConfig, storage: optuna.storages.RDBStorage):
    arm = opened(learner, storage, lambda: [lesson(parameters=250), lesson(parameters=0)])
    assert [one.doublings for one in arm.question([], 0).earlier] == [6.0, 4.0]


def test_only_trials_with_scores_at_such_settings_teach():
    point = {"lambda": 30.0, "learning_rate": 1e-3}
    assert usable(trial(point), BOX, ["fid"])
    assert usable(trial(point, TrialState.PRUNED, [30.0]), BOX, ["fid"])
    assert usable(trial(point, TrialState.FAIL, [30.0]), BOX, ["fid"])
    assert not usable(trial(point, TrialState.FAIL, []), BOX, ["fid"])
    assert not usable(trial(point, TrialState.RUNNING), BOX, ["fid"])
    assert not usable(trial(point), BOX, ["fid", "kid"])
    assert not usable(trial(point), {**BOX, "beta": FloatDistribution(0, 1)}, ["fid"])
    diverged = trial(point, TrialState.PRUNED, [30.0])
    diverged.user_attrs["rung 0"]["values"]["fid"] = float("inf")
    assert not usable(diverged, BOX, ["fid"])
    linear = {**BOX, "lambda": FloatDistribution(0, 100)}
    assert not usable(trial({**point, "lambda": 0.0}, space=linear), BOX, ["fid"])  # has no place on a log scale


def test_a_trial_is_kept_in_the_terms_of_the_search_that_learns(storage: optuna.storages.RDBStorage):
    """Outside its range, with a whole number, without an axis that it does not search, and by its own metric."""
    theirs: dict[str, Distribution] = {
        "lambda": FloatDistribution(1, 1000, log=True),
        "epochs": IntDistribution(1, 9),
        "beta": FloatDistribution(0, 1),
    }
    ours: dict[str, Distribution] = {"lambda": BOX["lambda"], "epochs": IntDistribution(2, 4)}
    found = trial({"lambda": 300.0, "epochs": 8, "beta": 0.5}, space=theirs)
    kept = as_ours(found, 3, ours, ["inception_score", "fid"])
    study = optuna.create_study(storage=storage, directions=["minimize"] * 2)
    study.add_trial(kept)
    (kept,) = study.trials
    assert kept.params == {"lambda": 300.0, "epochs": 8}
    assert kept.values == [-2.0, 20.0]
    assert kept.user_attrs["lesson"] == 3
    assert rung_scores(kept) == rung_scores(found)
