"""Ray while a verb needs it: connected, heard nothing of on the terminal, told of in a line if it ends."""

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from cca_ray.cluster.address import check_connection, heeding_cluster
from cca_ray.cluster.queue import Node, node_here, nodes_now
from cca_ray.cluster.session import start_ray
from cca_ray.errors import RayEnded
from cca_ray.terminal.stream import native_stderr_to

LOG = logging.getLogger(__name__)


def interrupt() -> None:
    """As Ctrl-C does, from another thread."""
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


@contextmanager
def ray_session(
    stop: Callable[[], None] = interrupt, log: Path = Path(os.devnull), level: int = logging.ERROR
) -> Iterator[None]:
    """Connected to the Ray that the environment names, or to one of our own, which ends with this.

    ConfigError if there is none; RayEnded if it ends meanwhile: then `stop` is called, by another thread, and the main
    thread is to end this. `log`: takes what Ray's C++ writes, which has log files of its own. `level`: see `start_ray`.
    A process that is connected already stays so; ConfigError if that Ray has ended.
    """
    if ray.is_initialized():
        there = ray.get_runtime_context()
        check_connection(there.gcs_address, there.get_node_id())
        yield
        return
    with native_stderr_to(log):
        LOG.info("Ray's own log files are in %s", start_ray(level))
        try:
            here = ray.get_runtime_context()
            with heeding_cluster(here.gcs_address, stop, here.get_node_id()):
                yield
        except RayEnded:  # a shutdown would wait for it
            raise
        except BaseException:
            ray.shutdown()
            raise
        ray.shutdown()


def nodes_to_plan_for() -> list[Node]:
    """Of the cluster that RAY_ADDRESS names; else this machine, without a Ray of our own."""
    if os.environ.get("RAY_ADDRESS", "local") in ("", "local"):
        return [node_here()]
    with ray_session():
        return nodes_now()
