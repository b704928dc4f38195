"""Connecting to Ray, and giving back what it leaves reserved there for those that have ended."""

import logging
import os
import re
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import ray
from ray.util import remove_placement_group
from ray.util.placement_group import PlacementGroup, placement_group_table
from ray.util.state import list_jobs, list_placement_groups

from cca_ray.cluster.address import Named, check_cluster, named_cluster
from cca_ray.cluster.ray_compat import TUNE_SWITCHES, address_file, quiet_tune, set_switches
from cca_ray.cluster.sign import Sign
from cca_ray.errors import ConfigError, first_line
from cca_ray.storage.mirror import listed, pull

OURS = re.compile("cca[_-]ray")  # in the command line of every driver of ours
REMOVED = "REMOVED"  # the state of a placement group


def start_ray(level: int = logging.ERROR) -> str:
    """Connect to the cluster that the environment names, or start one here; where its log files are on this node.

    From then on SIGTERM is as good as SIGINT. `level`: from which Ray speaks in this process; those of its other
    processes have their log files.
    """
    set_switches(TUNE_SWITCHES)
    quiet_tune()
    logging.getLogger("ray").setLevel(level)
    cluster = named_cluster()
    if cluster is not None:
        check_cluster(cluster)
    else:
        refuse_odd_temporary_folder()
        token_without_home()
    try:
        context = ray.init(logging_level=level, log_to_driver=False)
    except Exception as error:  # of many kinds, and none a fault of ours
        raise ConfigError(why_not(error, cluster)) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    return str(Path(context.address_info["session_dir"]) / "logs")


def refuse_odd_temporary_folder() -> None:
    """ConfigError if Ray, which writes its path on command lines, would not start in this node's temporary folder."""
    folder = os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()
    if not folder.isascii() or set(folder) & set("'\\"):
        raise ConfigError(
            f"{folder}: Ray cannot start in a temporary folder with letters beyond ASCII, ' or \\ in its path; "
            "set RAY_TMPDIR=/tmp, or TMPDIR"
        )


def token_without_home() -> None:
    """A Ray of our own keeps its token in the home folder; where that cannot be written the token is this process's."""
    if {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & set(os.environ):
        return
    try:
        folder = Path.home() / ".ray"
        if (folder / "auth_token").exists():
            return
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except (OSError, RuntimeError):  # RuntimeError: there is no home at all
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def why_not(error: Exception, cluster: Named | None) -> str:
    """What to tell of a Ray that does not start, or does not take us."""
    said = first_line(error.__cause__ or error)
    if cluster is not None:
        return f"{cluster.source}: {said}; fix that, or {cluster.cure}"
    folder = Path(address_file()).parent
    if isinstance(error, OSError) and (error.errno is None or Path(error.filename or "").is_relative_to(folder)):
        why = error.strerror or "the names of its sockets would be too long"
        return f"Ray cannot use {folder} ({why}); set RAY_TMPDIR to a folder with a short path, such as /tmp"
    return f"Ray does not start on this machine ({said}); its log files are below {folder}/session_latest/logs"


def group_of(id_: str) -> PlacementGroup:
    """The placement group of this id, in hexadecimal digits."""
    return PlacementGroup(ray.PlacementGroupID(bytes.fromhex(id_)))


def remove_leaked_groups(say: Callable[[str], None]) -> None:
    """Free what studies that died left reserved on a cluster: placement groups that no one will ever use.

    Ray frees most by itself, but not what a trainer was still waiting for when its driver was killed.
    """
    try:
        here: Any = {"address": ray.get_runtime_context().gcs_address, "limit": 10_000}
        ended = {job.job_id for job in list_jobs(**here) if job.status != "RUNNING" and OURS.search(job.entrypoint)}
        groups = list_placement_groups(**here, detail=True, filters=[("state", "!=", REMOVED)])
    except Exception as error:  # the dashboard does not answer
        say(f"cannot look for leaked placement groups: {type(error).__name__}")
        return
    leaked = [group for group in groups if group.creator_job_id in ended and not group.is_detached]
    for group in leaked:
        remove_placement_group(group_of(group.placement_group_id))
    if leaked:
        say(f"removed {len(leaked)} placement group(s) that dead studies had left behind")


def free_worker_group(folder: Path) -> bool:
    """Give back what the workers of the trial of this folder hold that are gone; whether there was anything.

    Ray Train leaves that to a helper, which fails where several Rays are on one machine, or by a race (Ray 2.60).
    """
    signs = [Sign.read(path) for path in listed(folder, "alive-*") if pull(path)]
    return sum(removed(group_of(id_)) for id_ in {sign.group for sign in signs if sign and sign.group}) > 0


def removed(group: PlacementGroup) -> bool:
    """Remove it if it is still there; whether it was."""
    there: bool = placement_group_table(group).get("state", REMOVED) != REMOVED
    if there:
        remove_placement_group(group)
    return there
