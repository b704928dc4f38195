"""What we use of Ray that has no public way: here alone, and imported when it is needed.

`tests/cluster/test_ray_compat.py` fails on a Ray that has moved one of these, and names it.
"""

import json
import logging
import os
import re
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
TUNE_RESULTS = "ray.tune.analysis.experiment_analysis"  # the logger that misses the copies above, a line a trial
RECONNECT = "RAY_gcs_rpc_server_reconnect_timeout_s"  # an environment variable of Ray's C++ side, 60 if it is not set
ERRORS_THREAD = "ray_listen_error_messages"  # prints what Ray's daemons complain of to stdout, whatever its settings
NEVER_RAN = "The actor never ran"  # how Ray tells of a process that it could not start
FAILURE = "Failure # "  # begins the header line of every loss in a trial's error file


def set_switches(switches: Mapping[str, str]) -> None:
    """In the environment of this process; what is set there already stays."""
    for name, value in switches.items():
        os.environ.setdefault(name, value)


def quiet_tune() -> None:
    """Tune reads its copies of the results when it ends, and warns that there are none."""
    logging.getLogger(TUNE_RESULTS).setLevel(logging.ERROR)


def quiet_data() -> None:
    """Ray Data tells of every plan, of every progress bar that it will not show, and of every error at length.

    It has a log file of its own.
    """
    data = logging.getLogger("ray.data")
    data.setLevel(logging.WARNING)
    data.handlers = [handler for handler in data.handlers if not isinstance(handler, logging.StreamHandler)]
    logging.getLogger(DATA_PROGRESS).setLevel(logging.ERROR)


def named_address() -> str | None:
    """HOST:PORT of the cluster that the environment or Ray's own file names; None: a Ray is to be started here.

    ValueError if it is no address, ConnectionError if `auto` finds none.
    """
    from ray._private.authentication.authentication_token_setup import maybe_enable_token_auth_if_token_available
    from ray._private.services import canonicalize_bootstrap_address

    address: str | None = canonicalize_bootstrap_address(None)
    if address and os.environ.get("RAY_ADDRESS", "auto") in ("", "auto"):  # as `ray.init` does
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)
    return address


def address_file() -> str:
    """Where `ray start` writes down the address that is taken if the environment names none."""
    from ray._common.utils import get_ray_address_file

    return str(get_ray_address_file(None))


@dataclass(frozen=True)
class Versions:
    """What must be the same on all nodes."""

    ray: str
    python: str

    def __str__(self) -> str:
        return f"Ray {self.ray} and Python {self.python}"


def own_versions() -> Versions:
    from ray._private.utils import compute_version_info

    return Versions(*compute_version_info())


def same_versions(theirs: Versions) -> bool:
    """By Ray's own measure."""
    from ray._private.utils import check_version_info

    try:
        check_version_info({"ray_version": theirs.ray, "python_version": theirs.python}, "this process")
    except RuntimeError:
        return False
    return True


def cluster_versions(address: str, seconds: float) -> Versions | None:
    """What the cluster at HOST:PORT tells of itself; None if nothing yet.

    ConnectionError if no Ray answers in this time, PermissionError if it does not take our token. Ray's own client
    would try for minutes, and write to stderr.
    """
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated.gcs_service_pb2 import InternalKVGetRequest
    from ray.core.generated.gcs_service_pb2_grpc import InternalKVGcsServiceStub

    request = InternalKVGetRequest(key=b"CLUSTER_METADATA", namespace=b"cluster")
    with init_grpc_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            reply = InternalKVGcsServiceStub(channel).InternalKVGet(request, timeout=seconds)
        except grpc.RpcError as error:
            if error.code() == grpc.StatusCode.UNAUTHENTICATED:
                raise PermissionError from None
            late = error.code() == grpc.StatusCode.DEADLINE_EXCEEDED
            raise ConnectionError("no answer" if late else "the server there is not Ray") from None
    told = json.loads(reply.value) if reply.value else None
    return Versions(told["ray_version"], told["python_version"]) if told else None


def reconnect_s() -> float:
    """After which Ray ends a process whose cluster is gone."""
    return float(os.environ.get(RECONNECT, 60))


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
    card = re.search(r"^[\w.]*CardLost: (.*)$", text, re.MULTILINE)  # see `device`
    reason = NEVER_RAN if never_ran else f"lost its process: {card[1] if card else text.splitlines()[1]}"
    return Loss(reason, never_ran, "OutOfMemory" in text)
