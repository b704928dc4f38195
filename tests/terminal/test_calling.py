"""What a verb called from Python raises, and leaves as it was."""

import signal

import pytest
from pydantic import BaseModel, ValidationError
from ray.exceptions import LocalRayletDiedError, RayTaskError

from cca_ray.errors import ConfigError
from cca_ray.storage.uris import local_path
from cca_ray.terminal.calling import errors_in_one_line, sigterm_as_before


class Model(BaseModel):
    beta: float


def raised(error: BaseException) -> BaseException:
    with pytest.raises(type(error)) as first, errors_in_one_line():
        raise error
    return first.value


def told(error: BaseException) -> ConfigError:
    with pytest.raises(ConfigError) as second, errors_in_one_line():
        raise error
    return second.value


@pytest.mark.parametrize(
    "error",
    [ValueError("beta: too large"), ConfigError("x"), FileNotFoundError(2, "No such file", "a"), KeyboardInterrupt(),
     KeyError("a fault of ours")],
)  # fmt: skip
def test_what_is_clear_stays_what_it_is(error: BaseException):
    assert raised(error) is error


def test_what_pydantic_and_ray_say_at_length_is_one_line():
    with pytest.raises(ValidationError) as long:
        Model(beta="x")
    assert str(told(long.value)) == "Model: input should be a valid number, unable to parse string as a number, not 'x'"
    of_task = RayTaskError(
        "score", "trace\nback", OSError(28, "No space left on device", "scores")
    ).as_instanceof_cause()
    assert str(told(of_task)) == "scores: No space left on device"
    assert "Ray died on this machine" in str(told(LocalRayletDiedError()))


def test_passwords_are_hidden_also_in_the_traceback():
    error = ValueError("postgresql://user:geheim@host/db: no answer")
    error.add_note("log: runs/log.txt")
    shown = told(error)
    assert str(shown) == "postgresql://user:***@host/db: no answer"
    assert shown.__notes__ == ["log: runs/log.txt"]
    assert shown.__cause__ is None
    assert shown.__suppress_context__


def test_a_file_at_a_uri_is_named_by_it():
    uri = "s3://bucket/runs/digits.yaml"
    error = ConfigError(f"{local_path(uri)}: base: field required")
    shown = told(error)
    assert str(shown) == f"{uri}: base: field required"
    assert shown.__cause__ is error
    assert str(told(FileNotFoundError(2, "No such file or directory", str(local_path(uri))))).startswith(f"{uri}: No ")


def test_sigterm_does_what_it_did():
    before = signal.getsignal(signal.SIGTERM)
    with sigterm_as_before():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    assert signal.getsignal(signal.SIGTERM) == before
