"""One driver a study, also of drivers on several machines: an object beside the study that its holder renews.

What an object store can promise is little: it has no locks. Two drivers that begin in the same second are told apart
by reading back what was written; a driver that could not renew for `STALE_S` may be followed by another, and ends
when it sees that: at the next renewal, or before it writes anything that comes later than half of that time.
What remains is a driver that falls asleep within the very request that writes: pyarrow has no conditional ones.
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
from tempfile import TemporaryDirectory

from cca_ray.contracts import Contract
from cca_ray.errors import ConfigError
from cca_ray.storage.mirror import pull, remove, trying, written_at
from cca_ray.storage.remote import upload
from cca_ray.storage.term import HELD, Moment, Term
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
            f"a holder that has ended loses it after {STALE_S:.0f} s"
        )
    me = Holder(who=f"process {os.getpid()} on {socket.gethostname()}", cache=cache_id(), id=uuid.uuid4().hex)
    with TemporaryDirectory(prefix="cca_ray-") as scratch:
        written = Path(scratch) / LEASE  # never the copy itself, which must be what is at the URI
        written.write_text(me.model_dump_json())
        begun = Moment.now()
        trying(lambda: upload(path, written))
        if holder is None or holder.cache != me.cache:
            time.sleep(SETTLE_S)
        if (now := holder_of(path)) != me:
            other = now.who if now else "a process"
            raise ConfigError(f"{to_uri(folder)}: in use by {other}, which began at the same time")
        with renewing(path, me, written, begun):
            yield


@contextmanager
def renewing(path: Path, me: Holder, written: Path, begun: Moment) -> Iterator[None]:
    """Renew the lease, which was written at `begun`, and stop this process if it is another's; give it back then."""
    ended = threading.Event()

    def ask() -> None:
        now = holder_of(path)
        if now == me or (now is None and not term.over()):  # after the term: one that followed has ended, too
            return
        print(f"error: {to_uri(path.parent)}: taken over by {now.who if now else 'another process'}", file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)  # as a kill: whatever this process wrote now would be the other's

    def renew() -> None:
        while not ended.wait(RENEW_S):
            with suppress(OSError):  # as long as the storage is away, nobody else gets it either
                ask()
                now = Moment.now()
                upload(path, written)
                term.renewed = now

    # The other half of the time is for what is written to arrive.
    term = HELD[path.parent] = Term(STALE_S / 2, ask, begun)
    thread = threading.Thread(target=renew, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(SETTLE_S)
        del HELD[path.parent]
        with suppress(OSError):
            if holder_of(path) == me:
                remove(path)
