"""A trial's workers: one in the trial's own process, or a group of processes that Ray Train starts and watches.

One worker runs in Ray Train's local mode: no process start.  Several are a real worker group, with gloo or NCCL
between them.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypedDict

import ray.train
import ray.train.torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.queue import Empty, Queue

from cca_ray.cluster.device import local_device
from cca_ray.cluster.placement import in_this_process, worker_resources
from cca_ray.cluster.queue import selector
from cca_ray.cluster.ray_compat import TRAIN_SWITCHES, set_switches
from cca_ray.errors import Stuck
from cca_ray.models.parallel import Group
from cca_ray.placement_config import Placement
from cca_ray.storage.uris import to_uri
from cca_ray.training.failures import failure_of
from cca_ray.training.job import Job
from cca_ray.training.loop import Report, fine_tune
from cca_ray.training.reports import to_ray

REPORT_S = 0.5  # how often the end of a worker group is looked for


class GroupSettings(TypedDict):
    """What Ray Train hands to every worker of a group."""

    job: str  # a packed `Job`


def worker_loop(settings: GroupSettings) -> None:
    """What each worker of a group runs.

    A ValueError, such as a diverged loss, meets all workers alike, by `Group.agreed` where only one could tell, and
    would meet them again: it is reported, not raised, for Ray Train would start the group anew. Any other exception may
    leave the others waiting and is raised.
    """
    context = ray.train.get_context()
    # Ray Train lets the workers of a node see each other's cards, and knows which is whose.
    device = local_device()
    device = ray.train.torch.get_device() if device.type == "cuda" else device
    group = Group(context.get_world_rank(), context.get_world_size(), device)
    try:
        fine_tune(Job.unpacked(settings["job"]), lambda report: ray.train.report(to_ray(report)), group)
    except Stuck:  # the other workers may be waiting for this one
        raise
    except ValueError as error:
        ray.train.report(to_ray(failure_of(error)))


class Forward(UserCallback):
    """Brings the first worker's reports out of Ray Train's controller, which is another process."""

    def __init__(self, queue: Queue):
        self.queue = queue

    def after_report(self, run_context: Any, metrics: list[Mapping[str, str]], checkpoint: Any) -> None:
        self.queue.put(metrics[0])


def run_group(trainer: TorchTrainer, queue: Queue, hand_on: Callable[[Mapping[str, str]], None]) -> None:
    """Run a worker group; hand on all that comes by its `Forward`, as Ray carries it, before this returns or raises.

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
            hand_on(queue.get(timeout=REPORT_S))
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
    set_switches(TRAIN_SWITCHES)
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
    """Alone: the loop in this process, reporting by `report`, for ray.train.report inside Tune is deprecated.

    Otherwise a worker group that reports by `callbacks` and resumes from the checkpoint. Lost workers are replaced.
    """
    placement, folder = job.config.placement, job.folder
    if in_this_process(placement):
        return build_local(lambda: fine_tune(job, report, Group(device=local_device(placement))))
    storage = to_uri(folder.parent.resolve() / "train")
    return build_group(worker_loop, {"job": job.packed()}, placement, folder.name, storage, callbacks, failures)
