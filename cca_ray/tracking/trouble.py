"""What is wrong when MLflow does not take an entry: a server that is away, or this entry."""

import math
import re
import sqlite3
from collections.abc import Iterator
from urllib.error import URLError

from mlflow.exceptions import MlflowException
from requests.exceptions import RequestException
from sqlalchemy.exc import OperationalError

from cca_ray.errors import first_line, without_secrets

FOR_EVER, A_FEW, ONCE = math.inf, 6, 1
NOBODY = 0  # in place of a status
BUSY = {NOBODY, 408, 429, 502, 503, 504}  # by HTTP's status: it passes
SAID = re.compile(r"too many (\d{3}) error responses")  # by urllib3, of what a server answered
# Of SQLite: it will not take what it is told to write until someone mends it. A lock passes, and a full disk.
BROKEN = {
    sqlite3.SQLITE_ERROR,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_NOTADB,
}


def cause(error: Exception) -> str:
    """One line; of a lost connection, which MLflow tells at length, only the cause."""
    line = first_line(error)
    if "Caused by" in line:
        line = line.rsplit(": ", 1)[-1].partition(" (_ssl.c")[0].strip("\"')")
    known = isinstance(error, (MlflowException, OSError, ValueError))
    return without_secrets(line if known else f"{type(error).__name__}: {line}")


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that it came from."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def answer(error: BaseException) -> int | None:
    """The HTTP status with which a server answered, or which MLflow gives an error of its own; None: neither."""
    for inner in chain(error):
        if isinstance(inner, RequestException) and not isinstance(inner, ValueError):  # such as a malformed URL
            said = SAID.search(str(inner))
            return inner.response.status_code if inner.response is not None else int(said[1]) if said else NOBODY
        if isinstance(inner, (ConnectionError, TimeoutError, URLError)):
            return NOBODY
    if isinstance(error, MlflowException):
        return int(error.get_http_status_code())
    return NOBODY if isinstance(error, OperationalError) else None


def tries(error: Exception) -> float:
    """How often an entry that fails so is tried before it is set aside.

    For ever, if nobody is there, or whoever is there is busy. Once, if it is a folder, a file or an answer to this
    entry that says no. In between is what may be either: a server's own error, or one of its database.
    """
    for inner in chain(error):
        if (code := getattr(inner, "sqlite_errorcode", None)) is not None:
            return ONCE if code & 0xFF in BROKEN else FOR_EVER
    status = answer(error)
    if status in BUSY:
        return FOR_EVER
    unclear = status is not None and (status >= 500 or getattr(error, "error_code", "") == "BAD_REQUEST")
    return A_FEW if unclear else ONCE
