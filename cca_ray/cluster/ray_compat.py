"""What we use of Ray that has no public way: here alone, and imported when it is needed.

`tests/cluster/test_ray_compat.py` fails on a Ray that has moved one of these, and names it.
"""

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ON_THE_HEAD = {"node:__internal_head__": 0.001}  # resources of what must outlive every other node
TUNE_SWITCHES = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's tables; with verbose=0 it then prints nothing
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # CSV and JSON copies of what Optuna keeps
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # `stopping` has its own
}
TRAIN_SWITCHES = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"}  # a worker that has ended is noticed at once
IN_A_JOB = "RAY_JOB_CONFIG_JSON_ENV_VAR"  # in the environment of what `ray job submit` runs
DATA_PROGRESS = "ray.data._internal.progress"  # the logger that tells that it will not tell
NEVER_RAN = "The actor never ran"  # how Ray tells of a process that it could not start
FAILURE = "Failure # "  # begins the header line of every loss in a trial's error file


def set_switches(switches: Mapping[str, str]) -> None:
    """In the environment of this process; what is set there already stays."""
    for name, value in switches.items():
        os.environ.setdefault(name, value)


def quiet_data() -> None:
    """Ray Data tells of every plan, and of every progress bar that it will not show."""
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger(DATA_PROGRESS).setLevel(logging.ERROR)


def worker_group_startup_timeout_error() -> type[Exception]:
    """Ray Train's error of a worker group that did not get what it asked for."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    error: type[Exception] = WorkerGroupStartupTimeoutError
    return error


def wrapped_error(error: BaseException) -> BaseException | None:
    """What Ray or Ray Train has wrapped in this error, if it is one of theirs."""
    failures = getattr(error, "worker_failures", None)  # Ray Train's error of a worker group
    inner = next(iter(failures.values())) if failures else getattr(error, "_base_exc", None)
    inner = inner or getattr(error, "controller_failure", None) or getattr(error, "cause", None)
    return inner if isinstance(inner, BaseException) else None


def actor_of(trial: Any) -> Any:
    """The process of one of Tune's trials; None if it has none now."""
    return trial.temporary_state.ray_actor


@dataclass(frozen=True)
class Loss:
    """How a trial's process was lost."""

    reason: str
    never_ran: bool  # Ray could not start it
    out_of_memory: bool  # Ray's own guard killed it before the system would have


def last_loss(trial: Any) -> Loss | None:
    """The last one of Tune's trial, which keeps each as a header line and a message; None if it keeps none."""
    if not trial.error_file or not Path(trial.error_file).exists():
        return None
    text = Path(trial.error_file).read_text().split(FAILURE)[-1]
    never_ran = NEVER_RAN in text
    reason = NEVER_RAN if never_ran else f"lost its process: {text.splitlines()[1]}"
    return Loss(reason, never_ran, "OutOfMemory" in text)
