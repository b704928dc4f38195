"""The study of one model size: the base's log-likelihoods, the search and the control, then the final comparison.

Several sizes may run in threads of one process.
"""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import IntDistribution
from optuna.trial import FrozenTrial, TrialState

from cca_ray.cluster.machine import machine_here
from cca_ray.cluster.placement import check_cuts
from cca_ray.cluster.queue import as_worker, impossible, nodes_now
from cca_ray.cluster.stopping import Stop
from cca_ray.config import MOST_SEED, ResolvedStudy
from cca_ray.contracts import MlflowNames, Role, SizeSummary
from cca_ray.evaluation.scoring import load_base, load_tokens, protocol_of, scoring_of
from cca_ray.models.files import digest_of_weights
from cca_ray.models.official import parameters
from cca_ray.models.parallel import Group
from cca_ray.registry import metric_info
from cca_ray.search.accounts import COUNTED, TERMS, RunClock, Terms, counted
from cca_ray.search.ahead import Ahead
from cca_ray.search.arms import FRESH, Arm, WarmStart, lost, no_warm_start, open_arm, open_arms, trials_of
from cca_ray.search.budget import Limits
from cca_ray.search.cards import matters
from cca_ray.search.cleaning import WEIGHTS, best_trials
from cca_ray.search.final_comparison import (
    REMEDY,
    Outcome,
    compare,
    costs_of_controls,
    finalists,
    keep_former_winner,
    kept_blocks,
    summarize,
    weights_of,
)
from cca_ray.search.learning import Lessons, learnt_by, no_lessons
from cca_ray.search.ledger import Ledger, Say
from cca_ray.search.mlflow_listener import MlflowListener, true_ends
from cca_ray.search.mlflow_pages import (
    data_set_of,
    experiment_of,
    experiment_tags,
    registered_name,
    show_outcome,
    show_unfinished,
    view_of_trials,
)
from cca_ray.search.ray_tune import TableOf, run_trials
from cca_ray.search.records import ENDED, KEEP_S, METRICS, readable, used_device_seconds
from cca_ray.search.shared_files import BaseGrid, reference_table
from cca_ray.search.terminal_listener import Lines, LiveView, Show, not_shown
from cca_ray.search.trial_lengths import check_rungs
from cca_ray.storage.mirror import exists, pull, push_database
from cca_ray.storage.uris import database_uri, is_copy, to_uri
from cca_ray.tracking.origin import origin, versions
from cca_ray.tracking.pyfunc import Settings
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.setup import total_steps
from cca_ray.training.trial import trial_folder
from cca_ray.verdict import ties

FLUSH_S = 5.0  # how long the end of a study waits for MLflow
UPLOAD_S = 60.0  # how often a running study's times go to a URI, with all of its database
OPENING = threading.Lock()  # one size at a time: memory holds one base, and a database's tables are made once


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """The study's SQLite file. ValueError, naming it, if it cannot be used; it is never replaced."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    pull(path)
    try:
        return optuna.storages.RDBStorage(database_uri(path), engine_kwargs={"connect_args": {"timeout": 60}})
    except Exception as error:  # SQLAlchemy's many kinds
        raise ValueError(
            f"{path}: cannot be used ({type(error).__name__}); move it away, or use another --name"
        ) from None


@dataclass(frozen=True)
class StudyContext:
    """The study that a size belongs to: its name, where it lies, who is told of it and who may stop it.

    `doing`: is told, of a size, what is done before its first trial. `terms`: of the size; kept once it is finished.
    """

    name: str
    folder: Path
    tracker: Tracker
    say: Say
    show: Show = not_shown
    doing: Callable[[str, str], None] = lambda size, what: None
    stop: Stop = field(default_factory=Stop)
    terms: Terms = field(default_factory=Terms)


@dataclass(frozen=True)
class SizeResult:
    """The outcome for one size, and the first images of each model with the same noise.

    `sampling`, `tokenizer`: what its winner needs to sample.
    """

    summary: SizeSummary
    images: dict[Role, np.ndarray]
    sampling: Settings
    tokenizer: str


class SizeStudy:
    """The study of one size. Ray must be running.

    `smaller`: the sizes of the family that are done. `lessons`: what earlier studies have to teach, if it begins now.
    """

    def __init__(
        self,
        config: ResolvedStudy,
        context: StudyContext,
        limits: Limits | None = None,
        smaller: WarmStart = no_warm_start,
        lessons: Lessons = no_lessons,
    ):
        """Whatever can be wrong with the files or the placement is said before anything is written: ValueError."""
        self.config, self.context, self.limits, started = config, context, limits or Limits(), time.monotonic()
        check_cuts(config.placement, config.train.global_batch)
        check_resources(config)
        context.doing(config.name, "reading the base and the tokens")
        with OPENING:
            context.stop.check()
            model, self.data = load_base(config), load_tokens(config.data.tokens)
            check_rungs(config, len(self.data.labels))
            scoring = scoring_of(config, Group().device)
            protocol = protocol_of(config, scoring, config.score.samples)
            seeds = range(config.score.seed + 1, config.score.seed + 2 * config.score.blocks + 1)
            self.blocks = [protocol_of(config, scoring, config.score.samples, seed=seed).id for seed in seeds]
            self.digests = {"base": digest_of_weights(model), "tokens": self.data.digest, "protocol": protocol.id}
            self.parameters = parameters(model)
            del model
            self.database = context.folder / "study.db"
            self.storage = open_storage(self.database)
            self.metrics = tuple(metric_info(metric.name) for metric in scoring.metrics)
            self.measured = [metric.name for metric in self.metrics]
            about = (smaller, self.parameters, lessons, self.measured)
            self.arms = open_arms(config, context.name, self.storage, self.digests, *about)
            self.learnt = learnt_by(self.storage, f"{context.name}/{config.name}")
            self.memory = self.arms[0].study  # keeps what is known of the whole size
            self.keep_s = UPLOAD_S if is_copy(self.database) else KEEP_S
            self.clock = RunClock(self.memory, self.begun, self.keep_s, started)
        if METRICS not in self.search.study.user_attrs:  # for the report, which imports none of them
            self.search.study.set_user_attr(METRICS, [metric.model_dump() for metric in self.metrics])
        self.steps = total_steps(len(self.data.labels), config.train)
        if "id" not in self.memory.user_attrs:  # tells this study from another of the same name in the same MLflow
            self.memory.set_user_attr("id", uuid.uuid4().hex[:8])
        if not {COUNTED, FRESH} & self.memory.user_attrs.keys():
            self.memory.set_user_attr(FRESH, {})  # what was finished without it was not to be scored there
        self.id: str = self.memory.user_attrs["id"]
        self.key = f"{context.name}/{config.name}/{self.id}"  # of the size's MLflow run
        self.data_set = data_set_of(config, self.data)

    @property
    def base_id(self) -> str:
        """Names the base's weights, and the protocol under which it is sampled."""
        return f"{self.digests['base'][:8]}-{self.digests['protocol']}"

    @property
    def search(self) -> Arm:
        return next(arm for arm in self.arms if arm.name == "search")

    def begun(self) -> int:
        """How many trials there are that a finished study may yet have more of."""
        begun: dict[str, int] = {arm.name: len(trials_of([arm])) for arm in self.arms}
        begun["replicate"] = len(self.replicates())
        return counted(begun, self.arms[0].trials)

    def run(self) -> SizeResult:
        """Search, control and final comparison.

        Raises KeyboardInterrupt if it was stopped, ValueError if it cannot go on.
        """
        try:
            with self.clock:
                return self.result(self.outcome())
        finally:
            with suppress(OSError):
                push_database(self.database)

    def outcome(self) -> Outcome:
        """What the trials and the final comparison come to."""
        config, context = self.config, self.context
        again = self.replicates()
        there = [trial.params for trial in again if trial.state in ENDED]
        used = sum(used_device_seconds(again).values())
        limits = replace(self.limits, device_seconds=self.limits.device_seconds - used, replicates=config.replicates)
        ledger = Ledger(config, self.arms, limits=limits, keep_s=self.keep_s, again=there)
        self.open_mlflow_run()
        state = "FAIL"
        try:
            with context.stop.leaving(lambda: self.end_mlflow_run("INTERRUPTED")):
                outcome = self.search_and_compare(ledger)
            state = "COMPLETE"
        except KeyboardInterrupt:
            state = "INTERRUPTED"
            raise
        finally:
            self.end_mlflow_run(state)
        context.tracker.flush(FLUSH_S)
        return outcome

    def check_weights(self) -> None:
        """Say whose weights are gone, as long as nothing is trained. ValueError if the comparison cannot do without."""
        score, folder = self.config.score, self.context.folder
        control = self.arms[0].ended(TrialState.COMPLETE)
        best = best_trials(self.search.ended(TrialState.COMPLETE), score.finalists)
        gone = [t for t in (*control, *best) if not exists(weights_of(t, folder, self.id))]
        if not gone:
            return

        def blocks_of(trial: FrozenTrial) -> set[int]:
            return kept_blocks(trial.user_attrs["key"], folder, self.blocks, self.id)

        scored = {t.user_attrs["key"]: blocks_of(t) for t in gone}
        shown = set(range(score.blocks, 2 * score.blocks))  # which the best control needs; the others one to choose by
        choosing = {0} if len(self.config.control.learning_rates) > 1 else shown
        best_known = any(shown <= blocks_of(t) for t in control)
        wanted = {t.user_attrs["key"]: choosing if best_known else shown | choosing for t in control}
        # A finished study keeps its winner's weights, and the others had all the blocks that they needed.
        finished = COUNTED in self.memory.user_attrs
        of_finalists = {0, score.blocks} if finished else set(range(2 * score.blocks))
        wanted |= {t.user_attrs["key"]: of_finalists for t in best}
        if lost := [key for key, blocks in scored.items() if not wanted[key] <= blocks]:
            paths = ", ".join(to_uri(trial_folder(folder, key) / WEIGHTS) for key in lost)
            raise ValueError(f"{self.config.name}: weights that the final comparison needs are gone: {paths}; {REMEDY}")
        self.tell(f"the weights of {', '.join(scored)} are missing; their stored scores are used")

    def replicates(self) -> list[FrozenTrial]:
        """Finalists that were trained again, as far as they are begun."""
        name = f"{self.context.name}/{self.config.name}/replicate"
        if name not in optuna.get_all_study_names(self.storage):
            return []
        study = optuna.load_study(study_name=name, storage=self.storage)
        return study.get_trials(deepcopy=False, states=(*ENDED, TrialState.RUNNING))

    def search_and_compare(self, ledger: Ledger) -> Outcome:
        config, context = self.config, self.context
        self.describe_run()
        self.tell(f"{self.parameters:,} parameters, {len(self.data.labels):,} images, {self.steps} steps per trial")
        if told := self.learnt.told(config.search.learn_from):
            self.tell(told)
        if found := ledger.found():
            self.tell(found)
        self.check_weights()
        with Ahead(config, self.metrics, context.folder, context.stop, self.id) as ahead:
            if not ledger.done():
                self.run_left(ledger, ahead)
            if self.arms[0].widen and not ledger.used_up:
                self.bracket_control(ledger, ahead)
            replicates = self.replicate(ahead) if config.search.replicates else None
            context.show(ledger)
            self.tell("scoring base, guided base, control and finalists on fresh noise")
            return compare(config, self.arms, replicates, len(self.data.labels), ahead)

    def tell(self, line: str) -> None:
        """Say something of this size."""
        self.context.say(f"{self.config.name}  {line}")

    def open_mlflow_run(self) -> None:
        """The size's own run; those of its trials that a killed study had left open are closed."""
        config, tracker, key = self.config, self.context.tracker, self.key
        view = view_of_trials(config, self.context.name, self.measured)
        tracker.describe({**experiment_tags(config, self.measured), **view})
        tags = {"study": self.context.name, "family": config.base.family, "dataset": self.data_set.name}
        if self.learnt.sizes:
            tags["learnt_from"] = str(self.learnt)
        tracker.run(key, f"{self.context.name}/{config.name}", tags={**tags, **origin(), **versions()})
        tracker.data_set(key, self.data_set)
        show_unfinished(tracker, key, "Running")
        tracker.settle(key, true_ends(key, self.arms))

    def end_mlflow_run(self, state: str) -> None:
        tracker = self.context.tracker
        tracker.end(self.key, state)
        if state != "COMPLETE":
            show_unfinished(tracker, self.key, "Failed" if state == "FAIL" else "Interrupted")

    def describe_run(self) -> None:
        """What is the same for all trials of the size."""
        space = self.config.search.space
        self.context.tracker.params(
            self.key,
            {
                "model_size": self.config.base.size,
                "parameters": self.parameters,
                "tokens": self.data.digest,
                "steps": self.steps,
                **{f"space.{name}.low": bounds.low for name, bounds in space.items()},
                **{f"space.{name}.high": bounds.high for name, bounds in space.items()},
            },
        )

    def table_for(self, config: ResolvedStudy) -> Path | None:
        """The reference's log-likelihoods of this configuration's pairs. The studies beside this one share it."""
        root = self.context.folder.parent / "reference"
        self.context.doing(config.name, "scoring the pairs with the reference model")
        return reference_table(config, self.digests["base"], self.data, root, self.context.say, self.context.stop)

    def begin_grid(self) -> BaseGrid:
        return BaseGrid.begun(self.config, self.context.folder, self.base_id)

    def run_all(self, ledger: Ledger, table_of: TableOf, grid: BaseGrid, ahead: Ahead) -> None:
        """The trials that are left, with everyone told who wants to know."""
        context, config = self.context, self.config
        context.doing(config.name, "starting the trials")
        view, picture = LiveView(ledger, context.show), grid.ready(context.stop)
        mlflow = MlflowListener(context.tracker, config, self.key, self.data_set, picture)
        ledger.listeners += [view, Lines(context.say, view), mlflow]
        with ahead.beside(ledger):
            run_trials(config, ledger, table_of, context.folder, stop=context.stop)

    def bracket_control(self, ledger: Ledger, ahead: Ahead) -> None:
        """Try further learning rates while the best one on fresh noise, which is that of the table, is the last tried.

        As far as the budget allows, of which `ledger` knows. What version 0.1.0 finished, which did not look there,
        stays as it is.
        """
        control = self.arms[0]
        if FRESH not in control.study.user_attrs:
            return
        self.tell("scoring the control's learning rates on fresh noise, which chooses among them")
        while True:
            control.keep_fresh(costs_of_controls(self.config, self.arms, len(self.data.labels), ahead))
            further = Ledger(self.config, [control], keep_s=self.keep_s)
            if further.done() or not ledger.affordable(control):
                return
            self.tell("on fresh noise the control's best learning rate is at the end of what was tried: one more")
            self.run_left(further, ahead)

    def run_left(self, ledger: Ledger, ahead: Ahead) -> None:
        """The trials that are left, all with the seed of the study."""
        grid, table = self.begin_grid(), self.table_for(self.config)
        self.run_all(ledger, lambda train: table, grid, ahead)

    def replicate(self, ahead: Ahead) -> optuna.Study:
        """Train the finalists again with `search.replicates` other seeds, as trials of an arm of their own.

        What failed in an earlier run, as with a machine, is tried again; what diverged would diverge again.
        """
        config, context = self.config, self.context
        search = self.search
        seeds = [config.train.seed + 1 + r for r in range(config.search.replicates)]
        best = finalists(search, config.score.finalists, context.folder, lambda trial: 0, self.id)
        memory = dict(search.study.user_attrs["memory"])
        space = {**search.space, "seed": IntDistribution(0, MOST_SEED)}
        metrics, size = self.arms[0].metrics, f"{context.name}/{config.name}"
        study = open_arm(self.storage, size, "replicate", space, [], memory, metrics)
        wanted = [{**dict(contender.params), "seed": seed} for contender in best for seed in seeds]
        for params in lost(wanted, study.get_trials(deepcopy=False)):
            study.enqueue_trial(params)
        for params in wanted:  # those that are there already are not added again
            study.enqueue_trial(params, skip_if_exists=True)
        arm = Arm("replicate", study, self.storage, space, len(study.get_trials(deepcopy=False)), metrics)
        ledger = Ledger(config, [arm], keep_s=self.keep_s)
        context.tracker.settle(self.key, true_ends(self.key, [*self.arms, arm]))
        if not ledger.done():
            grid = self.begin_grid()
            tables = {seed: self.table_for(with_seed(config, seed)) for seed in seeds}
            self.run_all(ledger, lambda train: tables.get(train.seed), grid, ahead)
        there = [trial.params for trial in arm.ended(TrialState.COMPLETE)]
        if failed := sum(params not in there for params in wanted):
            self.tell(
                f"warning: {failed} of {len(wanted)} replicates failed; their finalists have fewer training seeds"
            )
        return study

    def result(self, outcome: Outcome) -> SizeResult:
        """What is kept of the outcome, and shown in MLflow."""
        config, tracker, folder = self.config, self.context.tracker, self.context.folder
        if outcome.winner.checkpoint != str(folder / config.name / "winner.pt"):
            keep_former_winner(self.search.ended(TrialState.COMPLETE), folder, self.id)
        self.memory.set_user_attr(TERMS, self.context.terms.model_dump(mode="json"))
        seconds = self.clock.finish()
        push_database(self.database)
        mlflow = MlflowNames(
            key=self.key,
            run_id=tracker.run_id(self.key),
            experiment=experiment_of(config),
            winner_key=f"{self.key}/{outcome.winner.key}",
            registered_model=registered_name(config),
        )
        used = used_device_seconds([*trials_of(self.arms), *self.replicates()])
        machine = as_worker(machine_here, config.placement).remote()
        summary = summarize(
            config,
            self.arms,
            outcome,
            parameters=self.parameters,
            seconds=seconds,
            protocol=self.digests["protocol"],
            device_hours={card: seconds / 3600 for card, seconds in used.items()},
            machine=self.context.stop.get([machine])[0],
            mlflow=mlflow,
        )
        show_outcome(tracker, config, self.data.meta, self.data_set, outcome, summary, self.steps)
        decided = [difference.value for difference in summary.differences.values()]
        for effect in outcome.cards:
            if matters(effect, decided):
                self.tell(
                    f"warning: {effect}, which is large compared with the differences in the table; "
                    "cca-ray evaluate --verify scores a finalist again on another card"
                )
        if summary.prospect:
            self.tell(f"{summary.prospect}")
        if tied := ties(summary):
            self.tell(f"tied with the winner: {'; '.join(readable(finalist.params) for finalist in tied)}")
        images = {role: standing.images for role, standing in outcome.standings.items()}
        return SizeResult(summary, images, Settings.of(config, self.data.meta), config.base.tokenizer)


def with_seed(config: ResolvedStudy, seed: int) -> ResolvedStudy:
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def check_resources(config: ResolvedStudy) -> None:
    """ValueError if this cluster can never hold a trial, and no autoscaler could change that."""
    if why := impossible(config.placement, nodes_now()):
        raise ValueError(f"{config.name}: {why}; see placement: workers, cpus, gpus, accelerators")
