"""One trial: build the TorchTrainer, run it, report to Ray Tune.

One worker runs in the trial's own process (Ray Train's local mode), which Tune reuses for the next trial:
no process start.  Several workers are a real worker group, with gloo or NCCL between them.
"""

from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray import tune
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import TuneReportCallback

from cca_ray.config import Placement
from cca_ray.placement import worker_resources
from cca_ray.worker import Group, Job, fine_tune, local_group

FAILURE = "failure"  # the key of a report that ends a trial with a reason


def one_line(error: BaseException) -> str:
    """The innermost cause, as its kind and the first line of its message."""
    while (inner := getattr(error, "cause", None) or error.__cause__) is not None:
        error = inner
    failures = getattr(error, "worker_failures", None)  # Ray Train's error of a worker group
    if failures:
        return one_line(next(iter(failures.values())))
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0] if text else 'no message'}"[:500]


def worker_loop(packed: dict[str, Any]) -> None:
    """What each worker of a group runs."""
    context = ray.train.get_context()
    group = Group(context.get_world_rank(), context.get_world_size(), ray.train.torch.get_device())
    fine_tune(Job.unpacked(packed), ray.train.report, group)


def build_trainer(job: Job) -> TorchTrainer:
    """Alone: the loop in this process. Otherwise a worker group, whose lost workers are replaced and resume."""
    placement = job.config.placement
    if placement.workers == 1:
        # ray.train.report inside Tune is deprecated, hence the report function.
        return TorchTrainer(
            lambda: str(fine_tune(job, tune.report, local_group())), scaling_config=ScalingConfig(num_workers=0)
        )
    resources = worker_resources(placement)
    return TorchTrainer(
        worker_loop,
        train_loop_config=job.packed(),
        scaling_config=ScalingConfig(
            num_workers=placement.workers, use_gpu=placement.gpus > 0, resources_per_worker=resources
        ),
        run_config=RunConfig(
            name=job.folder.name,
            storage_path=str(job.folder.parent.resolve() / "train"),
            failure_config=FailureConfig(max_failures=placement.max_failures, controller_failure_limit=1),
            callbacks=[TuneReportCallback()],
        ),
    )


def run_trial(packed: dict[str, Any]) -> None:
    """The Tune trainable. An exception ends the trial with its reason; only a lost process is tried again."""
    try:
        build_trainer(Job.unpacked(packed["job"])).fit()
    except Exception as error:
        tune.report({FAILURE: one_line(error)})


def trial_resources(placement: Placement) -> dict[str, float]:
    """A trial alone holds its worker's resources; a group's bundles are the trainer's own, and its driver waits."""
    return worker_resources(placement) if placement.workers == 1 else {"CPU": 0.01}


def trial_folder(storage: Path, key: str) -> Path:
    return storage / "trials" / key
