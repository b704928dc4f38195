"""Whose fault an error is, and what a person is told of it in a line.

The user's are ValueErrors, `ConfigError` where nothing else says it; the storage's are OSErrors, `Stuck` where a trial
meets one. All else is a fault of ours, and ends in a traceback.
"""

import re
import sys

from pydantic import ValidationError

PASSWORD = re.compile(r"(://[^/\s:@]*):[^/\s@]+@")
# In a URI's query: keys, passwords, tokens, and the signatures of Azure (sig), Amazon and Google.
SECRET = re.compile(
    r"([?&](?:sig|[^=&\s]*(?:secret|password|token|key|signature|credential)[^=&\s]*)=)[^&\s'\"]*", re.IGNORECASE
)


class ConfigError(ValueError):
    """A mistake of the user's, told in one line."""


class Stuck(ValueError):
    """Files that cannot be read or written: no fault of this trial, and every other would meet it too."""


def without_secrets(text: str) -> str:
    """The same with the passwords and signatures of URIs hidden, `http://user:***@host/x?sig=***`.

    For whatever a person or a file may see.
    """
    return SECRET.sub("\\1***", PASSWORD.sub("\\1:***@", text))


def user_message(error: BaseException) -> str | None:
    """What to tell of an error; None if it is a fault of ours."""
    if isinstance(error, ValidationError):
        return f"{error.title}: {reason(error)}"
    if "ray" in sys.modules:  # too heavy to import for a mistyped option
        from ray.exceptions import LocalRayletDiedError, RayError

        if isinstance(error, LocalRayletDiedError):
            return "Ray died on this machine; run the same command again to continue"
        if isinstance(error, RayError):
            return message_of_cause(error)
    if isinstance(error, OSError):
        return f"{error.filename or 'input/output'}: {error.strerror or error}"
    return str(error) if isinstance(error, ValueError) else None


def message_of_cause(error: BaseException) -> str | None:
    """The same of an error that Ray has brought from another process."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, ValueError | OSError):
        cause = getattr(cause, "cause", None) or cause.__cause__
    return None if cause is None else str(cause)


def first_line(error: BaseException) -> str:
    """What an error says, in a line; its type, if it says nothing."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def reason(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one line."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif not isinstance(first["input"], dict | list) and first["type"] not in ("missing", "value_error"):
        message += f", not {first['input']!r}"
    return message[0].lower() + message[1:]
