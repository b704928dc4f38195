"""Why a trial cannot go on, in one line of the error's own words."""

import errno

from cca_ray.cluster.ray_compat import wrapped_error
from cca_ray.contracts import Attempt
from cca_ray.errors import Stuck
from cca_ray.training.reports import TrialFailure

STORAGE_FAULTS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE}  # met outside of our own code
ATTEMPT = "attempt"  # an attribute of errors


def innermost(error: BaseException) -> BaseException:
    """What Ray and Ray Train have wrapped."""
    inner = wrapped_error(error)
    if not isinstance(error, Stuck):  # whose own words are the best
        inner = inner or error.__cause__
    return innermost(inner) if isinstance(inner, BaseException) else error


def blame(error: BaseException, attempt: Attempt) -> None:
    """Let the error say what the attempt took that it ended; this also travels through Ray."""
    vars(error)[ATTEMPT] = attempt


def attempt_of(error: BaseException | None) -> Attempt | None:
    """What an attempt took, by the error that ended it, however wrapped."""
    while isinstance(error, BaseException):
        found = vars(error).get(ATTEMPT)
        if isinstance(found, Attempt):
            return found
        error = wrapped_error(error) or error.__cause__
    return None


def one_line(error: BaseException) -> str:
    """Kind and first line of the message."""
    text = str(error).strip().splitlines()
    first = text[0] if text else "no message"
    return (first if isinstance(error, Stuck) else f"{type(error).__name__}: {first}")[:500]


def failure_of(error: BaseException) -> TrialFailure:
    """The report that ends a trial."""
    inner = innermost(error)
    stuck = isinstance(inner, Stuck) or (isinstance(inner, OSError) and inner.errno in STORAGE_FAULTS)
    return TrialFailure(reason=one_line(inner), stuck=stuck, attempt=attempt_of(error))
