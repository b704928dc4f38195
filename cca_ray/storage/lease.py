"""One driver a study, also of drivers on several machines: an object beside the study that its holder renews.

What an object store can promise is little: it has no locks. Two drivers that begin in the same second are told apart
by reading back what was written; a driver that could not renew for `STALE_S` may be followed by another, and ends
when it sees that.
"""

import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cca_ray.contracts import Contract
from cca_ray.errors import ConfigError
from cca_ray.storage.mirror import pull, push, remove, written_at
from cca_ray.storage.remote import upload
from cca_ray.storage.uris import is_copy, own_cache, to_uri

LEASE = "driver.json"
RENEW_S, STALE_S = 10.0, 60.0
SETTLE_S = 1.0  # until what two wrote at the same time can be read back


def cache_id() -> str:
    """Names this node's cache: whoever shares it meets the lock of its folder too."""
    path = own_cache() / "id"
    with suppress(FileExistsError), path.open("x") as file:
        file.write(uuid.uuid4().hex)
    return path.read_text()


class Holder(Contract):
    """What the object says of who holds the lease."""

    who: str
    cache: str  # its `cache_id`
    id: str  # of this hold


def holder_of(path: Path) -> Holder | None:
    """Who holds the lease; None if nobody does, or the object is no holder's."""
    with suppress(ValueError):
        if pull(path):
            return Holder.model_validate_json(path.read_text())
    return None


def age_s(path: Path) -> float:
    """Since the object was renewed, by the storage's clock."""
    probe = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}")
    upload(probe, Path(os.devnull))
    now = written_at(probe)
    remove(probe)
    return now - written_at(path)


@contextmanager
def leased(folder: Path) -> Iterator[None]:
    """Hold the study at the folder's URI; a folder without one needs none. The caller holds the folder's own lock.

    ConfigError, naming the holder, if another holds it.
    """
    if not is_copy(folder):
        yield
        return
    path = folder / LEASE
    holder = holder_of(path)
    # A holder with this very cache is dead: it would have the folder's lock.
    if holder and holder.cache != cache_id() and (age := age_s(path)) < STALE_S:
        raise ConfigError(
            f"{to_uri(folder)}: in use by {holder.who}, which was seen {max(age, 0):.0f} s ago; "
            f"a holder that is gone is followed after {STALE_S:.0f} s"
        )
    me = Holder(who=f"process {os.getpid()} on {socket.gethostname()}", cache=cache_id(), id=uuid.uuid4().hex)
    path.write_text(me.model_dump_json())
    push(path)
    if holder is None or holder.cache != me.cache:
        time.sleep(SETTLE_S)
    if (now := holder_of(path)) != me:
        other = now.who if now else "a process"
        raise ConfigError(f"{to_uri(folder)}: in use by {other}, which began at the same time")
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(RENEW_S):
            with suppress(OSError):  # as long as the storage is away, nobody else gets it either
                if (now := holder_of(path)) not in (me, None):
                    print(f"error: {to_uri(folder)}: taken over by {now.who}", file=sys.stderr, flush=True)
                    os._exit(2)  # as a kill: whatever this process wrote now would be the other's
                path.write_text(me.model_dump_json())
                upload(path, path)

    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SETTLE_S)
        with suppress(OSError):
            if holder_of(path) == me:
                remove(path)
