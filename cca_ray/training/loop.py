"""The Ray Train loop: train -> sample -> score in place, at each rung.

The same loop runs alone or as one of several workers; only `Group` knows which.  What it needs is a `Job`,
whose files lie on storage that all nodes see, or are copies of those at a URI.
"""

import math
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import ray
import torch
from PIL import Image

from cca_ray.cluster.device import free_memory, give_back
from cca_ray.cluster.load import load_here
from cca_ray.cluster.placement import TYPE, accelerator_of, devices, micro_batch_size
from cca_ray.cluster.queue import node_here
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import Attempt, RungScore, TrialReport
from cca_ray.errors import Stuck, is_out_of_memory
from cca_ray.evaluation.sampler import image_grid
from cca_ray.evaluation.scoring import Scoring, protocol_of, score
from cca_ray.evaluation.thrift import no_room
from cca_ray.models.official import save_official
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.placement_config import CPU, Placement
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import drop, patiently
from cca_ray.storage.uris import to_uri
from cca_ray.training.checkpoint import Progress, Writer, resume, save_checkpoint
from cca_ray.training.failures import blame
from cca_ray.training.heartbeat import Pulse
from cca_ray.training.job import Job
from cca_ray.training.out_of_memory import shrink, smaller
from cca_ray.training.setup import Loop, prepare, settings_of
from cca_ray.training.step import Diverged, Log, train_step

Report = Callable[[TrialReport], None]


def card_here() -> str:
    """The type of card of this node, as Ray names it, or would if it ran; CPU if it has none."""
    if not ray.is_initialized():
        return node_here().type
    return ray.get_runtime_context().get_node_labels().get(TYPE, CPU)


@dataclass(frozen=True)
class Clock:
    """Counts what an attempt takes, from now on."""

    placement: Placement
    card: str
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:8])
    started: float = field(default_factory=time.monotonic)

    @staticmethod
    def of(job: Job) -> "Clock":
        return Clock(job.config.placement, accelerator_of(job.config.placement) or card_here())

    def attempt(self) -> Attempt:
        """So far."""
        seconds = time.monotonic() - self.started
        return Attempt(id=self.id, seconds=seconds, device_seconds={self.card: seconds * devices(self.placement)})


def rung_steps(config: ResolvedStudy, total: int) -> dict[int, int]:
    """Optimizer step -> samples to score there."""
    return {rung.step_of(total): rung.samples for rung in config.rungs}


def save_grid(images: np.ndarray, scoring: Scoring, path: Path) -> None:
    """images [N, H, W, 3] uint8, a column a class where there are no more than ten."""
    picture = Image.fromarray(image_grid(images, scoring.columns))
    patiently(lambda: atomically(path, lambda partial: picture.save(partial, "png")))


def grid_of(job: Job, step: int) -> Path:
    return job.folder / f"samples-{step:06d}.png"


def again(job: Job, report: TrialReport) -> TrialReport:
    """What was reported before, where the trial now lies: its storage may have moved."""
    score = report.score
    if score and score.grid:
        score = score.model_copy(update={"grid": to_uri(grid_of(job, score.step))})
    return report.model_copy(update={"stopped": False, "score": score})


def score_rung(loop: Loop, step: int, samples: int, alive: Callable[[], None]) -> RungScore:
    """Score the EMA; the first worker writes the grid of samples.

    NoRoom if memory runs out: training with less at a time, which is what an error of memory asks for, would not help.
    """
    give_back(loop.group.device)
    with no_room():
        return scored_rung(loop, step, samples, alive)


def scored_rung(loop: Loop, step: int, samples: int, alive: Callable[[], None]) -> RungScore:
    model = loop.scored_model()
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise Diverged(f"the weights are no longer finite at step {step}")
    protocol = protocol_of(loop.job.config, loop.scoring, samples)
    started = time.monotonic()
    placement = loop.job.config.placement
    scored = score(for_sampling(model, placement, loop.group), loop.scoring, protocol, loop.group, alive)
    values, without = scored.score.values, scored.score.without
    for metric in loop.scoring.metrics:
        if not math.isfinite(values[metric.name]):
            raise Diverged(f"the {metric.label} is {values[metric.name]} at step {step}")
    grid = grid_of(loop.job, step)
    if loop.group.rank == 0:
        save_grid(scored.images, loop.scoring, grid)
    return RungScore(
        values=values,
        without=without,
        step=step,
        samples=samples,
        scoring_seconds=time.monotonic() - started,
        protocol=protocol.id,
        grid=to_uri(grid),
    )


def save_final(loop: Loop, path: Path) -> None:
    """Write the weights that were scored, in the official format."""
    model = loop.scored_model()
    if loop.group.rank == 0:
        patiently(lambda: save_official(model, path))


def fine_tune(job: Job, report: Report, group: Group) -> Path | None:
    """Run one fine-tuning, from its checkpoint if there is one; the file with the final weights, None if stopped.

    `report` hears something at least every few seconds, and at each rung of a score. After a resume what was reported
    before is reported again.
    When memory runs out, the micro-batch is halved and the accumulation doubled, which changes no result.
    Raises Diverged, and Stuck if files cannot be read or written.
    """
    clock = Clock.of(job)  # also of what memory was too small for
    while True:
        try:
            return attempt(tried := smaller(job), report, group, clock)
        except Exception as error:
            blame(error, clock.attempt())
            # The other workers of a group may be waiting for this one: Ray Train starts all of them anew.
            if not is_out_of_memory(error) or not shrink(job, tried) or group.world > 1:
                raise
        # Only here, where the error no longer holds the tensors of the step that failed.
        free_memory(group.device)


def memory_and_load(group: Group) -> tuple[float | None, dict[str, float]]:
    """The most GiB that any worker's GPU has held in this attempt, None without GPUs; and how busy all are.

    The load is that of the first worker's machine and of every worker's GPU, by MLflow's names.
    """
    peak = torch.cuda.max_memory_allocated(group.device) / 2**30 if group.device.type == "cuda" else None
    loads, peaks = zip(*group.gather((load_here(group.device, group.rank), peak)), strict=True)
    return None if peak is None else max(peaks), {name: value for load in loads for name, value in load.items()}


def make_report(loop: Loop, log: Log, progress: Progress, step: int, clock: Clock) -> TrialReport:
    """What there is to say after this step, without a score; `progress` comes up to date."""
    group, config, train = loop.group, loop.job.config, loop.job.train
    history, rate = log.flush(train.global_batch)
    peak, load = memory_and_load(group)
    progress.come_to(step, clock.card, devices(config.placement))
    return TrialReport(
        step=step,
        total_steps=loop.steps,
        seconds=progress.seconds,
        logged=loop.objective.logged,
        history=history,
        images_per_second=rate,
        accelerator=clock.card,
        workers=group.world,
        micro_batch=micro_batch_size(config.placement, train.global_batch),
        load=load,
        gpu_memory_gib=peak,
        device_seconds=dict(progress.device_seconds),
        attempt=clock.attempt(),
    )


def scored_report(
    loop: Loop, log: Log, progress: Progress, report: TrialReport, samples: int, pulse: Pulse, clock: Clock
) -> TrialReport:
    """The same report with a score of so many samples, and what that has taken."""
    score = score_rung(loop, report.step, samples, pulse.alive)
    log.since = time.monotonic()
    peak, load = memory_and_load(loop.group)
    progress.come_to(report.step, clock.card, devices(loop.job.config.placement))
    used = {"seconds": progress.seconds, "device_seconds": dict(progress.device_seconds), "attempt": clock.attempt()}
    return report.model_copy(update={"score": score, "load": load, "gpu_memory_gib": peak, **used})


def attempt(job: Job, report: Report, group: Group, clock: Clock) -> Path | None:
    """See `fine_tune`."""
    checkpoint, final = job.folder / "checkpoint.pt", job.folder / "model.pt"
    micro_batch_size(job.config.placement, job.train.global_batch)  # an uneven cut is this trial's own fault
    if group.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(group.device)
    try:
        job.folder.mkdir(parents=True, exist_ok=True)
        pulse, loop = Pulse(job, group), prepare(job, group)
        settings = settings_of(loop)
        progress = resume(checkpoint, loop.model, loop.ema, loop.optimizer, settings, loop.objective.logged)
        if progress.step == loop.steps:
            save_final(loop, final)
    except (OSError, ValueError) as error:
        raise Stuck(str(error)) from error
    for passed in progress.reports:
        report(again(job, passed))
    progress.since, log, rungs = time.monotonic(), Log(group), rung_steps(job.config, loop.steps)
    resumed_at, owed = progress.step, progress.step in rungs and not progress.scored
    with Writer() as writer:

        def save_here() -> None:
            save_checkpoint(checkpoint, loop.model, loop.ema, loop.optimizer, progress, settings, group, writer)

        for done in range(resumed_at + (not owed), loop.steps + 1):
            if done > resumed_at:
                log.add(done, train_step(loop, done - 1))
            due, save, stop = pulse.beat()
            if done not in rungs and not due:
                continue
            try:
                result = make_report(loop, log, progress, done, clock)
                progress.add(result)
                if done in rungs:
                    if done > resumed_at:  # whatever becomes of the scoring, this is not trained again
                        save_here()
                    result = scored_report(loop, log, progress, result, rungs[done], pulse, clock)
                    progress.replace(result)
                if done in rungs or save:
                    save_here()
                if done in rungs or stop:  # who hears of a score, or of the stop, may take all cards away
                    writer.wait()
                pulse.wrote(writer.seconds)
                if done == loop.steps:  # before the report: who hears of the end may look for the weights
                    save_final(loop, final)
            except OSError as error:
                raise Stuck(str(error)) from error
            stopped = stop and done < loop.steps
            report(result.model_copy(update={"stopped": stopped}))
            if stopped:
                return None
    drop(checkpoint)
    return final
