"""One trial: build the TorchTrainer, run it, report to Ray Tune; and the tasks of a study besides its trials.

One worker runs in the trial's own process (Ray Train's local mode), which Tune reuses for the next trial:
no process start.  Several workers are a real worker group, with gloo or NCCL between them.  Where `accelerators` are
listed a trial is a worker group on one type of card at a time, and goes on on another if it loses its nodes.
"""

import errno
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict
from zipfile import BadZipFile

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray import tune
from ray.exceptions import RayActorError
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError
from ray.util.queue import Empty, Queue

from cca_ray.cluster.placement import autocast, in_this_process, local_device, micro_batch_size, ways, worker_resources
from cca_ray.cluster.queue import selector, wait_in_queue
from cca_ray.cluster.ray_compat import ON_THE_HEAD
from cca_ray.cluster.session import free_worker_group
from cca_ray.config import Placement
from cca_ray.contracts import OLD_METRICS, Score
from cca_ray.errors import Stuck
from cca_ray.evaluation.scoring import (
    GRID_IMAGES,
    Scored,
    load_base,
    load_tokens,
    protocol_of,
    sample_shards,
    score,
    scoring_of,
)
from cca_ray.models.files import digest_of_weights
from cca_ray.models.likelihood import Scorer
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import patiently, pull, written_at
from cca_ray.storage.uris import here, named
from cca_ray.training.job import Job
from cca_ray.training.loop import Report, fine_tune, reference_key, save_grid
from cca_ray.training.reference_logps import Part, score_part, write_part

FAILURE = "failure"  # the key of a report that ends a trial with a reason
STUCK = "stuck"  # the same of one that cannot go on for no fault of its own: the study stops, the trial stays open
REPORT_S = 0.5  # how often the end of a worker group is looked for

STORAGE_FAULTS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE}  # met outside of our own code


class GroupSettings(TypedDict):
    """What Ray Train hands to every worker of a group."""

    job: str  # a packed `Job`


class TrialSettings(GroupSettings):
    """What Ray Tune hands to a trial."""

    placer: Any  # the actor that keeps the queue for cards; None where trials stand in none


def innermost(error: BaseException) -> BaseException:
    """What Ray and Ray Train have wrapped."""
    failures = getattr(error, "worker_failures", None)  # Ray Train's error of a worker group
    inner = next(iter(failures.values())) if failures else getattr(error, "_base_exc", None)
    inner = inner or getattr(error, "controller_failure", None) or getattr(error, "cause", None)
    if not isinstance(error, Stuck):  # whose own words are the best
        inner = inner or error.__cause__
    return innermost(inner) if isinstance(inner, BaseException) else error


def one_line(error: BaseException) -> str:
    """Kind and first line of the message."""
    text = str(error).strip().splitlines()
    first = text[0] if text else "no message"
    return (first if isinstance(error, Stuck) else f"{type(error).__name__}: {first}")[:500]


def failure(error: BaseException) -> dict[str, str]:
    """The report that ends a trial."""
    inner = innermost(error)
    stuck = isinstance(inner, Stuck) or (isinstance(inner, OSError) and inner.errno in STORAGE_FAULTS)
    return {STUCK if stuck else FAILURE: one_line(inner)}


def worker_loop(settings: GroupSettings) -> None:
    """What each worker of a group runs.

    A ValueError, such as a diverged loss, meets all workers alike and would meet them again: it is reported, not
    raised, for Ray Train would start the group anew. Any other exception may leave the others waiting and is raised.
    """
    context = ray.train.get_context()
    # Ray Train's own choice among the node's cards; but a node may only pretend to have one.
    device = ray.train.torch.get_device() if torch.cuda.is_available() else torch.device("cpu")
    group = Group(context.get_world_rank(), context.get_world_size(), device)
    try:
        fine_tune(Job.unpacked(settings["job"]), ray.train.report, group)
    except Stuck:  # the other workers may be waiting for this one
        raise
    except ValueError as error:
        ray.train.report(failure(error))


class Forward(UserCallback):
    """Brings the first worker's reports out of Ray Train's controller, which is another process."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any) -> None:
        self.queue.put(metrics[0])


def run_group(trainer: TorchTrainer, queue: Queue, report: Report) -> None:
    """Run a worker group; hand on all that comes by its `Forward`, before this returns or raises.

    Ray's own TuneReportCallback leaves that to Tune: a trial whose last report is still on its way when training has
    ended then hangs for ever (Ray 2.60).
    """
    ended: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:
            ended.append(error)

    thread = threading.Thread(target=fit, daemon=True)
    thread.start()
    while thread.is_alive() or not queue.empty():
        with suppress(Empty):
            report(queue.get(timeout=REPORT_S))
    if ended:
        raise ended[0]


def build_local(loop: Callable[[], object]) -> TorchTrainer:
    """One worker, in this process: no process starts."""
    return TorchTrainer(loop, scaling_config=ScalingConfig(num_workers=0))


def build_group(
    loop: Callable[[GroupSettings], None],
    arguments: GroupSettings,
    placement: Placement,
    name: str,
    storage: str,
    callbacks: Sequence[UserCallback] = (),
    failures: FailureConfig | None = None,
) -> TorchTrainer:
    """A worker group. A worker that has ended is noticed at once, not after two seconds."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    return TorchTrainer(
        loop,
        train_loop_config=dict(arguments),
        torch_config=TorchConfig(backend=None if placement.backend == "auto" else placement.backend),
        scaling_config=ScalingConfig(
            num_workers=placement.workers,
            use_gpu=placement.gpus > 0,
            resources_per_worker=worker_resources(placement),
            label_selector=selector(placement) or None,
        ),
        run_config=RunConfig(
            name=name,
            storage_path=storage,
            failure_config=failures or FailureConfig(placement.max_failures, controller_failure_limit=1),
            callbacks=list(callbacks),
        ),
    )


def build_trainer(
    job: Job, report: Report, callbacks: Sequence[UserCallback] = (), failures: FailureConfig | None = None
) -> TorchTrainer:
    """Alone: the loop in this process, reporting by `report` (ray.train.report inside Tune is deprecated).

    Otherwise a worker group that reports by `callbacks` and resumes from the checkpoint. Lost workers are replaced.
    """
    placement, folder = job.config.placement, job.folder
    if in_this_process(placement):
        return build_local(lambda: fine_tune(job, report, Group()))
    storage = named(folder.parent.resolve() / "train")
    return build_group(worker_loop, {"job": job.packed()}, placement, folder.name, storage, callbacks, failures)


def on_any_cards(job: Job, placer: Any, queue: Queue) -> None:
    """Train on the first way that fits, and after a loss on whatever fits then: shrunk, or on another type of card.

    A loss counts only if nothing was saved since the one before: on cards that others may take away there can be many.
    """
    checkpoint, losses, saved = job.folder / "checkpoint.pt", 0, 0.0
    once = FailureConfig(max_failures=0, controller_failure_limit=0, max_preemption_failures=0)
    while True:
        free_worker_group(job.folder)  # of a controller that was on a lost node
        way = wait_in_queue(placer, str(job.folder), job.config.placement)
        here = replace(job, config=job.config.model_copy(update={"placement": way}))
        try:
            run_group(build_trainer(here, tune.report, [Forward(queue)], once), queue, tune.report)
            return
        except (TrainingFailedError, RayActorError) as error:  # the second: its controller was on the lost node
            cause = innermost(error)
            if isinstance(cause, WorkerGroupStartupTimeoutError):  # other jobs hold the cards, or the node went
                ray.get(placer.refuse.remote(str(job.folder)))
                continue
            if isinstance(cause, Stuck):
                raise
            before, saved = saved, written_at(checkpoint)
            losses = losses + 1 if saved == before else 1
            if losses > job.config.placement.max_failures:
                raise
        finally:
            ray.get(placer.release.remote(str(job.folder)))


def run_trial(settings: TrialSettings) -> None:
    """The Tune trainable. An exception ends the trial with its reason; only a lost process is tried again."""
    try:
        job = Job.unpacked(settings["job"])
        if in_this_process(job.config.placement):
            build_trainer(job, tune.report).fit()
            return
        queue = Queue(actor_options={"num_cpus": 0})
        if job.config.placement.accelerators:
            on_any_cards(job, settings["placer"], queue)
        else:
            free_worker_group(job.folder)  # of this trial's process that was lost
            run_group(build_trainer(job, tune.report, [Forward(queue)]), queue, tune.report)
    except Exception as error:
        tune.report(failure(error))


def trial_resources(placement: Placement) -> dict[str, float]:
    """A trial in its own process holds its worker's resources.

    The bundles of a group are its trainer's own; the driver that waits for them must hold no CPU, or the last
    trial that fits would wait for ever.  It sits on the head node, which preemption does not take.
    """
    return worker_resources(placement) if in_this_process(placement) else ON_THE_HEAD


def trial_folder(storage: Path, key: str) -> Path:
    return storage / "trials" / key


@ray.remote
class TableMaker:
    """One of the workers that make a study's reference table; it holds the base, on what a trial's worker holds."""

    def __init__(self, packed: str, folder: str):
        self.job, self.folder, self.device = Job.unpacked(packed), here(folder), local_device()
        config, model = self.job.config, load_base(self.job.config)
        self.data = load_tokens(config.data.tokens)
        self.key = reference_key(digest_of_weights(model), config, self.job.train, self.data)
        self.scorer = Scorer(model).to(self.device)

    def make(self, part: Part) -> int:
        """Score a part and write its file; how many pairs it has."""
        config, train = self.job.config, self.job.train
        batch = min(micro_batch_size(way, train.global_batch) for way in ways(config.placement))
        with autocast(config.placement, self.device):  # as the trials score their own model
            scored = score_part(self.scorer, self.data, part, train.null_ratio, train.seed, batch)
        write_part(self.folder, part, self.key, *scored)
        return len(scored[0])


def keep_score(path: Path, scored: Scored) -> None:
    """Write a score to a file of its own: `images`, and `value NAME` and `without NAME` of every metric."""
    score = scored.score
    arrays = {f"value {name}": np.array(value) for name, value in score.values.items()}
    arrays |= {f"without {name}": np.array(values) for name, values in score.without.items()}

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez(file, images=scored.images, **arrays)  # type: ignore[arg-type]  # typeshed takes them for its flag

    patiently(lambda: atomically(path, write))


def kept_score(path: Path) -> Scored | None:
    """What `keep_score` wrote; None if there is nothing, or nothing readable: then it is made again.

    Version 0.1.0 wrote `fid`, `inception_score`, and rows of both in `without`.
    """
    pull(path)
    try:
        with np.load(path) as content:
            arrays = dict(content)
        if "fid" in arrays:
            for name, column in zip(OLD_METRICS, arrays.pop("without").T, strict=True):
                arrays |= {f"value {name}": arrays[name], f"without {name}": column}
        values = {key.removeprefix("value "): float(x) for key, x in arrays.items() if key.startswith("value ")}
        without = {name: tuple(arrays[f"without {name}"].tolist()) for name in values}
        return Scored(Score(values=values, without=without), arrays["images"])
    except (OSError, EOFError, ValueError, KeyError, BadZipFile):
        return None


@ray.remote
def score_checkpoint(
    packed: str,
    folder: str,
    key: str,
    checkpoint: str | None,
    guidance_scale: float,
    samples: int,
    seed: int,
) -> Scored:
    """Score a checkpoint (None: the base) with this scale and noise, once: the score stays in `folder`, by `key`."""
    config, group = Job.unpacked(packed).config, Group()
    scoring = scoring_of(config, group.device)
    protocol = protocol_of(config, scoring, samples, guidance_scale, seed)
    path = here(folder) / f"{key}-{protocol.id}.npz"
    kept = kept_score(path)
    if kept is not None and kept.score.values.keys() >= {metric.name for metric in scoring.metrics}:
        return kept
    weights = str(here(checkpoint)) if checkpoint else None
    model = for_sampling(load_base(config, weights), config.placement, group)
    scored = score(model, scoring, protocol, group)
    keep_score(path, scored)
    return scored


@ray.remote
def draw_base(packed: str, path: str) -> None:
    """What the base makes of the noise that all trials share: a grid like those of their rungs."""
    config, group = Job.unpacked(packed).config, Group()
    scoring = scoring_of(config, group.device)
    protocol = protocol_of(config, scoring, min(GRID_IMAGES, config.rungs[0].samples))
    with torch.inference_mode():
        model = for_sampling(load_base(config), config.placement, group)
        _, images, _ = next(sample_shards(model, scoring, protocol, group))
    save_grid(images.cpu().numpy(), scoring, here(path))
