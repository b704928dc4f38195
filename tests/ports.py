"""Ports of this machine for servers that tests start."""

import random
import socket

# Above Ray's workers' (10002 to 19999), below those that the kernel gives out by itself (from 32768 on Linux).
RANGE = range(20000, 32768)
held: list[socket.socket] = []


def free_port() -> int:
    """A port that nobody else is given until this process ends, also while nobody listens there.

    Whoever wants one takes a socket of its number's name first, which the kernel gives once and takes back at the
    process's end. The server itself is what binds the port, once or again after it was killed.
    """
    for port in random.sample(RANGE, len(RANGE)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0cca_ray-tests-port-{port}")
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:  # another test's, or a stranger's
            claim.close()
            continue
        held.append(claim)
        return port
    raise AssertionError("no port is free")
