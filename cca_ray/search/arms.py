"""The arms of a study of one size: trials of one kind each, in an Optuna study of their own; what each tries next."""

import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cca_ray.config import PATHS, Range, StudyConfig, Train, same, without_others
from cca_ray.registry import METRICS
from cca_ray.search.records import ENDED, ArmName
from cca_ray.search.widening import next_rate

Distribution = FloatDistribution | IntDistribution
WarmStart = Callable[[], Iterable[Mapping[str, float]]]  # the best settings that smaller sizes have found so far
TRIES = 20  # draws for a point that has not been run
MOST_POINTS = 10_000  # of a space of whole numbers, of which no more than all are tried
# Settings that came after version 0.1.0, whose studies do not say them: where they are not used, none does.
ADDED = {"data": ("order",), "score": ("metrics", "guidance_power", "last_temperature")}
FID = ("fid",)  # what every arm but the search minimizes


def no_warm_start() -> Iterable[Mapping[str, float]]:
    return ()


def distribution(train: Train, name: str, bounds: Range) -> Distribution:
    if train.is_whole(name):
        return IntDistribution(math.ceil(bounds.low), math.floor(bounds.high), log=bounds.log)  # inward
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log)


def draw(trial: optuna.Trial, name: str, values: Distribution) -> None:
    """Give the trial a value of this name, unless it has one."""
    if isinstance(values, IntDistribution):
        trial.suggest_int(name, values.low, values.high, log=values.log)
    else:
        trial.suggest_float(name, values.low, values.high, log=values.log)


@dataclass(frozen=True)
class Arm:
    """Trials of one kind: the search, the control's few learning rates, or finalists trained again.

    `metrics`: what it minimizes. `warm_start_points`: settings to be tried next, once each. `widen`: how many learning
    rates may be tried beyond the first ones, which are `given`.
    """

    name: ArmName
    study: optuna.Study
    storage: optuna.storages.BaseStorage  # of `study`, which does not tell it
    space: Mapping[str, Distribution]
    trials: int
    metrics: tuple[str, ...] = FID
    seed: int = 0
    random_trials: int = 0
    warm_start_points: WarmStart = no_warm_start
    given: tuple[float, ...] = ()
    widen: int = 0

    def propose(self, interrupted: list[int]) -> optuna.Trial | None:
        """An interrupted trial, by its number, if there is one, else a new one within the number, else None."""
        begun = sum(t.state != TrialState.WAITING for t in self.study.get_trials(deepcopy=False))
        if interrupted:
            return self.taken_up(interrupted.pop(0))
        if begun >= self.trials:
            if (further := self.beyond()) is None:
                return None
            self.study.enqueue_trial({"learning_rate": further}, skip_if_exists=True)
        for known in self.warm_start_points():
            self.study.enqueue_trial(dict(known), skip_if_exists=True)
        trials = self.study.get_trials(deepcopy=False)
        waiting = any(t.state == TrialState.WAITING for t in trials)
        if not waiting and (point := self.instead(trials, begun)) is not None:
            self.study.enqueue_trial(point)
        self.study.sampler = self.sampler(begun, 0)
        return self.study.ask(dict(self.space))

    def rates(self) -> dict[float, float]:
        """Cost by learning rate, of those that have ended; infinite where the trial failed."""
        ended = [t for t in self.ended() if "learning_rate" in t.params]
        return {t.params["learning_rate"]: math.inf if t.value is None else t.value for t in ended}

    def beyond(self) -> float | None:
        """The learning rate to be tried next, where the best so far is at an end; None while others are at work."""
        if not self.widen or self.ended(TrialState.RUNNING):
            return None
        return next_rate(self.rates(), self.given, self.widen)

    def planned(self) -> int:
        """How many trials it has, as far as is known."""
        begun = len(self.ended(*ENDED, TrialState.RUNNING)) if self.widen else 0
        return max(self.trials, begun + (begun >= self.trials and self.beyond() is not None))

    def instead(self, trials: Sequence[FrozenTrial], begun: int) -> dict[str, float] | None:
        """A point to be run next, where the sampler would propose one that has been run; else None."""
        for again in range(TRIES):
            point = self.drawn(trials, self.sampler(begun, again))
            if not has_run(point, trials):
                return point if again else None
        # Of a few whole numbers nearly all have been run.
        return next((point for point in whole_points(self.space) if not has_run(point, trials)), None)

    def sampler(self, begun: int, again: int) -> optuna.samplers.TPESampler:
        """Seeded by the trial's number, so that a study that is taken up again does not repeat its first draws.

        `again`: how often its draw was one that has been run.
        """
        seed = (1000 * self.seed + begun + 500 * again) % 2**32
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.random_trials, constant_liar=True)

    def drawn(self, trials: Sequence[FrozenTrial], sampler: optuna.samplers.BaseSampler) -> dict[str, float]:
        """What the sampler would propose after these trials; the study does not change."""
        twin = optuna.create_study(directions=self.study.directions, sampler=sampler)
        twin.add_trials(trials)
        return twin.ask(dict(self.space)).params

    def taken_up(self, number: int) -> optuna.Trial:
        """The trial of this number that was interrupted. What it already has stays; only what is missing is drawn.

        Optuna's cache must have met it, as by `get_trials`.
        """
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        trial = optuna.Trial(self.study, trial_id)
        for name, values in self.space.items():
            draw(trial, name, values)
        return trial

    def ended(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or ENDED)


def whole_points(space: Mapping[str, Distribution]) -> list[dict[str, float]]:
    """All points of a space of a few whole numbers; none of any other space."""
    ranges = [range(values.low, values.high + 1) for values in space.values() if isinstance(values, IntDistribution)]
    if len(ranges) < len(space) or math.prod(map(len, ranges)) > MOST_POINTS:
        return []
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*ranges)]


def has_run(point: Mapping[str, float], trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial has these settings, to nine digits."""
    return any(t.params.keys() == point.keys() and all(same(t.params[k], point[k]) for k in point) for t in trials)


def trials_of(arms: Iterable[Arm]) -> list[FrozenTrial]:
    """All that were begun."""
    return [trial for arm in arms for trial in arm.ended(*ENDED, TrialState.RUNNING)]


def cost_names(metrics: Sequence[str]) -> list[str]:
    """What Optuna minimizes, as optuna-dashboard shows it."""
    found = [METRICS.get(name) for name in metrics]
    return [metric.label if metric.lower_is_better else f"-{metric.label}" for metric in found]


def open_arm(
    storage: optuna.storages.BaseStorage,
    name: str,
    arm: ArmName,
    space: Mapping[str, Distribution],
    points: Iterable[Mapping[str, float]],
    memory: Mapping[str, object],
    metrics: Sequence[str] = FID,
) -> optuna.Study:
    """Create a study, whose first points wait in the storage in order, or load it.

    ValueError if one of this name exists with another `memory`, naming the first difference.
    """
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(metrics)
    study = optuna.create_study(storage=storage, study_name=f"{name}/{arm}", load_if_exists=True, directions=directions)
    if "memory" not in study.user_attrs:
        for point in points:
            study.enqueue_trial({key: point[key] for key in space if key in point}, skip_if_exists=True)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.set_metric_names(cost_names(metrics))
        study.set_user_attr("memory", dict(memory))
        return study
    before = study.user_attrs["memory"]
    before = {**before, "train": without_others(before["train"])}  # version 0.1.0 wrote parameters of all objectives
    if before != memory:
        raise ValueError(
            f"study {name} exists with other settings: {difference(before, memory)}; use another --name, or --fresh"
        )
    return study


def open_arms(
    config: StudyConfig,
    name: str,
    storage: optuna.storages.BaseStorage,
    digests: Mapping[str, str],
    warm_start_points: WarmStart = no_warm_start,
) -> list[Arm]:
    """Create or load control and search. Warm-start points come after the first points, or as soon as they are known.

    `digests` name what lies in the files: base, tokens and protocol.
    """
    search, rates, memory = config.search, config.control.learning_rates, memory_of(config, digests)
    space = {key: distribution(config.train, key, bounds) for key, bounds in search.space.items()}
    widen = config.control.widen if len(rates) > 1 else 0  # one alone is someone's choice, not a grid
    beyond = (max(rates) / min(rates)) ** widen  # no step is wider than all of them
    control = Range.model_construct(low=min(rates) / beyond, high=max(rates) * beyond, log=True)
    control_space = {"learning_rate": distribution(config.train, "learning_rate", control)}

    def within() -> list[dict[str, float]]:
        return [
            {k: min(max(v, search.space[k].low), search.space[k].high) for k, v in point.items() if k in search.space}
            for point in warm_start_points()
        ]

    name, metrics = f"{name}/{config.name}", search.metrics
    controls = open_arm(storage, name, "control", control_space, [{"learning_rate": r} for r in rates], memory)
    trials = min(search.trials, len(whole_points(space)) or search.trials)
    searched = open_arm(storage, name, "search", space, search.first_points, memory, metrics)
    return [
        Arm("control", controls, storage, control_space, len(rates), given=rates, widen=widen),
        Arm("search", searched, storage, space, trials, metrics, search.seed, search.random_trials, within),
    ]


def memory_of(config: StudyConfig, digests: Mapping[str, str]) -> Mapping[str, object]:
    """What must not change under one name: everything but budget and placement, which change no result.

    Files count by what is in them, wherever they lie. As JSON, for Optuna's storage.
    """
    content = config.model_dump(mode="json", by_alias=True)
    content["placement"] = {"precision": config.placement.precision}
    budget = {"search": ("trials", "max_concurrent", "replicates"), "control": ("widen",)}
    for section, keys in {**PATHS, **budget}.items():
        for key in keys:
            content[section].pop(key)
    content["score"].pop("widen_guidance")
    content["pretrain"] = config.pretrain.content
    content["score"].pop("trust_torchscript")  # the file itself counts
    for section, keys in ADDED.items():
        for key in keys:
            part = getattr(config, section)
            if getattr(part, key) == type(part).model_fields[key].default:
                content[section].pop(key)
    content.pop("plugins")
    if used := config.plugins_used():
        content["plugins"] = {info.module: f"{info.version} {info.digest}".lstrip() for info in used}
    return {**content, "files": dict(digests)}


def difference(before: Mapping[str, object], now: Mapping[str, object]) -> str:
    """The first setting of two memories that differs, with both values."""

    def flat(tree: object, prefix: str = "") -> dict[str, object]:
        if not isinstance(tree, Mapping):
            return {prefix: tree}
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}

    old, new = flat(before), flat(now)
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return f"{key} was {old.get(key)}, is {new.get(key)}"
