"""One trial: what Ray Tune runs of a study, on the cards that the placement names.

Tune reuses the process of a trial with one worker for the next trial.  Where `accelerators` are listed a trial is a
worker group on one type of card at a time, and goes on on another if it loses its nodes.
"""

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray import tune
from ray.exceptions import RayActorError
from ray.train import FailureConfig, TrainingFailedError
from ray.util.queue import Queue

from cca_ray.cluster.device import CardLost, card_is_lost, free_memory
from cca_ray.cluster.placement import in_this_process, worker_resources
from cca_ray.cluster.queue import wait_in_queue
from cca_ray.cluster.ray_compat import ON_THE_HEAD, worker_group_startup_timeout_error
from cca_ray.cluster.session import free_worker_group
from cca_ray.contracts import TrialReport
from cca_ray.errors import Stuck
from cca_ray.placement_config import Placement
from cca_ray.storage.mirror import written_at
from cca_ray.training.failures import failure_of, innermost, one_line
from cca_ray.training.group import Forward, GroupSettings, build_trainer, run_group
from cca_ray.training.job import Job
from cca_ray.training.reports import to_ray


class TrialSettings(GroupSettings):
    """What Ray Tune hands to a trial."""

    placer: Any  # the actor that keeps the queue for cards; None where trials stand in none


def tell_tune(report: TrialReport) -> None:
    tune.report(to_ray(report))


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
            run_group(build_trainer(here, tell_tune, [Forward(queue)], once), queue, tune.report)
            return
        except (TrainingFailedError, RayActorError) as error:  # the second: its controller was on the lost node
            cause = innermost(error)
            if isinstance(cause, worker_group_startup_timeout_error()):  # other jobs hold the cards, or the node went
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
    """The Tune trainable. An exception ends the trial with its reason; only a lost process is tried again.

    One that has lost its card ends, too: CardLost. Of the next trials that it would be reused for, each would fail.
    """
    try:
        job = Job.unpacked(settings["job"])
        if in_this_process(job.config.placement):
            build_trainer(job, tell_tune).fit()
            return
        queue = Queue(actor_options={"num_cpus": 0})
        if job.config.placement.accelerators:
            on_any_cards(job, settings["placer"], queue)
        else:
            free_worker_group(job.folder)  # of this trial's process that was lost
            run_group(build_trainer(job, tell_tune, [Forward(queue)]), queue, tune.report)
    except Exception as error:
        if card_is_lost():
            raise CardLost(one_line(innermost(error))) from None
        tune.report(to_ray(failure_of(error)))
    finally:
        if torch.cuda.is_initialized():
            with suppress(RuntimeError):  # of a card that is lost
                free_memory(torch.device("cuda:0"))


def trial_resources(placement: Placement) -> dict[str, float]:
    """A trial in its own process holds its worker's resources.

    The bundles of a group are its trainer's own; the driver that waits for them must hold no CPU, or the last
    trial that fits would wait for ever.  It sits on the head node, which preemption does not take.
    """
    return worker_resources(placement) if in_this_process(placement) else ON_THE_HEAD


def trial_folder(storage: Path, key: str) -> Path:
    return storage / "trials" / key
