"""Signs of life, and when the workers of a trial pause together: to report, to write a checkpoint, to stop."""

import os
import time
from contextlib import suppress

import ray

from cca_ray.cluster.placement import in_this_process
from cca_ray.cluster.sign import Sign, started_at
from cca_ray.config import ResolvedStudy
from cca_ray.models.parallel import Group
from cca_ray.storage.files import atomically
from cca_ray.storage.mirror import exists, patiently
from cca_ray.storage.remote import upload
from cca_ray.storage.uris import is_copy
from cca_ray.training.job import Job

BEAT_S = 1.0  # how often the workers of a trial agree on what to do besides training
HEARTBEAT_S = 5.0  # a report at least this often, so that progress is visible
WRITING_SHARE = 0.05  # of the time, that checkpoints may be under way
SIGN_S, ASK_S = 10.0, 2.0  # at a URI: how often a sign of life is left there, and the wish to stop is asked for


def stop_sign(config: ResolvedStudy) -> str:
    """The name of the file beside the trials' folders that stops all trials of this size."""
    return f"stop-{config.name}"


class Pulse:
    """When the workers of a trial pause together to report, to write a checkpoint, or to stop.

    They agree about once a second; on the step, not on a clock, for all must do the same. Each also leaves a sign of
    life, a file that says which process it is: who has hung can so be found, and killed, from outside.
    """

    def __init__(self, job: Job, group: Group):
        placement = job.config.placement
        self.group, self.checkpoint_s = group, 60 * placement.checkpoint_minutes  # the first worker's counts
        self.stop, self.life = job.folder.parent / stop_sign(job.config), job.folder / f"alive-{group.rank}"
        node = ray.get_runtime_context().get_node_id() if ray.is_initialized() else ""
        held = None if in_this_process(placement) else ray.util.get_current_placement_group()
        who = Sign(
            pid=os.getpid(), started=started_at(os.getpid()), node=node, group=held.id.hex() if held else ""
        ).model_dump_json()
        patiently(lambda: atomically(self.life, lambda partial: partial.write_text(who)))
        self.at_uri, self.sign_s = is_copy(self.life), min(SIGN_S, 60 * placement.hung_minutes / 4)
        self.signed = self.asked = time.monotonic()
        self.every, self.steps = 1, 0  # steps between two agreements; since the last one
        self.since = self.reported = self.saved = time.monotonic()

    def alive(self) -> None:
        with suppress(OSError):
            os.utime(self.life)
            if self.at_uri and time.monotonic() - self.signed > self.sign_s:
                self.signed = time.monotonic()
                upload(self.life, self.life)

    def wrote(self, seconds: float) -> None:
        """A checkpoint has taken so long: the next ones come less often if that is long."""
        self.checkpoint_s = max(self.checkpoint_s, seconds / WRITING_SHARE)

    def told_to_stop(self) -> bool:
        """One worker asks at the URI for all."""
        if self.at_uri and self.group.rank == 0 and time.monotonic() - self.asked > ASK_S:
            self.asked = time.monotonic()
            with suppress(OSError):
                return exists(self.stop)
        return self.stop.exists()

    def beat(self) -> tuple[bool, bool, bool]:
        """After a step: whether to report, to write a checkpoint, to stop."""
        self.steps += 1
        if self.steps < self.every:
            return False, False, False
        self.alive()
        now = time.monotonic()
        wishes = (
            now - self.since,
            now - self.reported > HEARTBEAT_S,
            self.group.rank == 0 and now - self.saved > self.checkpoint_s,
            self.told_to_stop(),
        )
        seconds, report, save, stop = (max(some) for some in zip(*self.group.gather(wishes), strict=True))
        self.every = max(1, min(round(BEAT_S * self.steps / max(seconds, 1e-3)), 10 * self.every))
        self.steps, self.since = 0, now
        report, save = report or save or stop, save or stop
        self.reported, self.saved = now if report else self.reported, now if save else self.saved
        return report, save, stop
