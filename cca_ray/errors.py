"""Whose fault an error is, and what a person is told of it in a line.

The user's are ValueErrors, `ConfigError` where nothing else says it; the storage's are OSErrors, `Stuck` where a trial
meets one. Memory that runs out is nobody's fault. All else is a fault of ours, and ends in a traceback.
"""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from errno import EINVAL
from pathlib import Path
from urllib.parse import unquote

from pydantic import ValidationError

USERINFO = re.compile(r"://(?:([^/\s:@]*):\S*|[^/\s:@]+)@")  # a password may hold what is no letter, `/` and `@` too
QUERY = re.compile(r"([?&])([^=&\s]+)=[^&\s]+")
SECRET = re.compile(r"^sig$|secret|passw|pwd|token|key|signature|credential|auth", re.IGNORECASE)  # names in a query
MEMORY_RAN_OUT = (
    "memory ran out; use a card or a machine with more, or take less at a time, as with --set placement.micro_batch=1"
)
LOCAL_RAY_DIED = "Ray died on this machine; run the same command again to continue"
COLOURS = re.compile(r"\x1b\[[0-9;]*m")  # which Ray gives to its tracebacks, terminal or not


class ConfigError(ValueError):
    """A mistake of the user's, told in one line."""


class Incomplete(ValueError):
    """A study has ended, and its results are there; but replicates, its report or what MLflow shows lack something."""


class RayEnded(ConfigError):
    """The Ray that this process is connected to is gone: whatever else it would ask of Ray, it would wait for long."""


class Stuck(ValueError):
    """What is no fault of this trial, and every other would meet too: files, or a card, that cannot be used."""


class NoMemory(RuntimeError):
    """Memory that ran out where taking less at a time does not help any more; it says so itself."""


def is_out_of_memory(error: BaseException) -> bool:
    """On a GPU or on a CPU, where PyTorch has no kind of its own for it."""
    signs = (
        "can't allocate memory", "not enough memory", "bad_alloc", "CUDA error: out of memory",
        "CUBLAS_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_NOT_INITIALIZED",  # its workspace found no room
        "CUDNN_STATUS_ALLOC_FAILED",
    )  # fmt: skip
    torch = sys.modules.get("torch")  # too heavy to import for a mistyped option
    return isinstance(error, (MemoryError, torch.OutOfMemoryError) if torch else MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)
    )


def without_secrets(text: str) -> str:
    """The same with the credentials of URIs hidden, `http://user:***@host`: for whatever a person or a file may see.

    Rather too much is hidden than too little: a user's name alone may be a token, and `@` may be part of a password.
    """
    text = USERINFO.sub(lambda found: "://***@" if found[1] is None else f"://{found[1]}:***@", text)
    return QUERY.sub(lambda found: f"{found[1]}{found[2]}=***" if is_secret(found[2]) else found[0], text)


def is_secret(name: str) -> bool:
    """Whether what has this name in a URI's query is nobody's business."""
    return bool(SECRET.search(unquote(name)))


def user_message(error: BaseException) -> str | None:
    """What to tell of an error; None if it is a fault of ours."""
    if "ray" in sys.modules:  # too heavy to import for a mistyped option
        from ray.exceptions import RayError

        if isinstance(error, RayError):  # first: one from a task is of its cause's kind too, and says it at length
            return message_of_ray(error)
    if isinstance(error, ValidationError):
        return f"{error.title}: {reason(error)}"
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}"
    if is_out_of_memory(error):
        return MEMORY_RAN_OUT
    return str(error) if isinstance(error, ValueError | NoMemory) else None


def message_of_ray(error: BaseException) -> str | None:
    """The same of an error that Ray has brought from another process, or of one of its own."""
    from ray import exceptions

    cause = error
    while isinstance(cause, exceptions.RayTaskError):
        cause = cause.cause
    if not isinstance(cause, exceptions.RayError):
        return user_message(cause)
    text = str(error)
    if isinstance(cause, exceptions.LocalRayletDiedError):
        return LOCAL_RAY_DIED
    if isinstance(cause, exceptions.OutOfMemoryError):
        return (
            "memory ran out, and Ray ended a process; use a machine with more memory, or run less at a time "
            "(--max-concurrent)"
        )
    if isinstance(cause, exceptions.ObjectStoreFullError | exceptions.OutOfDiskError):
        return "no space is left for Ray's objects; free some in /dev/shm and in the folder that RAY_TMPDIR names"
    if isinstance(cause, exceptions.RuntimeEnvSetupError):
        return f"Ray cannot set up its processes: {last_line(text)}; see the runtime_env of this job"
    lost = exceptions.WorkerCrashedError | exceptions.NodeDiedError | exceptions.ObjectLostError
    if isinstance(cause, lost | exceptions.RayActorError) and not getattr(cause, "actor_init_failed", False):
        return (
            "a process of Ray died, for example because memory ran out or a machine was lost; "
            "run the same command again to continue"
        )
    return message_in(text)


ENDING = re.compile(r"^([A-Za-z_][\w.]*): (.*)$", re.MULTILINE)  # of a traceback


def message_in(text: str) -> str | None:
    """The message of the error that this text ends in, by its tracebacks: of some errors Ray keeps no more.

    None if it is no error of the user's.
    """
    for name, message in reversed(ENDING.findall(COLOURS.sub("", text))):
        module, _, kind = name.rpartition(".")
        found = getattr(sys.modules.get(module or "builtins"), kind, None)
        if isinstance(found, type) and issubclass(found, BaseException) and not module.startswith("ray."):
            return str(message) if issubclass(found, ValueError | OSError | NoMemory) else None
    return None


def last_line(text: str) -> str:
    """What a traceback ends in, without the kind of the error."""
    return re.sub(r"^[\w.]+: ", "", text.strip().splitlines()[-1])


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@contextmanager
def reading(path: str | Path, what: str) -> Iterator[None]:
    """Meanwhile a file is read: if that fails, it is a ValueError that names the file, says `what`, and why.

    Whatever fails: of a damaged file zipfile, zlib, NumPy, pyarrow and torch raise errors of many kinds. But one of the
    storage, as of a disk that fails or a file that is not ours to read, stays what it is.
    """
    try:
        yield
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno not in (None, EINVAL):  # EINVAL: it tells of a place before it
            raise
        why = first_line(error)
        if " " not in why:  # a KeyError, of a damaged pickle, says `101`
            why = f"{type(error).__name__} {why}"
        raise ConfigError(f"{path}: {what} ({why})") from None


def reason(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one line."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif not isinstance(first["input"], dict | list) and first["type"] not in ("missing", "value_error"):
        message += f", not {first['input']!r}"
    return message[0].lower() + message[1:]
