"""The memory of a study of one size: what to run next, whether a trial goes on at a rung, in which state it ended.

Every decision goes through `Ledger`, which writes it to Optuna's durable storage, to MLflow and to the terminal.
Running the same study again keeps the trials that have ended and takes up the interrupted ones.
"""

import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from cca_ray.cluster.placement import devices, ways
from cca_ray.config import PATHS, Range, StudyConfig, Train
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.search.records import ENDED, ArmName, readable
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import here
from cca_ray.tracking.store import DataSet
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.loop import METRICS
from cca_ray.training.trial import FAILURE, STUCK

Say = Callable[[str], None]
Taught = Callable[[], Iterable[Mapping[str, float]]]  # what smaller sizes have found best so far
STORAGE_ERRORS = (OSError, SQLAlchemyError, optuna.exceptions.StorageInternalError)
COSTS = {  # what Optuna minimizes, by `search.metric`
    "fid": ["FID"],
    "inception_score": ["-inception score"],
    "both": ["FID", "-inception score"],
}
FIRST_LINE = 300  # characters of a reason
NEVER_RAN = "The actor never ran"  # in Ray's words, of a process that it could not start


def nothing_taught() -> Iterable[Mapping[str, float]]:
    return ()


def distribution(name: str, bounds: Range) -> BaseDistribution:
    if Train.model_fields[name if name != "lambda" else "lambda_"].annotation is int:
        return IntDistribution(round(bounds.low), round(bounds.high), log=bounds.log)
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log)


@dataclass(frozen=True)
class Arm:
    """Trials of one kind: the search, the control's few learning rates, or finalists trained again.

    `taught`: settings to be tried next, once each.
    """

    name: ArmName
    study: optuna.Study
    space: dict[str, BaseDistribution]
    trials: int
    seed: int = 0
    random_trials: int = 0
    taught: Taught = nothing_taught

    def propose(self, interrupted: list[int]) -> optuna.Trial | None:
        """An interrupted trial if there is one, else a new one within the number, else None."""
        trials = self.study.get_trials(deepcopy=False)
        if interrupted:
            trial = optuna.Trial(self.study, trials[interrupted.pop(0)]._trial_id)
            for name, values in self.space.items():  # what it already has stays; only what is missing is drawn
                trial._suggest(name, values)
            return trial
        begun = sum(t.state != TrialState.WAITING for t in trials)
        if begun >= self.trials:
            return None
        for point in self.taught():
            self.study.enqueue_trial(dict(point), skip_if_exists=True)
        # Seeded by the trial's number, so that a study that is taken up again does not repeat its first draws.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=(1000 * self.seed + begun) % 2**32, n_startup_trials=self.random_trials, constant_liar=True
        )
        return self.study.ask(self.space)

    def ended(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states or ENDED)


def open_arm(
    storage: optuna.storages.BaseStorage,
    name: str,
    arm: ArmName,
    space: Mapping[str, BaseDistribution],
    points: Iterable[Mapping[str, float]],
    memory: Mapping[str, Any],
    metric: str = "fid",
) -> optuna.Study:
    """Create a study, whose first points wait in the storage in order, or load it.

    ValueError if one of this name exists with another `memory`, naming the first difference.
    """
    costs = COSTS[metric]
    directions = [optuna.study.StudyDirection.MINIMIZE] * len(costs)
    study = optuna.create_study(storage=storage, study_name=f"{name}/{arm}", load_if_exists=True, directions=directions)
    if "memory" not in study.user_attrs:
        for point in points:
            study.enqueue_trial({key: point[key] for key in space if key in point}, skip_if_exists=True)
        with warnings.catch_warnings(action="ignore", category=optuna.exceptions.ExperimentalWarning):
            study.set_metric_names(costs)  # as optuna-dashboard shows them
        study.set_user_attr("memory", dict(memory))
    elif study.user_attrs["memory"] != memory:
        raise ValueError(
            f"study {name} exists with other settings: {difference(study.user_attrs['memory'], memory)}; "
            "use another --name, or --fresh"
        )
    return study


def open_arms(
    config: StudyConfig,
    name: str,
    storage: optuna.storages.BaseStorage,
    digests: Mapping[str, str],
    taught: Taught = nothing_taught,
) -> list[Arm]:
    """Create or load control and search. What is `taught` is tried after the first points, or as soon as it is known.

    `digests` name what lies in the files: base, tokens and protocol.
    """
    search, rates, memory = config.search, config.control.learning_rates, memory_of(config, digests)
    space = {key: distribution(key, bounds) for key, bounds in search.space.items()}
    control = Range.model_construct(low=min(rates), high=max(rates), log=True)
    control_space = {"learning_rate": distribution("learning_rate", control)}

    def within() -> list[dict[str, float]]:
        return [
            {k: min(max(v, search.space[k].low), search.space[k].high) for k, v in point.items() if k in search.space}
            for point in taught()
        ]

    name = f"{name}/{config.name}"
    controls = open_arm(storage, name, "control", control_space, [{"learning_rate": r} for r in rates], memory)
    searched = open_arm(storage, name, "search", space, search.first_points, memory, search.metric)
    return [
        Arm("control", controls, control_space, len(rates)),
        Arm("search", searched, space, search.trials, search.seed, search.random_trials, within),
    ]


def memory_of(config: StudyConfig, digests: Mapping[str, str]) -> dict[str, Any]:
    """What must not change under one name: everything but budget and placement, which change no result.

    Files count by what is in them, wherever they lie.
    """
    content = config.model_dump(mode="json", by_alias=True)
    content["placement"] = {"precision": config.placement.precision}
    for section, keys in {**PATHS, "search": ("trials", "max_concurrent", "replicates")}.items():
        for key in keys:
            content[section].pop(key)
    content.pop("plugins")
    if used := config.plugins_used():
        content["plugins"] = {info.module: f"{info.version} {info.digest}".lstrip() for info in used}
    return {**content, "files": dict(digests)}


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The first setting that differs, with both values."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(tree, Mapping):
            return {prefix: tree}
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}

    old, new = flat(before), flat(now)
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return f"{key} was {old.get(key)}, is {new.get(key)}"


@dataclass(frozen=True)
class Mark:
    """A trial's score at a rung: FID and -IS, or one of them, less is better; [M].

    `without` [G, M]: the same without each group of the jackknife.
    """

    costs: np.ndarray
    without: np.ndarray

    @staticmethod
    def of(result: Mapping[str, Any], metric: str) -> "Mark":
        """From a report at a rung."""
        rows = np.array([[result["fid"], result["inception_score"]], *result["without"]]) * [1, -1]
        rows = rows[:, {"fid": [0], "inception_score": [1], "both": [0, 1]}[metric]]
        return Mark(rows[0], rows[1:])

    def surely_better(self, other: "Mark") -> bool:
        """No worse in any metric, and in one better by more than two standard errors of the difference.

        All trials are scored on the same noise, so the error of a difference is that of paired samples.
        """
        errors = [jackknife_error(column) for column in (self.without - other.without).T]
        ahead = other.costs - self.costs
        return bool((ahead >= 0).all() and (ahead > 2 * np.array(errors)).any())


def goes_on(mark: Mark, others: list[Mark], keep: float, grace: int) -> bool:
    """The rule at a rung: among the best share `keep` of all scored there so far, or not to be told from them.

    Asynchronous successive halving's (Li et al. 2020), but a trial stops only if enough others are surely better.
    The first `grace` trials always go on: a rule on fewer would stop good trials by luck.
    """
    count = len(others) + 1
    return count <= grace or sum(other.surely_better(mark) for other in others) < math.ceil(count * keep)


@dataclass
class Limits:
    """What the search of one size may use; what the final comparison needs is kept back from it."""

    seconds: float = math.inf  # of wall time, from `started` on
    device_seconds: float = math.inf  # of all its trials, over all runs of the command
    started: float = field(default_factory=time.monotonic)


@dataclass
class Running:
    """A trial in Tune's hands."""

    arm: Arm
    trial: optuna.Trial
    train: Train
    key: str
    label: str
    rungs: set[int]  # steps of those it has passed
    seconds: float = 0.0
    device_seconds: dict[str, float] = field(default_factory=dict)  # by type of card
    where: tuple[str, int, int] | None = None  # type of card, workers, micro-batch
    costs: list[float] | None = None  # at the last rung
    pruned: bool = False
    step: int = 0  # of its last report, as the next three
    total: int = 0  # steps; 0 before the first report
    images_per_second: float = 0.0
    reported: float = field(default_factory=time.time)
    fid: float | None = None  # at the last rung that it has passed
    error: str = ""  # why the trial failed
    lost: str = ""  # how its process was last lost

    @property
    def name(self) -> str:
        """`λ=3.1 lr=2.0e-03`, and what it is if it is no trial of the search."""
        kind = "" if self.arm.name == "search" else f"{self.arm.name} "
        return kind + readable(self.trial.params)


def not_shown(ledger: "Ledger") -> bool:
    """Where nothing shows how the study stands."""
    return False


class Ledger:
    """The study of one size, as it happens: Optuna, MLflow and the terminal say the same.

    `key`: of the size's MLflow run, which begins with the study's name. `data_set`: what MLflow shall say it trains on.
    `show` is told of every change; where it shows the trials' steps, it returns True, and no lines tell of them.
    """

    def __init__(
        self,
        config: StudyConfig,
        arms: list[Arm],
        tracker: Tracker,
        key: str,
        say: Say,
        limits: Limits | None = None,
        data_set: DataSet | None = None,
        show: "Show" = not_shown,
    ):
        self.config, self.arms, self.tracker, self.key, self.say = config, arms, tracker, key, say
        self.limits, self.data_set, self.show = limits or Limits(), data_set, show
        self.base_grid: Path | None = None  # the base's samples: step 0 of every trial
        self.running: dict[str, Running] = {}
        self.interrupted = {arm.name: [t.number for t in arm.ended(TrialState.RUNNING)] for arm in arms}
        self.halted_at = math.inf  # since when nothing more is begun, by the monotonic clock
        self.stuck = ""  # why, if it is no one's wish
        self.on_halt: list[Callable[[], None]] = []
        self.on_write: list[Callable[[], None]] = []  # after every write to the storage
        self.used_up = False

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Tune pickles what it is given, for a restore that is never asked for: Optuna's storage is the memory."""
        return type(None), ()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A storage that cannot be written stops the study; what was not written is done again by the next run."""
        try:
            yield
            for kept in self.on_write:
                kept()
        except STORAGE_ERRORS as error:
            self.halt(stuck=reason_of(error))

    @property
    def halted(self) -> bool:
        return self.halted_at < math.inf

    def halt(self, stuck: str = "") -> None:
        """Begin nothing more, and let the running trials write their checkpoints."""
        self.stuck = self.stuck or stuck
        if not self.halted:
            self.halted_at = time.monotonic()
            for ask in self.on_halt:
                ask()

    def propose(self, trial_id: str) -> Running | None:
        """The next fine-tuning; None when all arms are done, the budget is used up or the study is stopping."""
        with self.writing():
            for arm in self.arms:
                if self.halted:
                    return None
                if not self.interrupted[arm.name] and arm.name == "search" and not self.affordable(arm):
                    continue
                trial = arm.propose(self.interrupted[arm.name])
                if trial is not None:
                    return self.begin(trial_id, arm, trial)
        return None

    def begin(self, trial_id: str, arm: Arm, trial: optuna.Trial) -> Running:
        values: dict[str, Any] = dict(trial.params)
        if arm.name == "control":
            values["objective"] = "finetune"
        key = f"{self.config.name}-{arm.name}-{trial.number:04d}"
        train = self.config.train_with(values)
        label = f"{self.config.name}  {arm.name} {trial.number + 1}/{arm.trials}  {readable(trial.params)}"
        frozen = arm.study.get_trials(deepcopy=False)[trial.number]
        running = Running(arm, trial, train, key, label, {mark["step"] for mark in marks_of(frozen)})
        trial.set_user_attr("key", key)
        self.running[trial_id] = running
        self.tracker.run(self.run_of(running), running.name, self.key, self.tags_of(running))
        self.tracker.params(self.run_of(running), train.model_dump(by_alias=True))
        if self.data_set:
            self.tracker.data_set(self.run_of(running), self.data_set)
        if self.base_grid:
            self.tracker.image(self.run_of(running), "samples", self.base_grid, 0)
        self.show(self)
        return running

    def tags_of(self, running: Running) -> dict[str, str]:
        """What people filter trials by in MLflow. The size's own run has no `size`: a filter by it finds only these."""
        data = {"dataset": self.data_set.name} if self.data_set else {}
        return {
            "study": self.key.split("/")[0],
            "size": self.config.name,
            "family": self.config.base.family,
            "arm": running.arm.name,
            "objective": running.train.objective,
            "seed": str(running.train.seed),
            **data,
        }

    def run_of(self, running: Running) -> str:
        """The key of its MLflow run."""
        return f"{self.key}/{running.key}"

    def record(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take a report; False stops the trial. A report that was seen before, as after a resume, changes nothing."""
        running = self.running[trial_id]
        if STUCK in result:
            self.halt(stuck=result[STUCK])
        running.error = result.get(FAILURE, "")
        if STUCK in result or FAILURE in result:
            return True
        running.seconds, running.device_seconds = result["seconds"], dict(result["device_seconds"])
        running.step, running.total, running.reported = result["step"], result["total_steps"], time.time()
        running.images_per_second = result["images_per_second"] or running.images_per_second
        running.fid = result.get("fid", running.fid)
        with self.writing():
            self.track(running, result)
            shown = self.show(self)
            if result["stopped"]:
                return False
            if "fid" not in result:
                if not shown:
                    self.say(f"{running.label}  step {result['step']}/{result['total_steps']}")
                return True
            return self.at_rung(running, result)
        return True

    def track(self, running: Running, result: Mapping[str, Any]) -> None:
        """Hand a report to MLflow. The scores at the last rung are those of a model: its weights are kept."""
        run, step = self.run_of(running), result["step"]
        rows = {row[0]: dict(zip(METRICS, row[1:], strict=True)) for row in result["history"]}
        if running.train.objective == "finetune":  # has no pairs
            rows = {at: {"loss": row["loss"]} for at, row in rows.items()}
        now = rows.setdefault(step, {})
        if result["images_per_second"]:
            now["images_per_second"] = result["images_per_second"]
        now |= {f"system/{name}": value for name, value in result.get("load", ())}
        if "gpu_memory_gib" in result:
            now["gpu_memory_gib"] = result["gpu_memory_gib"]
        if "fid" in result:
            scores = {"fid": result["fid"], "is": result["inception_score"]}
            pull(grid := here(result["grid"]))
            self.tracker.image(run, "samples", grid, step)
            self.tracker.tags(run, {"protocol": result["protocol"]})
            if self.data_set and step >= result["total_steps"]:
                name, params = f"{self.config.name} {running.name}", running.train.model_dump(by_alias=True)
                tags = {**self.tags_of(running), "protocol": result["protocol"]}
                self.tracker.model(run, name, params, tags, step, scores, self.data_set)
            else:
                now |= scores
        where = (result["accelerator"], result["workers"], result["micro_batch"])
        if where != running.where:
            if running.where is not None:
                why = "out of memory" if where[:2] == running.where[:2] else "moved"
                self.say(f"{running.label}  {why}: now {where[1]} × {where[0]}, micro-batch {where[2]}")
            running.where = where
            self.tracker.tags(run, placement_tags(running.train.global_batch, *where))
        self.tracker.metrics(run, rows)

    def at_rung(self, running: Running, result: Mapping[str, Any]) -> bool:
        """Decide; at the last rung there is nothing to decide."""
        step, total, search = result["step"], result["total_steps"], self.config.search
        metric = "fid" if running.arm.name != "search" else search.metric
        mark = Mark.of(result, metric)
        if step >= total:
            running.costs = mark.costs.tolist()
        if step in running.rungs:
            return True
        # By the rung's number, not its step: trials may differ in length, but at a rung all have as many samples.
        rung = sum(before < step for before in running.rungs)
        running.rungs.add(step)
        others = [t for t in running.arm.study.get_trials(deepcopy=False) if t.number != running.trial.number]
        marks = [Mark.of(passed[rung], metric) for t in others if len(passed := marks_of(t)) > rung]
        if len(mark.costs) == 1:  # Optuna has no intermediate values of several metrics
            running.trial.report(mark.costs[0], step)
        kept = {key: result[key] for key in ("step", "fid", "inception_score", "without", "scoring_seconds", "samples")}
        running.trial.set_user_attr("protocol", result["protocol"])
        running.trial.set_user_attr(f"rung {rung}", kept)
        for name in ("fid", "inception_score"):  # columns by which optuna-dashboard can sort
            running.trial.set_user_attr(name, result[name])
        end = ""
        if step >= total:
            best = min([result["fid"], *(marks_of(t)[-1]["fid"] for t in others if t.state == TrialState.COMPLETE)])
            end = f"  best so far {best:.2f}"
        elif running.arm.name == "search" and not goes_on(mark, marks, self.share(rung), search.grace_trials):
            running.pruned, end = True, "  stopped"
        self.say(f"{running.label}  step {step}/{total}  fid {result['fid']:.2f} ({result['samples']} samples){end}")
        return not running.pruned

    def share(self, rung: int) -> float:
        """Of the trials at this rung, how many go on."""
        keep = self.config.rungs[min(rung, len(self.config.rungs) - 1)].keep
        return self.config.search.keep if keep is None else keep

    def finish(self, trial_id: str, lost: bool = False) -> None:
        """Write the true final state to Optuna and MLflow; Optuna's open trials are taken up by the next run.

        `lost`: its process died more often than it may.

        A trial that neither failed nor was stopped at a rung nor reached its last one was interrupted from outside:
        it stays open in Optuna.
        """
        running = self.running.pop(trial_id, None)
        if running is None:
            return
        if lost and NEVER_RAN in running.lost:  # the cluster is going down: the next would fare no better
            self.halt(stuck=f"Ray cannot start a trial: {running.lost}")
        error = running.error or (lost and not self.stuck and (running.lost or "lost its process")) or ""
        with self.writing():
            run = self.run_of(running)
            if run_id := self.tracker.run_id(run):
                running.trial.set_user_attr("mlflow_run_id", run_id)
            running.trial.set_user_attr("seconds", running.seconds)
            running.trial.set_user_attr("device_seconds", running.device_seconds)
            study, number = running.arm.study, running.trial.number
            if error:
                running.trial.set_user_attr("reason", error)
                study.tell(number, state=TrialState.FAIL)
                self.say(f"{running.label}  FAILED: {error}")
            elif running.pruned:
                running.trial.set_user_attr("reason", "not among the best at a rung")
                study.tell(number, state=TrialState.PRUNED)
            elif running.costs is not None:
                study.tell(number, running.costs)
            else:
                self.say(f"{running.label}  interrupted")
            self.tracker.end(run, *end_of(study.get_trials(deepcopy=False)[number]))
            self.show(self)

    def close(self) -> None:
        """Leave no run RUNNING, whatever ended the study."""
        for trial_id in list(self.running):
            self.finish(trial_id)

    def done(self) -> bool:
        """Whether every planned trial has ended, or what may be used is used up and nothing was left half done."""
        left = [arm for arm in self.arms if len(arm.ended()) < arm.trials]
        open_trials = any(arm.ended(TrialState.RUNNING) for arm in self.arms)
        return not left or (self.used_up and not open_trials and all(arm.name == "search" for arm in left))

    def found(self) -> str:
        """What an earlier run left, in a line; empty if nothing."""
        counts = {state: sum(len(arm.ended(state)) for arm in self.arms) for state in (*ENDED, TrialState.RUNNING)}
        if not any(counts.values()):
            return ""
        ended = ", ".join(f"{counts[state]} {state.name.lower()}" for state in ENDED if counts[state])
        open_trials = counts[TrialState.RUNNING]
        return (
            f"found {sum(counts[state] for state in ENDED)} of {sum(arm.trials for arm in self.arms)} trials ended"
            f"{f' ({ended})' if ended else ''}, {open_trials} interrupted{' and taken up again' if open_trials else ''}"
        )

    def affordable(self, arm: Arm) -> bool:
        """Whether a trial more can be expected to end, and leave the share of the final comparison untouched."""
        limits = self.limits
        if not arm.ended() or (math.isinf(limits.seconds) and math.isinf(limits.device_seconds)):
            return True
        completed = [t.user_attrs for arm in self.arms for t in arm.ended(TrialState.COMPLETE)] or [{}]
        trial = float(np.mean([attrs.get("seconds", 0.0) for attrs in completed]))
        of_devices = float(np.mean([sum(attrs.get("device_seconds", {}).values()) for attrs in completed]))
        reserve = self.final_seconds()
        begun = sum(max(of_devices, sum(running.device_seconds.values())) for running in self.running.values())
        of_finals = devices(ways(self.config.placement)[0]) * reserve  # placed as they prefer
        wall = time.monotonic() - limits.started + trial + reserve
        used = sum(used_device_seconds(self.arms).values()) + begun + of_devices + of_finals
        if wall <= limits.seconds and used <= limits.device_seconds:
            return True
        if not self.used_up:
            self.used_up = True
            self.say(
                f"{self.config.name}  the budget allows no further trial; {reserve:.0f} s are kept for the finalists"
            )
        return False

    def final_seconds(self) -> float:
        """What the final comparison should take, from the time that scores at rungs took."""
        score, rungs = self.config.score, [mark for arm in self.arms for t in arm.ended() for mark in marks_of(t)]
        if not rungs:
            return 0.0
        a_sample = sum(mark["scoring_seconds"] for mark in rungs) / sum(mark["samples"] for mark in rungs)
        models = score.finalists * (1 + self.config.search.replicates)
        chosen = 1 + 2 + 1 + (2 if score.winner_guidance_scales else 0)  # base, guided (at twice the cost), control
        choosing = 2 * len(score.guidance_scales + score.winner_guidance_scales) + len(
            self.config.control.learning_rates
        )
        blocks = choosing + score.blocks * (models + chosen + models)  # the finalists to choose, then all to be shown
        return a_sample * score.samples * blocks


Show = Callable[[Ledger], bool]


def reason_of(error: BaseException) -> str:
    """What the database or the system itself said, in a line; Optuna and SQLAlchemy say it at length."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:FIRST_LINE]


def end_of(trial: FrozenTrial) -> tuple[str, str]:
    """State, as MLflow shall show it, and reason."""
    state = "INTERRUPTED" if trial.state == TrialState.RUNNING else trial.state.name
    return state, trial.user_attrs.get("reason", "")


def true_ends(key: str, arms: Iterable[Arm]) -> dict[str, tuple[str, str]]:
    """The end of every trial that has ended, by the key of its MLflow run; `key`: of the size's own run."""
    trials = (t for arm in arms for t in arm.ended() if "key" in t.user_attrs)
    return {f"{key}/{t.user_attrs['key']}": end_of(t) for t in trials}


def marks_of(trial: FrozenTrial) -> list[dict[str, Any]]:
    """What was kept of its rungs, in order."""
    names = [name for name in trial.user_attrs if name.startswith("rung ")]
    return [trial.user_attrs[name] for name in sorted(names, key=lambda name: int(name.split()[1]))]


def used_device_seconds(arms: Iterable[Arm]) -> dict[str, float]:
    """Of all trials so far, by type of card."""
    used: dict[str, float] = {}
    for trial in (t for arm in arms for t in arm.ended(*ENDED, TrialState.RUNNING)):
        for card, seconds in trial.user_attrs.get("device_seconds", {}).items():
            used[card] = used.get(card, 0.0) + seconds
    return used


def placement_tags(global_batch: int, accelerator: str, workers: int, micro_batch: int) -> dict[str, str]:
    """Where a trial runs, and how the global batch is cut there."""
    return {
        "accelerator": accelerator,
        "workers": str(workers),
        "micro_batch": str(micro_batch),
        "accumulation": str(global_batch // (workers * micro_batch)),
    }
