"""The study of one model size: the base's log-likelihoods, the search and the control, then the final comparison.

Several sizes may run in threads of one process.
"""

import logging
import os
import re
import signal
import threading
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import ray
from optuna.distributions import IntDistribution
from ray.util import ActorPool, remove_placement_group
from ray.util.placement_group import PlacementGroup
from ray.util.state import list_jobs, list_placement_groups

from cca_ray.cluster.placement import accelerator_of, check_cuts, ways
from cca_ray.cluster.queue import as_worker, impossible, nodes_now, slots
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import MlflowNames, Role, SizeSummary
from cca_ray.data.tokens import TokenSet
from cca_ray.evaluation.scoring import load_base, load_tokens, protocol_of, scoring_of
from cca_ray.models.family import parameters
from cca_ray.models.files import digest_of_weights
from cca_ray.models.parallel import Group
from cca_ray.search.final_comparison import compare, finalists, summarize
from cca_ray.search.ledger import (
    Arm,
    Ledger,
    Limits,
    Say,
    Show,
    Taught,
    not_shown,
    nothing_taught,
    open_arm,
    open_arms,
    true_ends,
    used_device_seconds,
)
from cca_ray.search.mlflow_pages import (
    data_set_of,
    experiment_of,
    experiment_tags,
    registered_name,
    show_outcome,
    show_unfinished,
)
from cca_ray.search.ray_tune import run_trials
from cca_ray.search.records import readable
from cca_ray.storage.mirror import pull, push_database
from cca_ray.storage.uris import named
from cca_ray.tracking.tracker import Tracker
from cca_ray.training.job import Job
from cca_ray.training.loop import reference_key, total_steps
from cca_ray.training.reference_logps import making, missing_parts, parts_of
from cca_ray.training.trial import TableMaker, draw_base
from cca_ray.verdict import ties

PAIRING = {"null_ratio", "seed"}  # what the pairs, and so the reference's table, depend on
SAY_EVERY_S = 10.0
FLUSH_S = 5.0  # how long the end of a study waits for MLflow
OURS = re.compile("cca[_-]ray")  # in the command line of every driver of ours
OPENING = threading.Lock()  # one size at a time: memory holds one base, and a database's tables are made once


def start_ray(show_workers: bool = False, level: int = logging.ERROR) -> str:
    """Connect to the cluster that the environment names, or start one here; where its log files are on this node.

    From then on SIGTERM is as good as SIGINT. `level`: from which Ray speaks in this process; those of its other
    processes have their log files.
    """
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # Tune's tables; with verbose=0 it then prints nothing
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")  # CSV and JSON copies of what Optuna keeps
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # `stopping` has its own
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    context = ray.init(logging_level=level, log_to_driver=show_workers)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    return str(Path(context.address_info["session_dir"]) / "logs")


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """The study's SQLite file. ValueError, naming it, if it cannot be used; it is never replaced."""
    pull(path)
    try:
        return optuna.storages.RDBStorage(f"sqlite:///{path}", engine_kwargs={"connect_args": {"timeout": 60}})
    except Exception as error:  # SQLAlchemy's many kinds
        raise ValueError(
            f"{path}: cannot be used ({type(error).__name__}); move it away, or use another --name"
        ) from None


@dataclass(frozen=True)
class SizeResult:
    """The outcome for one size, and the first images of each model with the same noise."""

    summary: SizeSummary
    images: dict[Role, np.ndarray]


def remove_leaked_groups(say: Say) -> None:
    """Free what studies that died left reserved on a cluster: placement groups that no one will ever use.

    Ray frees most by itself, but not what a trainer was still waiting for when its driver was killed.
    """
    try:
        here: Any = {"address": ray.get_runtime_context().gcs_address, "limit": 10_000}
        ended = {job.job_id for job in list_jobs(**here) if job.status != "RUNNING" and OURS.search(job.entrypoint)}
        groups = list_placement_groups(**here, detail=True, filters=[("state", "!=", "REMOVED")])
    except Exception as error:  # the dashboard does not answer
        say(f"cannot look for leaked placement groups: {type(error).__name__}")
        return
    leaked = [group for group in groups if group.creator_job_id in ended and not group.is_detached]
    for group in leaked:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group.placement_group_id))))
    if leaked:
        say(f"removed {len(leaked)} placement group(s) that dead studies had left behind")


def run_size(
    config: ResolvedStudy,
    name: str,
    storage: Path,
    tracker: Tracker,
    say: Say,
    limits: Limits | None = None,
    taught: Taught = nothing_taught,
    show: Show = not_shown,
    stop: Stop | None = None,
) -> SizeResult:
    """Search, control and final comparison for one size. Ray must be running; the config's paths are resolved.

    `taught`: what smaller sizes found best. Raises KeyboardInterrupt if it was stopped, ValueError if it cannot go on.
    """
    started, stop = time.monotonic(), stop or Stop()
    # Whatever can be wrong with the files or the placement is said before anything is written.
    check_cuts(config.placement, config.train.global_batch)
    check_resources(config)
    with OPENING:
        stop.check()
        model, data = load_base(config), load_tokens(config.data.tokens)
        protocol = protocol_of(config, scoring_of(config, Group().device), config.score.samples)
        digests = {"base": digest_of_weights(model), "tokens": data.digest, "protocol": protocol.id}
        numbers = parameters(model)
        del model
        database = open_storage(storage / "study.db")
        arms = open_arms(config, name, database, digests, taught)
    steps = total_steps(len(data.labels), config.train)
    memory = arms[0].study
    if "id" not in memory.user_attrs:  # tells this study from another of the same name in the same MLflow
        memory.set_user_attr("id", uuid.uuid4().hex[:8])
    parent = f"{name}/{config.name}/{memory.user_attrs['id']}"
    data_set = data_set_of(config, data)
    ledger = Ledger(config, arms, tracker, parent, say, limits, data_set, show)
    tracker.describe(experiment_tags(config))
    tracker.run(parent, config.name, tags={"study": name, "family": config.base.family, "dataset": data_set.name})
    tracker.data_set(parent, data_set)
    show_unfinished(tracker, parent, "Running")
    tracker.settle(parent, true_ends(parent, arms))
    state = "FAIL"
    try:
        tracker.params(
            parent,
            {
                "size": config.base.size,
                "parameters": numbers,
                "tokens": data.digest,
                "steps": steps,
                "space": {k: [v.low, v.high] for k, v in config.search.space.items()},
            },
        )
        say(f"{config.name}  {numbers:,} parameters, {len(data.labels):,} images, {steps} steps a trial")
        if found := ledger.found():
            say(f"{config.name}  {found}")
        root = storage.parent / "reference"
        if not ledger.done():
            table = reference_table(config, digests["base"], data, root, say, stop)
            ledger.base_grid = base_grid(config, storage, stop)
            run_trials(config, ledger, lambda train: table, storage, stop=stop)
        replicates = replicate(config, arms, name, database, digests, data, tracker, parent, storage, say, show, stop)
        show(ledger)
        say(f"{config.name}  scoring base, guided base, control and finalists on fresh noise")
        outcome = compare(config, arms, replicates, storage, len(data.labels), stop)
        state = "COMPLETE"
    except KeyboardInterrupt:
        state = "INTERRUPTED"
        raise
    finally:
        tracker.end(parent, state)
        if state != "COMPLETE":
            show_unfinished(tracker, parent, "Failed" if state == "FAIL" else "Interrupted")
    tracker.flush(FLUSH_S)
    search = next(arm for arm in arms if arm.name == "search")
    seconds = spent(memory, len(search.ended()), started)
    push_database(storage / "study.db")
    winner_key = f"{parent}/{outcome.winner.key}"
    mlflow = MlflowNames(
        key=parent, run_id=tracker.run_id(parent), experiment=experiment_of(config), winner_key=winner_key,
        registered_model=registered_name(config),
    )  # fmt: skip
    hours = {card: used / 3600 for card, used in used_device_seconds(arms).items()}
    summary = summarize(
        config, arms, outcome, parameters=numbers, seconds=seconds, protocol=protocol.id, device_hours=hours,
        mlflow=mlflow,
    )  # fmt: skip
    show_outcome(tracker, config, data.meta, data_set, outcome, summary, steps)
    if tied := ties(summary):
        say(f"{config.name}  tied with the winner: {'; '.join(readable(f.params) for f in tied)}")
    return SizeResult(summary, {role: standing.images for role, standing in outcome.standings.items()})


def spent(memory: optuna.Study, trials: int, started: float) -> float:
    """Seconds that the study of this size took, over all runs of the command that added a trial."""
    before = memory.user_attrs.get("seconds", 0.0)
    if memory.user_attrs.get("seconds_until") != trials:
        memory.set_user_attr("seconds", before + time.monotonic() - started)
        memory.set_user_attr("seconds_until", trials)
    seconds: float = memory.user_attrs["seconds"]
    return seconds


def replicate(
    config: ResolvedStudy,
    arms: list[Arm],
    name: str,
    database: optuna.storages.BaseStorage,
    digests: Mapping[str, str],
    data: TokenSet,
    tracker: Tracker,
    parent: str,
    storage: Path,
    say: Say,
    show: Show,
    stop: Stop,
) -> optuna.Study | None:
    """Train the finalists again with `search.replicates` other seeds, as trials of an arm of their own."""
    if not config.search.replicates:
        return None
    search = next(arm for arm in arms if arm.name == "search")
    seeds = [config.train.seed + 1 + r for r in range(config.search.replicates)]
    best = finalists(search, config.score.finalists, storage, lambda trial: 0)
    points = [{**dict(c.params), "seed": seed} for c in best for seed in seeds]
    memory = dict(search.study.user_attrs["memory"])
    space = {**search.space, "seed": IntDistribution(0, 2**31 - 1)}
    study = open_arm(database, f"{name}/{config.name}", "replicate", space, [], memory)
    for point in points:  # those that are there already are not added again
        study.enqueue_trial(point, skip_if_exists=True)
    arm = Arm("replicate", study, space, len(study.get_trials(deepcopy=False)))
    ledger = Ledger(config, [arm], tracker, parent, say, data_set=data_set_of(config, data), show=show)
    tracker.settle(parent, true_ends(parent, [*arms, arm]))
    if not ledger.done():
        ledger.base_grid = base_grid(config, storage, stop)
        root = storage.parent / "reference"
        tables = {
            seed: reference_table(with_seed(config, seed), digests["base"], data, root, say, stop) for seed in seeds
        }
        run_trials(config, ledger, lambda train: tables.get(train.seed), storage, stop=stop)
    return study


def base_grid(config: ResolvedStudy, storage: Path, stop: Stop) -> Path:
    """The picture of the base's samples, made once."""
    path = storage / config.name / "base.png"
    if not pull(path):
        packed = Job(config, config.train, storage).packed()
        stop.get([as_worker(draw_base, config.placement).remote(packed, named(path))])
        pull(path)
    return path


def with_seed(config: ResolvedStudy, seed: int) -> ResolvedStudy:
    return config.model_copy(update={"train": config.train.model_copy(update={"seed": seed})})


def check_resources(config: ResolvedStudy) -> None:
    """ValueError if this cluster can never hold a trial, and no autoscaler could change that."""
    if why := impossible(config.placement, nodes_now()):
        raise ValueError(f"{config.name}: {why}; see placement: workers, cpus, gpus, accelerators")


def at_once(config: ResolvedStudy) -> int:
    """How many workers of a trial the cluster can hold now; at least one, for which it may have to grow."""
    nodes, kinds = nodes_now(), {accelerator_of(way): way for way in ways(config.placement)}
    return max(1, sum(slots(way, nodes) for way in kinds.values()))


def reference_table(
    config: ResolvedStudy, base_digest: str, data: TokenSet, root: Path, say: Say, stop: Stop
) -> Path | None:
    """The folder with the reference's log-likelihoods, below `root`; what is missing is made now, on all workers.

    None where the table would have to be another for every trial: they score the reference themselves.
    """
    train, space = config.train, config.search.space
    if train.reference == "live" or PAIRING & set(space):
        return None
    epochs = round(space["epochs"].high) if "epochs" in space else train.epochs
    folder = root / reference_key(base_digest, config, train, data)
    parts = parts_of(len(data.labels), epochs)
    pull(folder)
    if not missing_parts(folder, parts):
        return folder
    with making(folder):
        missing = missing_parts(folder, parts)  # another study may have made it in the meantime
        packed = Job(config, train, root).packed()
        maker = as_worker(TableMaker, config.placement, max_restarts=2, max_task_retries=2)
        pool = ActorPool([maker.remote(packed, named(folder)) for _ in range(min(len(missing), at_once(config)))])
        total, done, said = sum(part.stop - part.start for part in missing), 0, time.monotonic()
        for pairs in stop.map_unordered(pool, lambda actor, part: actor.make.remote(part), missing):
            done += pairs
            if time.monotonic() - said > SAY_EVERY_S:
                say(f"{config.name}  reference: {done:,}/{total:,} pairs scored")
                said = time.monotonic()
    return folder
