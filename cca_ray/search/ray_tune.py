"""Ray Tune runs the trials that the ledger proposes: `Proposer`, `Rungs`, `Watch` and `Ending` are its view of it."""

import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cca_ray.cluster.placement import in_this_process
from cca_ray.cluster.queue import queue_of_the_cluster
from cca_ray.cluster.ray_compat import actor_of, last_loss
from cca_ray.cluster.session import free_worker_group
from cca_ray.cluster.sign import Sign, started_at
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy, Train
from cca_ray.search.ledger import Ledger
from cca_ray.search.listener import Listener, TrialInfo
from cca_ray.storage.mirror import listed, pull, push_database, remove
from cca_ray.storage.remote import upload
from cca_ray.storage.uris import is_copy
from cca_ray.training.heartbeat import stop_sign
from cca_ray.training.job import Job
from cca_ray.training.out_of_memory import shrink
from cca_ray.training.reports import from_ray
from cca_ray.training.trial import TrialSettings, run_trial, trial_folder, trial_resources

STOP_S = 5.0  # from the wish to stop until Tune is ended, whether or not the trials have written their checkpoints
LOOK_S = 2.0  # how often workers are looked after
FREED_S = 10.0  # after a trial's end Ray itself gives back what it held

LOG = logging.getLogger(__name__)
TableOf = Callable[[Train], Path | None]
JobOf = Callable[[TrialInfo], Job]


class Proposer(Searcher):
    """Tune's searcher: asks the ledger. Its memory is Optuna's storage, so it has no state of its own to save.

    `placer`: keeps the queue for the cluster's cards, where the trials wait in one.
    """

    def __init__(self, ledger: Ledger, job_of: JobOf, placer: Any = None):
        super().__init__()
        self.ledger, self.job_of, self.placer = ledger, job_of, placer

    def suggest(self, trial_id: str) -> Any:
        trial = self.ledger.propose(trial_id)
        if trial is None:
            return None if self.ledger.undecided() else Searcher.FINISHED
        return TrialSettings(job=self.job_of(trial).packed(), placer=self.placer)

    def on_trial_complete(self, trial_id: str, result: Mapping[str, Any] | None = None, error: bool = False) -> None:
        if self.placer and (running := self.ledger.running.get(trial_id)):
            self.placer.forget.remote(str(self.job_of(running.info).folder))
        self.ledger.finish(trial_id, lost=error)

    def save(self, checkpoint_path: str) -> None:
        Path(checkpoint_path).touch()

    def restore(self, checkpoint_path: str) -> None:
        pass


class Rungs(FIFOScheduler):
    """Tune's scheduler: passes every report to the ledger, which decides."""

    def __init__(self, ledger: Ledger, job_of: JobOf):
        super().__init__()
        self.ledger, self.job_of = ledger, job_of

    def on_trial_result(self, tune_controller: Any, trial: Any, result: Mapping[str, Any]) -> str:
        known = trial.trial_id in self.ledger.running
        goes_on = not known or self.ledger.record(trial.trial_id, from_ray(result))
        return TrialScheduler.CONTINUE if goes_on else TrialScheduler.STOP

    def on_trial_error(self, tune_controller: Any, trial: Any) -> None:
        """Its process was lost; Tune may start it again."""
        running, loss = self.ledger.running.get(trial.trial_id), last_loss(trial)
        if running is None or loss is None:
            return
        self.ledger.lose(trial.trial_id, loss.reason, loss.never_ran)
        if loss.out_of_memory:
            shrink(self.job_of(running.info))


@ray.remote(num_cpus=0)
def kill_process(pid: int, started: str) -> bool:
    """Kill it, if it is still the same one; whether it was."""
    with suppress(OSError):
        if started_at(pid) == started:
            os.kill(pid, signal.SIGKILL)
            return True
    return False


class Turn:
    """Of the sizes that run side by side one at a time begins, for Ray's register of trainables is not for threads.

    It is held from before `fit` until Tune's first callback: by then it has registered.
    """

    register = threading.Lock()

    def __init__(self) -> None:
        self.register.acquire()
        self.held = True

    def end(self) -> None:
        if self.held:
            self.held = False
            self.register.release()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        return type(None), ()  # Tune pickles its callbacks, for a restore that is never asked for


class Watch(tune.Callback):
    """Kills processes that have shown no sign of life for too long; their trials go on as after any loss.

    By its own clock: those of other nodes may be wrong. It also tells the cluster's queue that this study is alive, and
    gives back what the workers of trials that have ended still hold.
    """

    def __init__(self, ledger: Ledger, storage: Path, limit_s: float, placer: Any = None, turn: Turn | None = None):
        self.ledger, self.storage, self.limit_s, self.placer, self.turn = ledger, storage, limit_s, placer, turn
        self.look_s = max(LOOK_S, limit_s / 20) if is_copy(storage) else LOOK_S  # at a URI every look is a request
        self.alone = in_this_process(ledger.config.placement)  # trials are no groups
        self.told = self.looked = 0.0
        self.seen = dict[Path | str, tuple[Any, float]]()  # what was last seen of a sign, and since when
        self.killing = dict[ray.ObjectRef, tuple[TrialInfo, int]]()  # trial and pid of each
        self.ended = dict[str, float]()  # worker groups, by key, and since when they are seen to have ended

    def setup(self, **info: Any) -> None:
        if self.turn:
            self.turn.end()

    def on_step_begin(self, iteration: int, trials: list[Any], **info: Any) -> None:
        now = time.monotonic()
        if self.placer and now - self.told >= LOOK_S:
            self.told = now
            self.placer.alive.remote(str(self.storage / "trials"))
        if now - self.looked < self.look_s:
            return
        self.looked = now
        for trial in trials:
            if running := self.ledger.running.get(trial.trial_id):
                if not self.alone:
                    self.ended[running.info.key] = math.inf
                with suppress(OSError):
                    self.look_after(trial, running.info, now)
        self.tidy({running.info.key for running in self.ledger.running.values()}, now)
        for done in ray.wait(list(self.killing), timeout=0)[0] if self.killing else []:
            hung, pid = self.killing.pop(done)
            with suppress(RayError):  # a node that is gone has no process left
                if ray.get(done):
                    self.tell(hung, f"killed process {pid}")

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        for key in list(self.ended):
            self.free(key)

    def tidy(self, running: set[str], now: float) -> None:
        """Free what is still held some seconds after a trial's end: Ray has had its time for that."""
        for key in set(self.ended) - running:
            self.ended[key] = min(self.ended[key], now)
            if now - self.ended[key] > FREED_S:
                self.free(key)

    def free(self, key: str) -> None:
        """What the workers of this trial, which has ended, still hold."""
        del self.ended[key]
        with suppress(OSError, RayError):
            if free_worker_group(trial_folder(self.storage, key)):
                LOG.info("%s: Ray had left its workers' placement group; removed", key)

    def look_after(self, trial: Any, info: TrialInfo, now: float) -> None:
        """Every worker leaves a sign of its own. Who hangs before the first is the trial's own process.

        A group may wait long for its workers; that they start is Ray Train's to watch.
        """
        signs = listed(trial_folder(self.storage, info.key), "alive-*")
        for sign, written in signs.items():
            if self.still(sign, written, now) and pull(sign) and (process := Sign.read(sign)):
                remove(sign)
                there = NodeAffinitySchedulingStrategy(process.node, soft=False)
                kill = kill_process.options(scheduling_strategy=there).remote(process.pid, process.started)
                self.killing[kill] = info, process.pid
        actor = actor_of(trial)
        if self.still(trial.trial_id, (bool(signs), str(actor)), now) and self.alone and actor and not signs:
            del self.seen[trial.trial_id]
            self.tell(info, "killing its process")
            ray.kill(actor)

    def still(self, what: Path | str, sign: Any, now: float) -> bool:
        """Whether this sign has been the same for longer than the limit."""
        before, since = self.seen.get(what, (None, now))
        if sign != before:
            self.seen[what] = (sign, now)
        return bool(sign == before and now - since > self.limit_s)

    def tell(self, info: TrialInfo, what: str) -> None:
        for listener in self.ledger.listeners:
            listener.on_trial_hang(info, self.limit_s, what)


class Silent(tune.ProgressReporter):
    """Tune's own for notebooks wipes what the cell has shown, whatever `verbose` says."""

    def should_report(self, trials: list[Any], done: bool = False) -> bool:
        return False

    def report(self, trials: list[Any], done: bool, *system: str) -> None:
        pass


class Ending(tune.Stopper):
    """Ends Tune some seconds after the ledger was halted, whether or not the trials have written their checkpoints."""

    def __init__(self, ledger: Ledger):
        self.ledger = ledger

    def __call__(self, trial_id: str, result: Mapping[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return time.monotonic() - self.ledger.halted_at > STOP_S


class Files(Listener):
    """The files beside a size's trials: the sign that stops them all, and the database, which may have a copy."""

    def __init__(self, sign: Path, database: Path):
        self.sign, self.database = sign, database
        sign.parent.mkdir(parents=True, exist_ok=True)
        remove(sign)

    def on_halt(self, size: str, running: int) -> None:
        with suppress(OSError):
            self.sign.touch()
            if is_copy(self.sign):
                upload(self.sign, self.sign)

    def on_write(self) -> None:
        push_database(self.database)


def run_trials(
    config: ResolvedStudy,
    ledger: Ledger,
    table_of: TableOf,
    storage: Path,
    trainable: Any = run_trial,
    stop: Stop | None = None,
) -> None:
    """Hand the ledger's proposals to Ray Tune until there are none. `trainable` runs one.

    Raises KeyboardInterrupt if it was asked to stop before that, ValueError if storage could not be used.
    """

    def job_of(trial: TrialInfo) -> Job:
        return Job(config, trial.train, trial_folder(storage, trial.key), table_of(trial.train))

    ledger.listeners.append(Files(storage / "trials" / stop_sign(config), storage / "study.db"))
    # Tune's own snapshots are never read again: they go where no full or absent storage can stop the study.
    stop = stop or Stop()
    with stop.calling(ledger.halt), stop.leaving(ledger.close), TemporaryDirectory(prefix="cca_ray-") as scratch:
        turn = Turn()
        try:
            ledger.settle()
            if not ledger.done():
                tuner(config, ledger, job_of, storage, scratch, trainable, turn).fit()
        finally:
            turn.end()
            ledger.close()
    if ledger.stuck:
        raise ValueError(f"{config.name}: {ledger.stuck}; fix that and run the same command again to continue")
    if ledger.hopeless:
        raise ValueError(ledger.hopeless)
    if not ledger.done():
        raise KeyboardInterrupt


def tuner(
    config: ResolvedStudy, ledger: Ledger, job_of: JobOf, storage: Path, scratch: str, trainable: Any, turn: Turn
) -> tune.Tuner:
    placement = config.placement
    placer = queue_of_the_cluster() if placement.accelerators else None
    return tune.Tuner(
        tune.with_resources(trainable, resources_of),
        tune_config=tune.TuneConfig(
            search_alg=Proposer(ledger, job_of, placer),
            scheduler=Rungs(ledger, job_of),
            num_samples=-1,
            max_concurrent_trials=config.search.max_concurrent,
            reuse_actors=in_this_process(placement),  # with nested workers, reuse hangs when a trial is stopped
        ),
        run_config=tune.RunConfig(
            name=config.name,
            storage_path=scratch,
            failure_config=tune.FailureConfig(max_failures=placement.max_failures),
            callbacks=[Watch(ledger, storage, 60 * placement.hung_minutes, placer, turn)],
            stop=Ending(ledger),
            verbose=0,
            progress_reporter=Silent(),
        ),
    )


def resources_of(settings: TrialSettings) -> dict[str, float]:
    """By what `Proposer` suggests. Tune writes this on the trainable, which all sizes share."""
    return trial_resources(Job.unpacked(settings["job"]).config.placement)
