"""The cluster that the environment names: whether it is there and of our versions, before Ray tries for minutes."""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import ray

from cca_ray.cluster.ray_compat import (
    address_file,
    cluster_versions,
    named_address,
    own_versions,
    reconnect_s,
    same_versions,
)
from cca_ray.errors import LOCAL_RAY_DIED, ConfigError, RayEnded

VARIABLE = "RAY_ADDRESS"
ANSWER_S = 10.0  # that who is asked has for an answer
LOOK_S = 3.0  # how often a cluster at work is looked after
LEFT_S = 50.0  # that a verb has to end in order, before Ray ends this process without a word of ours
JOIN_S = 5.0  # that the thread which looks has to come back from Ray
END_S = 30.0  # after which one that has not ended, for it waits for Ray and hears nothing, is ended


@dataclass(frozen=True)
class Named:
    """A cluster: where it is, who says so, and what to do if it should not be that one."""

    address: str  # HOST:PORT
    source: str
    cure: str


def named_cluster() -> Named | None:
    """The one that the environment names; None if a Ray is to be started here. ConfigError if it makes no sense."""
    value = os.environ.get(VARIABLE, "")
    cure = f"unset {VARIABLE} to run on this machine alone"
    if value.startswith("ray://"):
        raise ConfigError(
            f"{VARIABLE}={value}: cannot run as a Ray client; use `ray job submit`, or {VARIABLE}=auto on a node"
        )
    if value not in ("", "auto", "local") and not is_address(value):
        raise ConfigError(f"{VARIABLE}={value}: expected HOST:PORT, auto or local")
    try:
        address = named_address()
    except ConnectionError:
        raise ConfigError(f"{VARIABLE}={value}: no Ray runs on this machine; start one, or {cure}") from None
    if address is None:
        return None
    if value:
        return Named(address, f"{VARIABLE}={value}", cure)
    cure = f"run `ray stop`, or set {VARIABLE}=local, to run on this machine alone"
    return Named(address, f"{address_file()}, {address}", cure)


def is_address(text: str) -> bool:
    """HOST:PORT."""
    host, _, port = text.rpartition(":")
    return host.strip() != "" and port.isdecimal() and 0 < int(port) < 2**16


def knock(address: str) -> None:
    """OSError or UnicodeError if nobody listens at HOST:PORT."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), ANSWER_S).close()


def answers(address: str) -> bool:
    try:
        knock(address)
    except OSError:
        return False
    return True


def check_cluster(cluster: Named) -> None:
    """ConfigError, within seconds, if it does not answer, does not let us in, or has another Ray or Python."""
    begins = f"{cluster.source}: no Ray cluster answers there"
    try:
        knock(cluster.address)
        theirs = cluster_versions(cluster.address, ANSWER_S)
    except PermissionError:
        raise ConfigError(
            f"{cluster.source}: this cluster does not accept our token; set RAY_AUTH_MODE=token, and "
            "RAY_AUTH_TOKEN_PATH to the file of the cluster's"
        ) from None
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host at all
        why = getattr(error, "strerror", None) or ("no host's name" if isinstance(error, UnicodeError) else str(error))
        raise ConfigError(f"{begins} ({why}); start it, or {cluster.cure}") from None
    if theirs is not None and not same_versions(theirs):
        raise ConfigError(
            f"{cluster.source}: the cluster has {theirs}, this process has {own_versions()}; install the same versions "
            f"here, or {cluster.cure}"
        )


def died(node: str) -> bool:
    """Whether the cluster that this process is connected to takes the node with this id for dead."""
    return any(known["NodeID"] == node and not known["Alive"] for known in ray.nodes())


def check_connection(address: str, node: str) -> None:
    """ConfigError if the Ray at this address, to which this process is connected on this node, has ended.

    Who asked it for something would wait in vain, and so would its own end: no other can be had in this process.
    """
    if not answers(address) or died(node):
        raise ConfigError(
            "the Ray of this process has ended; restart the process (in a notebook, the kernel), and run the same again"
        )


@contextmanager
def heeding_cluster(address: str, stop: Callable[[], None], node: str = "") -> Iterator[None]:
    """Meanwhile `stop` is called if the Ray at this address ends; whatever error follows from that is RayEnded.

    The same if the cluster takes `node`, the id of ours, for dead. A thread looks: who waits for Ray itself would wait
    too long, or, without a node of its own, for ever. A process that does not stop in time is ended, with the same
    line.
    """
    lost, over = threading.Event(), threading.Event()
    seen, patience = time.monotonic(), max(2 * LOOK_S, reconnect_s() - LEFT_S)
    ended = f"the Ray at {address} has ended; run the same command again to continue"

    def amiss() -> str:
        """What has ended; empty: nothing."""
        nonlocal seen
        if not answers(address):
            return ended if time.monotonic() - seen > patience else ""
        seen = time.monotonic()
        return LOCAL_RAY_DIED if node and not over.is_set() and died(node) else ""

    def look() -> None:
        nonlocal ended
        while not over.wait(LOOK_S):
            if (what := amiss()) and not over.is_set():
                ended = what
                lost.set()
                stop()
                if not over.wait(END_S):
                    print(f"error: {ended}", file=sys.stderr, flush=True)
                    os._exit(2)
                return

    thread = threading.Thread(target=look, name="cluster", daemon=True)
    thread.start()
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        # Some errors of Ray are quicker than the thread. But who ends both of us wants to hear that it was stopped.
        if lost.is_set() or (isinstance(error, Exception) and not answers(address)):
            raise RayEnded(ended) from None
        raise
    finally:
        over.set()
        thread.join(JOIN_S)  # Ray ends, without a word, a process that asks it something after its shutdown
