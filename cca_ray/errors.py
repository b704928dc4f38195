"""What a person is told of an error: the user's mistakes, in one line each."""

from pydantic import ValidationError


class ConfigError(ValueError):
    """A mistake of the user's, told in one line."""


class Stuck(ValueError):
    """Files that cannot be read or written: no fault of this trial, and every other would meet it too."""


def reason(error: ValidationError) -> str:
    """The first of pydantic's complaints, in one line."""
    first = error.errors(include_url=False)[0]
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        message = "unknown key"
    elif not isinstance(first["input"], dict | list) and first["type"] not in ("missing", "value_error"):
        message += f", not {first['input']!r}"
    return message[0].lower() + message[1:]
