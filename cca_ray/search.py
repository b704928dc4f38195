"""The study of one model size: Ray Tune runs the trials, the Optuna study is the memory.

Every decision goes through `Ledger`: what to run next, whether a trial goes on at a rung, in which state it
ended.  It writes to Optuna's durable storage and to MLflow; `Proposer` and `Rungs` are Tune's view of it.
Running the same study again keeps finished trials and takes up the interrupted ones.
"""

import logging
import math
import os
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import optuna
import ray
from optuna.distributions import BaseDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util import ActorPool

from cca_ray.config import PATHS, Range, StudyConfig, Train
from cca_ray.models import Model, digest_of_weights, parameters
from cca_ray.parallel import Group
from cca_ray.placement import accumulation, micro_batch_size, worker_resources
from cca_ray.reference import making, missing_parts, parts_of
from cca_ray.tokens import TokenSet
from cca_ray.tracking import Tracker
from cca_ray.trial import FAILURE, TableMaker, run_trial, score_checkpoint, trial_folder, trial_resources
from cca_ray.worker import (
    METRICS,
    Job,
    Scored,
    load_base,
    load_tokens,
    reference_key,
    required,
    scoring_of,
    total_steps,
)

ArmName = Literal["search", "control"]
Say = Callable[[str], None]
PAIRING = {"null_ratio", "seed"}  # what the pairs, and so the reference's table, depend on
SAY_EVERY_S = 10.0


def distribution(name: str, bounds: Range) -> BaseDistribution:
    if Train.model_fields[name if name != "lambda" else "lambda_"].annotation is int:
        return IntDistribution(round(bounds.low), round(bounds.high), log=bounds.log)
    return FloatDistribution(bounds.low, bounds.high, log=bounds.log)


def readable(params: Mapping[str, float]) -> str:
    """`λ=3.1 lr=2.0e-03 ...`, as people speak of trials."""
    short = {"lambda": "λ", "learning_rate": "lr"}
    return " ".join(
        f"{short.get(name, name)}={value:.1e}" if name == "learning_rate" else f"{short.get(name, name)}={value:.3g}"
        for name, value in params.items()
    )


@dataclass(frozen=True)
class Arm:
    """Trials of one kind: the search, or the control's few learning rates."""

    name: ArmName
    study: optuna.Study
    space: dict[str, BaseDistribution]
    trials: int
    seed: int
    random_trials: int

    def propose(self, interrupted: list[int]) -> optuna.Trial | None:
        """An interrupted trial if there is one, else a new one within the budget, else None."""
        trials = self.study.get_trials(deepcopy=False)
        if interrupted:
            trial = optuna.Trial(self.study, trials[interrupted.pop(0)]._trial_id)
            for name, values in self.space.items():  # what it already has stays; only what is missing is drawn
                trial._suggest(name, values)
            return trial
        begun = sum(t.state != TrialState.WAITING for t in trials)
        if begun >= self.trials:
            return None
        # Seeded by the trial's number, so that a study that is taken up again does not repeat its first draws.
        self.study.sampler = optuna.samplers.TPESampler(
            seed=(1000 * self.seed + begun) % 2**32, n_startup_trials=self.random_trials, constant_liar=True
        )
        return self.study.ask(self.space)

    def ended(self) -> list[optuna.trial.FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL))


def open_arms(config: StudyConfig, name: str, storage: optuna.storages.BaseStorage) -> list[Arm]:
    """Create or load both studies. First points and control rates wait in the storage, in order."""
    search = config.search
    rates = config.control.learning_rates
    control_space = {"learning_rate": Range.model_construct(low=min(rates), high=max(rates), log=True)}
    plans: list[tuple[ArmName, dict[str, Range], int, list[dict[str, float]]]] = [
        ("control", control_space, len(rates), [{"learning_rate": rate} for rate in rates]),
        ("search", search.space, search.trials, [dict(point) for point in search.first_points]),
    ]
    arms = []
    for arm, space, trials, points in plans:
        study = optuna.create_study(storage=storage, study_name=f"{name}/{config.name}/{arm}", load_if_exists=True)
        distributions = {key: distribution(key, bounds) for key, bounds in space.items()}
        if "config" not in study.user_attrs:
            for point in points:
                study.enqueue_trial(point, skip_if_exists=True)
            study.set_user_attr("config", memory_of(config))
        elif study.user_attrs["config"] != memory_of(config):
            raise ValueError(
                f"study {name}/{config.name} exists with other settings: "
                f"{difference(study.user_attrs['config'], config)}; use another --name"
            )
        arms.append(Arm(arm, study, distributions, trials, search.seed, search.random_trials))
    return arms


def memory_of(config: StudyConfig) -> dict[str, Any]:
    """What must not change under one name: everything but budget and placement, which change no result."""
    content = config.model_dump(mode="json", by_alias=True)
    content["placement"] = {"precision": config.placement.precision}
    for key in ("trials", "max_concurrent"):
        del content["search"][key]
    if config.base.embedded is not None:  # made from the settings that are kept here, wherever its files lie
        for section, keys in PATHS.items():
            for key in keys:
                del content[section][key]
    return content


def difference(before: dict[str, Any], config: StudyConfig) -> str:
    """The first setting that differs, with both values."""

    def flat(tree: Any, prefix: str = "") -> dict[str, Any]:
        if not isinstance(tree, dict):
            return {prefix: tree}
        return {k: v for key, value in tree.items() for k, v in flat(value, f"{prefix}.{key}".lstrip(".")).items()}

    old, new = flat(before), flat(memory_of(config))
    key = next(key for key in {**old, **new} if old.get(key) != new.get(key))
    return f"{key} was {old.get(key)}, is {new.get(key)}"


@dataclass
class Running:
    """A trial in Tune's hands."""

    arm: Arm
    trial: optuna.Trial
    run_id: str
    label: str
    logged: int  # the last step whose metrics MLflow has
    rungs: set[int]  # steps of those it has passed
    value: float | None = None  # the score at the last rung
    pruned: bool = False
    error: str = ""  # why the trial failed
    lost: str = ""  # how its process was last lost


def goes_on(value: float, others: list[float], keep: float, grace: int) -> bool:
    """Asynchronous successive halving's rule at a rung: within the best share `keep` of all scored there so far.

    The first `grace` trials always go on: a rule on fewer would stop good trials by luck.
    """
    scores = sorted([value, *others])
    return len(scores) <= grace or value <= scores[math.ceil(len(scores) * keep) - 1]


def placement_tags(config: StudyConfig, train: Train) -> dict[str, str]:
    """How the global batch is cut."""
    placement = config.placement
    if train.global_batch % (placement.workers * (placement.micro_batch or 1)):
        return {"workers": str(placement.workers)}  # cannot be cut: the trial will say so
    return {"workers": str(placement.workers), "accumulation": str(accumulation(placement, train.global_batch))}


class Ledger:
    """The study of one size, as it happens: Optuna, MLflow and the terminal say the same."""

    def __init__(self, config: StudyConfig, arms: list[Arm], tracker: Tracker, parent: str, key: str, say: Say):
        self.config, self.arms, self.tracker, self.parent, self.key, self.say = config, arms, tracker, parent, key, say
        self.running: dict[str, Running] = {}
        self.interrupted = {
            arm.name: [t.number for t in arm.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))]
            for arm in arms
        }

    def propose(self, trial_id: str) -> tuple[Train, str] | None:
        """The next fine-tuning and the key of its folder; None when both arms are done."""
        for arm in self.arms:
            trial = arm.propose(self.interrupted[arm.name])
            if trial is None:
                continue
            values: dict[str, Any] = dict(trial.params)
            if arm.name == "control":
                values["objective"] = "finetune"
            key = f"{self.config.name}-{arm.name}-{trial.number:04d}"
            train = self.config.train_with(values)
            tags = {"arm": arm.name, "size": self.config.name, "family": self.config.base.family}
            run_id = self.tracker.run(f"{self.key}/{key}", self.name_of(arm, trial), self.parent, tags)
            self.tracker.params(run_id, train.model_dump(by_alias=True))
            self.tracker.tags(run_id, placement_tags(self.config, train))  # may change when a study goes on
            trial.set_user_attr("key", key)
            trial.set_user_attr("mlflow_run_id", run_id)
            label = f"{self.config.name}  {arm.name} {trial.number + 1}/{arm.trials}  {readable(trial.params)}"
            passed = set(arm.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
            self.running[trial_id] = Running(arm, trial, run_id, label, self.tracker.last_step(run_id), passed)
            return train, key
        return None

    def name_of(self, arm: Arm, trial: optuna.Trial) -> str:
        return f"control {readable(trial.params)}" if arm.name == "control" else readable(trial.params)

    def record(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        """Take a report; False stops the trial. A report that was seen before, as after a resume, changes nothing."""
        running = self.running[trial_id]
        if FAILURE in result:
            running.error = result[FAILURE]
            return True
        step, new = result["step"], result["step"] > running.logged
        rows = {
            row[0]: dict(zip(METRICS, row[1:], strict=True)) for row in result["history"] if row[0] > running.logged
        }
        if running.arm.name == "control":  # has no pairs
            rows = {at: {"loss": row["loss"]} for at, row in rows.items()}
        if new and result["images_per_second"]:
            rows.setdefault(step, {})["images_per_second"] = result["images_per_second"]
        if new and "fid" in result:
            rows.setdefault(step, {}).update(fid=result["fid"], inception_score=result["inception_score"])
            self.tracker.tags(running.run_id, {"protocol": result["protocol"]})
            self.tracker.image(running.run_id, "samples", result["grid"], step)
        self.tracker.metrics(running.run_id, rows)
        running.logged = max(running.logged, step)
        if "fid" not in result:
            self.say(f"{running.label}  step {step}/{result['total_steps']}")
            return True
        if step >= result["total_steps"]:
            running.value = float(result["fid"])
        if step in running.rungs:
            return True
        running.rungs.add(step)
        return self.at_rung(running, step, result)

    def at_rung(self, running: Running, step: int, result: Mapping[str, Any]) -> bool:
        fid, total, search = float(result["fid"]), result["total_steps"], self.config.search
        trials = running.arm.study.get_trials(deepcopy=False)
        # By the rung's number, not its step: trials may differ in length, but at a rung all have as many samples.
        rung = sum(passed < step for passed in running.rungs)
        others = [
            t.intermediate_values[sorted(t.intermediate_values)[rung]]
            for t in trials
            if len(t.intermediate_values) > rung and t.number != running.trial.number
        ]
        running.trial.report(fid, step)
        running.trial.set_user_attr("protocol", result["protocol"])
        end = ""
        if step >= total:
            end = f"  best so far {min([fid, *(t.value for t in trials if t.value is not None)]):.2f}"
        elif running.arm.name == "search" and not goes_on(fid, others, self.share(rung), search.grace_trials):
            running.pruned, end = True, "  stopped"
        self.say(f"{running.label}  step {step}/{total}  fid {fid:.2f} ({result['samples']} samples){end}")
        return not running.pruned

    def share(self, rung: int) -> float:
        """Of the trials at this rung, how many go on."""
        keep = self.config.rungs[min(rung, len(self.config.rungs) - 1)].keep
        return self.config.search.keep if keep is None else keep

    def finish(self, trial_id: str, lost: bool = False) -> None:
        """Write the true final state to MLflow, then to Optuna, whose open trials are taken up again.

        `lost`: its process died more often than it may.

        A trial that neither failed nor was stopped nor reached its last rung was interrupted from outside:
        it stays open in Optuna, to be taken up when the study is run again.
        """
        running = self.running.pop(trial_id, None)
        if running is None:
            return
        study, number = running.arm.study, running.trial.number
        error = running.error or (lost and (running.lost or "lost its process")) or ""
        if error:
            running.trial.set_user_attr("reason", error)
            self.tracker.end(running.run_id, "FAIL", error)
            study.tell(number, state=TrialState.FAIL)
            self.say(f"{running.label}  FAILED: {error}")
        elif running.pruned:
            self.tracker.end(running.run_id, "PRUNED", "not among the best at a rung")
            study.tell(number, state=TrialState.PRUNED)
        elif running.value is not None:
            self.tracker.end(running.run_id, "COMPLETE")
            study.tell(number, running.value)
        else:
            self.tracker.end(running.run_id, "INTERRUPTED")
            self.say(f"{running.label}  interrupted")

    def close(self) -> None:
        """Leave no run RUNNING, whatever ended the study."""
        for trial_id in list(self.running):
            self.finish(trial_id)

    def done(self) -> bool:
        """Whether every planned trial has ended."""
        return all(len(arm.ended()) >= arm.trials for arm in self.arms)


class Proposer(Searcher):
    """Tune's searcher: asks the ledger. Its memory is Optuna's storage, so it has no state of its own to save."""

    def __init__(self, ledger: Ledger, job_of: Callable[[Train, str], Job]):
        super().__init__()
        self.ledger, self.job_of = ledger, job_of

    def suggest(self, trial_id: str) -> Any:
        proposal = self.ledger.propose(trial_id)
        return {"job": self.job_of(*proposal).packed()} if proposal else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        self.ledger.finish(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        pass


class Rungs(FIFOScheduler):
    """Tune's scheduler: passes every report to the ledger, which decides."""

    def __init__(self, ledger: Ledger):
        super().__init__()
        self.ledger = ledger

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        known = trial.trial_id in self.ledger.running
        return (
            TrialScheduler.CONTINUE if not known or self.ledger.record(trial.trial_id, result) else TrialScheduler.STOP
        )

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process was lost; Tune may start it again. Tune keeps each loss as a header line and a message."""
        running = self.ledger.running.get(trial.trial_id)
        if running is not None and trial.error_file and Path(trial.error_file).exists():
            losses = Path(trial.error_file).read_text().split("Failure # ")
            running.lost = f"lost its process: {losses[-1].splitlines()[1]}"


@dataclass(frozen=True)
class Contender:
    """A model in the final comparison."""

    checkpoint: str | None
    guidance_scale: float
    params: dict[str, float]
    number: int = -1


@dataclass(frozen=True)
class SizeResult:
    """The outcome for one size: scores on fresh noise, and the first images of each, with the same noise."""

    summary: dict[str, Any]
    images: dict[str, Any]


def start_ray(show_workers: bool = False) -> None:
    """Connect to the cluster that the environment names, or start one here; its chatter stays in its log files."""
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables; with verbose=0 it then prints nothing
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # CSV and JSON copies of what Optuna keeps
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ray.init(logging_level=logging.ERROR, log_to_driver=show_workers)


def run_trials(
    config: StudyConfig, ledger: Ledger, table: Path | None, storage: Path, trainable: Any = run_trial
) -> None:
    """Hand the ledger's proposals to Ray Tune until there are none. `trainable` runs one."""

    def job_of(train: Train, key: str) -> Job:
        return Job(config, train, trial_folder(storage, key), table)

    alone = config.placement.workers == 1
    tune.Tuner(
        tune.with_resources(trainable, trial_resources(config.placement)),
        tune_config=tune.TuneConfig(
            search_alg=Proposer(ledger, job_of),
            scheduler=Rungs(ledger),
            num_samples=-1,
            max_concurrent_trials=config.search.max_concurrent,
            reuse_actors=alone,  # with nested workers, reuse hangs when a trial is stopped
        ),
        run_config=tune.RunConfig(
            name=config.name,
            storage_path=str(storage.resolve() / "tune"),
            failure_config=tune.FailureConfig(max_failures=config.placement.max_failures),
            verbose=0,
        ),
    ).fit()


def as_worker(task: Any, config: StudyConfig, **options: int) -> Any:
    """A Ray task or actor that holds what one worker of a trial holds."""
    resources = worker_resources(config.placement)
    return task.options(num_cpus=resources["CPU"], num_gpus=resources.get("GPU", 0), **options)


def compare(config: StudyConfig, arms: list[Arm], storage: Path) -> tuple[dict[str, Contender], dict[str, Scored], str]:
    """Base, guided base, control and winner, chosen on one fresh noise and scored on another.

    Returns the contenders, their scores and the guidance-free protocol's id. Raises ValueError if all trials failed.
    """
    by_name = {arm.name: arm for arm in arms}

    def finished(arm: ArmName, most: int) -> list[Contender]:
        trials = by_name[arm].study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        best = sorted(trials, key=lambda t: (t.value, t.number))[:most]
        if not best:
            raise ValueError(
                f"{config.name}: no trial of the {arm} was completed; their reasons are above and in MLflow"
            )
        paths = [str(trial_folder(storage, t.user_attrs["key"]) / "model.pt") for t in best]
        return [Contender(path, 1.0, dict(t.params), t.number) for path, t in zip(paths, best, strict=True)]

    candidates = {
        "base": [Contender(None, 1.0, {})],
        "guided": [Contender(None, scale, {}) for scale in config.score.guidance_scales],
        "control": finished("control", len(config.control.learning_rates)),
        "cca": finished("search", config.score.finalists),
    }
    packed = Job(config, config.train, storage).packed()
    task = as_worker(score_checkpoint, config)

    def scores(contenders: list[Contender], seed: int) -> list[tuple[Scored, str]]:
        samples = config.score.samples
        result: list[tuple[Scored, str]] = ray.get(
            [task.remote(packed, c.checkpoint, c.guidance_scale, samples, seed) for c in contenders]
        )
        return result

    flat = [c for contenders in candidates.values() for c in contenders if len(contenders) > 1]
    fids = {id(c): s.fid for c, (s, _) in zip(flat, scores(flat, config.score.seed + 1), strict=True)}
    chosen = {name: min(some, key=lambda c: fids.get(id(c), 0.0)) for name, some in candidates.items()}
    final = scores(list(chosen.values()), config.score.seed + 2)
    return chosen, {name: s for name, (s, _) in zip(chosen, final, strict=True)}, final[0][1]


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """The study's SQLite file. ValueError, naming it, if it cannot be used; it is never replaced."""
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{path}")
    except Exception as error:  # SQLAlchemy's many kinds
        raise ValueError(
            f"{path}: cannot be used ({type(error).__name__}); move it away, or use another --name"
        ) from None


def check_resources(config: StudyConfig) -> None:
    """ValueError if a Ray that was started here can never hold a trial. A named cluster may still grow."""
    placement = config.placement
    have = ray.cluster_resources()
    for kind, amount in worker_resources(placement).items():
        if "RAY_ADDRESS" not in os.environ and have.get(kind, 0) < amount * placement.workers:
            raise ValueError(
                f"{config.name}: placement asks for {amount * placement.workers:g} {kind}, this machine has "
                f"{have.get(kind, 0):g}; see placement.workers, placement.cpus and placement.gpus"
            )


def summarize(
    config: StudyConfig, arms: list[Arm], chosen: dict[str, Contender], scored: dict[str, Scored], model: Model
) -> dict[str, Any]:
    """What `summary.json` says of one size."""
    winner = chosen["cca"]
    ended = next(arm for arm in arms if arm.name == "search").ended()
    return {
        "size": config.name,
        "params": parameters(model),
        "fid_base": scored["base"].fid,
        "fid_guided": scored["guided"].fid,
        "guidance_scale": chosen["guided"].guidance_scale,
        "fid_control": scored["control"].fid,
        "fid_cca": scored["cca"].fid,
        "lambda": winner.params.get("lambda", config.train.lambda_),
        "learning_rate": winner.params.get("learning_rate", config.train.learning_rate),
        "trials": len(ended),
        "winner": winner.params,
        "trial": winner.number,
        "checkpoint": winner.checkpoint,
        "control_learning_rate": chosen["control"].params["learning_rate"],
    }


def run_size(config: StudyConfig, name: str, storage: Path, tracker: Tracker, say: Say) -> SizeResult:
    """Search, control and final comparison for one size. Ray must be running; the config's paths are resolved."""
    started = time.monotonic()
    # Whatever can be wrong with the files or the placement is said before anything is written.
    micro_batch_size(config.placement, config.train.global_batch)
    check_resources(config)
    model, data = load_base(config), load_tokens(required(config.data.tokens, "data.tokens"))
    scoring_of(config, Group().device)
    steps = total_steps(len(data.labels), config.train)

    arms = open_arms(config, name, open_storage(storage / "study.db"))
    memory = arms[0].study
    if "id" not in memory.user_attrs:  # tells this study from another of the same name in the same MLflow
        memory.set_user_attr("id", uuid.uuid4().hex[:8])
    key = f"{name}/{config.name}/{memory.user_attrs['id']}"
    parent = tracker.run(key, config.name, tags={"study": name, "family": config.base.family})
    state = "FAIL"
    try:
        tracker.params(
            parent,
            {
                "size": config.base.size,
                "parameters": parameters(model),
                "tokens": data.digest,
                "steps": steps,
                "space": {k: [v.low, v.high] for k, v in config.search.space.items()},
            },
        )
        say(f"{config.name}  {parameters(model):,} parameters, {len(data.labels):,} images, {steps} steps a trial")
        ledger = Ledger(config, arms, tracker, parent, key, say)
        nothing_to_do = ledger.done()
        if not nothing_to_do:
            try:
                table = reference_table(config, digest_of_weights(model), data, storage.parent / "reference", say)
                run_trials(config, ledger, table, storage)
            finally:
                ledger.close()
        if not ledger.done():  # Tune ends its own run on SIGINT and returns
            raise KeyboardInterrupt
        say(f"{config.name}  scoring base, guided base, control and finalists on fresh noise")
        chosen, scored, protocol = compare(config, arms, storage)
        state = "COMPLETE"
    except KeyboardInterrupt:
        state = "INTERRUPTED"
        raise
    finally:
        tracker.end(parent, state)
    spent = memory.user_attrs.get("seconds", 0.0)
    if not (nothing_to_do and spent):
        spent += time.monotonic() - started
        memory.set_user_attr("seconds", spent)
    summary = summarize(config, arms, chosen, scored, model)
    summary |= {"seconds": spent, "protocol": protocol, "mlflow_run_id": parent}
    fids = {f"fid_{contender}": s.fid for contender, s in scored.items()}
    tracker.metrics(parent, {steps: {**fids, "guidance_scale": chosen["guided"].guidance_scale}})
    tracker.tags(parent, {"protocol": protocol, "winner": readable(chosen["cca"].params)})
    return SizeResult(summary, {contender: s.images for contender, s in scored.items()})


def at_once(config: StudyConfig) -> int:
    """How many workers of a trial the cluster can hold now; at least one, for which it may have to grow."""
    have = ray.cluster_resources()
    return max(1, min(int(have.get(kind, 0) // amount) for kind, amount in worker_resources(config.placement).items()))


def reference_table(config: StudyConfig, base_digest: str, data: TokenSet, root: Path, say: Say) -> Path | None:
    """The folder with the reference's log-likelihoods, below `root`; what is missing is made now, on all workers.

    None where the table would have to be another for every trial: they score the reference themselves.
    """
    train, space = config.train, config.search.space
    if train.reference == "live" or PAIRING & set(space):
        return None
    epochs = round(space["epochs"].high) if "epochs" in space else train.epochs
    folder = root / reference_key(base_digest, config, train, data)
    parts = parts_of(len(data.labels), epochs)
    if not missing_parts(folder, parts):
        return folder
    with making(folder):
        missing = missing_parts(folder, parts)  # another study may have made it in the meantime
        packed = Job(config, train, root).packed()
        maker = as_worker(TableMaker, config, max_restarts=2, max_task_retries=2)
        pool = ActorPool([maker.remote(packed, str(folder)) for _ in range(min(len(missing), at_once(config)))])
        total, done, said = sum(part.stop - part.start for part in missing), 0, time.monotonic()
        for pairs in pool.map_unordered(lambda actor, part: actor.make.remote(part), missing):
            done += pairs
            if time.monotonic() - said > SAY_EVERY_S:
                say(f"{config.name}  reference: {done:,}/{total:,} pairs scored")
                said = time.monotonic()
    return folder
