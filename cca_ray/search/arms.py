"""The arms of a study of one size: trials of one kind each, in an Optuna study of their own; what each tries next."""

import itertools
import math
import warnings
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cca_ray.config import PATHS, Range, StudyConfig, Train, same, without_others
from cca_ray.contracts import Prospect
from cca_ray.registry import METRICS, SAMPLERS
from cca_ray.search.gp_sampler import prospect
from cca_ray.search.learning import (
    Lessons,
    earlier_of,
    learn,
    learnt_by,
    nearest_first,
    no_lessons,
    usable,
)
from cca_ray.search.records import ENDED, PARAMETERS, ArmName, end_of
from cca_ray.search.samplers import Distribution, Earlier, Question, Sampler
from cca_ray.search.widening import next_rate

# Of `search`: what is tried, what goes on and when it ends, which change no trial's result.
CHOOSING = ("sampler", "random_trials", "rungs", "stop_when", "learn_from")
TRIES = 20  # draws for a point that has not been run
MOST_POINTS = 10_000  # of a space of whole numbers, of which no more than all are tried
# Settings that came after version 0.1.0, whose studies do not say them: where they are not used, none does.
ADDED = {"data": ("order",), "score": ("metrics", "guidance_power", "last_temperature")}
FRESH = "costs_on_fresh_noise"  # attribute of a control: by trial
FID = ("fid",)  # what every arm but the search minimizes, where it is measured


@dataclass(frozen=True)
class Smaller:
    """A smaller size of the family, whose study is done: its name, what it found best, its number of parameters."""

    size: str
    best: Mapping[str, float]
    parameters: int


WarmStart = Callable[[], Sequence[Smaller]]  # those that are done by now, the last one first


def no_warm_start() -> Sequence[Smaller]:
    return ()


def distribution(train: Train, name: str, bounds: Range) -> Distribution:
    if train.is_whole(name):
        return IntDistribution(math.ceil(bounds.low), math.floor(bounds.high), log=bounds.log)  # inward
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log)


def metrics_of_others(searched: Sequence[str], measured: Collection[str]) -> tuple[str, ...]:
    """What every arm but the search minimizes: FID or, where it is not measured, the metric that chooses."""
    return FID if FID[0] in measured else tuple(searched[:1])


def space_of(config: StudyConfig) -> dict[str, Distribution]:
    """What is searched."""
    return {key: distribution(config.train, key, bounds) for key, bounds in config.search.space.items()}


def draw(trial: optuna.Trial, name: str, values: Distribution) -> None:
    """Give the trial a value of this name, unless it has one."""
    if isinstance(values, IntDistribution):
        trial.suggest_int(name, values.low, values.high, log=values.log)
    else:
        trial.suggest_float(name, values.low, values.high, log=values.log)


@dataclass(frozen=True)
class Arm:
    """Trials of one kind: the search, the control's few learning rates, or finalists trained again.

    `metrics`: what it minimizes. `rungs`: shares of a trial where it is scored. `parameters`: of the model. `widen`:
    how many learning rates may be tried beyond the first ones, which are `given`. `learnt`: from earlier studies.
    """

    name: ArmName
    study: optuna.Study
    storage: optuna.storages.BaseStorage  # of `study`, which does not tell it
    space: Mapping[str, Distribution]
    trials: int
    metrics: tuple[str, ...] = FID
    sampler: str = "random"  # where no points wait, of which other arms have as many as trials
    seed: int = 0
    random_trials: int | None = None
    rungs: tuple[float, ...] = (1.0,)
    parameters: int = 1
    smaller: WarmStart = no_warm_start
    learnt: Sequence[Earlier] = ()
    given: tuple[float, ...] = ()
    widen: int = 0

    def propose(self, interrupted: list[int]) -> optuna.Trial | None:
        """An interrupted trial, by its number, if there is one, else a new one within the number, else None.

        A new one's settings first wait in the storage: who is killed in between finds them there.
        """
        begun = self.begun()
        if interrupted:
            return self.taken_up(interrupted.pop(0))
        if begun >= self.trials:
            if (further := self.beyond()) is None:
                return None
            self.study.enqueue_trial({"learning_rate": further}, skip_if_exists=True)
        for size in self.smaller():
            self.study.enqueue_trial(within(self.space, size.best), skip_if_exists=True)
        trials = self.study.get_trials(deepcopy=False)
        if not any(t.state == TrialState.WAITING for t in trials):
            self.study.enqueue_trial(self.next_point(trials, begun))
        return self.drawn(self.study.ask())

    def drawn(self, trial: optuna.Trial) -> optuna.Trial:
        """With a value of every setting. One that it has none of, as where a smaller size did not search it, is random.

        By the trial's number and the setting's name, so that a study that was killed in between draws the same.
        """
        for name, values in self.space.items():
            seed = zlib.crc32(f"{self.seed} {trial.number} {name}".encode())
            self.study.sampler = optuna.samplers.RandomSampler(seed)
            draw(trial, name, values)
        return trial

    def rates(self) -> dict[float, float]:
        """Cost by learning rate, of those that have ended; infinite where the trial failed.

        By the last rung, until all that were completed have been scored on the fresh noise that chooses among them.
        """
        ended = [t for t in self.ended() if "learning_rate" in t.params]
        costs = {t.number: math.inf if t.value is None else t.value for t in ended}
        fresh = {int(number): cost for number, cost in self.study.user_attrs.get(FRESH, {}).items()}
        if all(number in fresh for number, cost in costs.items() if cost < math.inf):
            costs |= fresh
        return {t.params["learning_rate"]: costs[t.number] for t in ended}

    def keep_fresh(self, costs: Mapping[int, float]) -> None:
        """The cost of every completed trial on the fresh noise that chooses."""
        self.study.set_user_attr(FRESH, {str(number): cost for number, cost in costs.items()})

    def beyond(self) -> float | None:
        """The learning rate to be tried next, where the best so far is at an end; None while others are at work."""
        if not self.widen or self.ended(TrialState.RUNNING):
            return None
        return next_rate(self.rates(), self.given, self.widen)

    def planned(self) -> int:
        """How many trials it has, as far as is known."""
        begun = len(self.ended(*ENDED, TrialState.RUNNING)) if self.widen else 0
        return max(self.trials, begun + (begun >= self.trials and self.beyond() is not None))

    def hopeless(self) -> str:
        """That no learning rate of the control could be trained, without which no study ends; empty if not known."""
        if not self.given:  # the search; it is asked often, and the storage is spared
            return ""
        return self.none_completed() if len(self.ended(TrialState.FAIL)) >= self.planned() else ""

    def none_completed(self) -> str:
        """What to tell of it if no trial was completed."""
        remedy = "Narrow the space, or raise --trials"
        if self.given:
            low = min([*self.given, *self.rates()])
            remedy = f"Try other rates, such as --fresh --set control.learning_rates=[{low / 10:.3g},{low / 3:.3g}]"
        told = "no trial was completed; their reasons are above and in MLflow"
        return f"{self.study.study_name}: {told}. {remedy}"

    def next_point(self, trials: Sequence[FrozenTrial], begun: int) -> dict[str, float]:
        """What the sampler proposes; if that has been run, what it proposes with another seed."""
        sampler: Sampler = SAMPLERS.get(self.sampler)
        point: dict[str, float] = {}
        for again in range(TRIES):
            point = within(self.space, sampler.propose(self.question(trials, begun, again)))
            if not has_run(point, trials):
                return point
        # Of a few whole numbers nearly all have been run.
        return next((other for other in whole_points(self.space) if not has_run(other, trials)), point)

    def question(self, trials: Sequence[FrozenTrial], number: int, again: int = 0) -> Question:
        """Seeded by the trial's number, so that a study that is taken up again does not repeat its first draws.

        `again`: how often what was proposed had been run.
        """
        return Question(
            trials=trials,
            space=self.space,
            metrics=self.metrics,
            rungs=self.rungs,
            number=number,
            seed=(1000 * self.seed + number + 500 * again) % 2**32,
            random_trials=self.random_trials,
            earlier=[*self.learnt, *(found for size in self.smaller() if (found := self.earlier(size)))],
        )

    def prospect(self) -> Prospect | None:
        """What another trial should bring, by all that is known now."""
        return prospect(self.question(self.study.get_trials(deepcopy=False), self.begun()))

    def earlier(self, smaller: Smaller) -> Earlier | None:
        """The trials of a smaller size, from the same storage; None if it searched by another objective."""
        name = f"{self.study.study_name.rsplit('/', 2)[0]}/{smaller.size}/{self.name}"
        study = optuna.load_study(study_name=name, storage=self.storage)
        ours, theirs = (some.user_attrs["memory"] for some in (self.study, study))
        if ours["train"]["objective"] != theirs["train"]["objective"]:
            return None
        rungs = tuple(rung["at"] for rung in theirs["rungs"])
        trials = [t for t in study.get_trials(deepcopy=False) if usable(t, self.space, self.metrics)]
        return Earlier(trials, rungs, math.log2(self.parameters / smaller.parameters))

    def taken_up(self, number: int) -> optuna.Trial:
        """The trial of this number that was interrupted. What it already has stays; only what is missing is drawn.

        Optuna's cache must have met it, as by `get_trials`.
        """
        study_id = self.storage.get_study_id_from_name(self.study.study_name)
        trial_id = self.storage.get_trial_id_from_study_id_trial_number(study_id, number)
        return self.drawn(optuna.Trial(self.study, trial_id))

    def begun(self) -> int:
        """How many trials were, which is the number of the next."""
        return sum(t.state != TrialState.WAITING for t in self.study.get_trials(deepcopy=False))

    def ended(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or ENDED)


def within(space: Mapping[str, Distribution], point: Mapping[str, float]) -> dict[str, float]:
    """The point without what is not searched, and what is outside put on the edge; whole numbers are rounded.

    Optuna would keep another number than the trial is trained with.
    """
    inside = {
        name: min(max(value, space[name].low), space[name].high) for name, value in point.items() if name in space
    }
    return {name: round(value) if isinstance(space[name], IntDistribution) else value for name, value in inside.items()}


def whole_points(space: Mapping[str, Distribution]) -> list[dict[str, float]]:
    """All points of a space of a few whole numbers; none of any other space."""
    ranges = [range(values.low, values.high + 1) for values in space.values() if isinstance(values, IntDistribution)]
    if len(ranges) < len(space) or math.prod(map(len, ranges)) > MOST_POINTS:
        return []
    return [dict(zip(space, point, strict=True)) for point in itertools.product(*ranges)]


def has_run(point: Mapping[str, float], trials: Sequence[FrozenTrial]) -> bool:
    """Whether a trial has these settings, to nine digits."""
    return any(t.params.keys() == point.keys() and all(same(t.params[k], point[k]) for k in point) for t in trials)


def lost(points: Sequence[dict[str, float]], trials: Sequence[FrozenTrial]) -> list[dict[str, float]]:
    """Those of the points whose trials all failed, and not by diverging.

    None as long as any trial waits: it may be of such a point.
    """
    if any(t.state == TrialState.WAITING for t in trials):
        return []
    failed = [t for t in trials if t.state == TrialState.FAIL and "Diverged" not in end_of(t)[1]]
    others = [t for t in trials if t not in failed]
    return [point for point in points if has_run(point, failed) and not has_run(point, others)]


def trials_of(arms: Iterable[Arm]) -> list[FrozenTrial]:
    """All that were begun."""
    return [trial for arm in arms for trial in arm.ended(*ENDED, TrialState.RUNNING)]


def cost_names(metrics: Sequence[str]) -> list[str]:
    """What Optuna minimizes, as optuna-dashboard shows it."""
    found = [METRICS.get(name) for name in metrics]
    return [metric.label if metric.lower_is_better else f"-{metric.label}" for metric in found]


def has_begun(storage: optuna.storages.BaseStorage, name: str) -> bool:
    """Whether this size's search was opened once, to its end: its first points wait then, or have been tried."""
    if f"{name}/search" not in optuna.get_all_study_names(storage):
        return False
    return "memory" in optuna.load_study(study_name=f"{name}/search", storage=storage).user_attrs


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
    # Version 0.1.0 wrote parameters of all objectives, and how it chose.
    search = {name: value for name, value in before["search"].items() if name not in CHOOSING}
    before = {**before, "train": without_others(before["train"]), "search": search}
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
    smaller: WarmStart = no_warm_start,
    parameters: int = 1,
    lessons: Lessons = no_lessons,
    measured: Collection[str] = (),
) -> list[Arm]:
    """Create or load control and search. What smaller sizes found comes after the first points, or once it is known.

    `digests` name what lies in the files: base, tokens and protocol. `parameters`: how many the model has. `lessons`:
    what is learnt from earlier studies, before the search begins and never again; their best points are first points.
    `measured`: names of metrics; by default those of `score.metrics`.
    """
    search, rates, memory = config.search, config.control.learning_rates, memory_of(config, digests)
    space, size = space_of(config), f"{name}/{config.name}"
    if has_begun(storage, size):
        learnt = learnt_by(storage, size)
    else:
        learnt = learn(storage, size, search.learn_from, lessons, space, search.metrics)
    points = [*search.first_points, *(within(space, found.best) for found in nearest_first(learnt.sizes, parameters))]
    widen = config.control.widen if len(rates) > 1 else 0  # one alone is someone's choice, not a grid
    beyond = (max(rates) / min(rates)) ** widen  # no step is wider than all of them
    control = Range.model_construct(low=min(rates) / beyond, high=max(rates) * beyond, log=True)
    control_space = {"learning_rate": distribution(config.train, "learning_rate", control)}

    metrics, of_control = search.metrics, metrics_of_others(search.metrics, measured or config.score.metrics)
    given = [{"learning_rate": rate} for rate in rates]
    controls = open_arm(storage, size, "control", control_space, given, memory, of_control)
    trials = min(search.trials, len(whole_points(space)) or search.trials)
    searched = open_arm(storage, size, "search", space, points, memory, metrics)
    if PARAMETERS not in searched.user_attrs:  # for those who learn from it before it has a summary
        searched.set_user_attr(PARAMETERS, parameters)
    return [
        Arm("control", controls, storage, control_space, len(rates), of_control, given=rates, widen=widen),
        Arm(
            "search",
            searched,
            storage,
            space,
            trials,
            metrics,
            search.sampler,
            search.seed,
            search.random_trials,
            tuple(rung.at for rung in config.rungs),
            parameters,
            smaller,
            earlier_of(storage, size, learnt, parameters),
        ),
    ]


def memory_of(config: StudyConfig, digests: Mapping[str, str]) -> Mapping[str, object]:
    """What must not change under one name: everything but budget and placement, which change no result.

    Files count by what is in them, wherever they lie. As JSON, for Optuna's storage.
    """
    content = config.model_dump(mode="json", by_alias=True)
    content["placement"] = {"precision": config.placement.precision}
    budget = {"search": ("trials", "max_concurrent", "replicates", *CHOOSING), "control": ("widen",)}
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
