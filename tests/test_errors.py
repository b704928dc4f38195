"""What a person may see of an error."""

import os
import signal
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.data
import torch
from pydantic import BaseModel

from cca_ray.cluster.ray_compat import quiet_data
from cca_ray.errors import MEMORY_RAN_OUT, ConfigError, first_line, message_in, reading, user_message, without_secrets
from cca_ray.evaluation.thrift import TOO_SMALL, NoRoom


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://user:pw@host:5000/x", "http://user:***@host:5000/x"),
        (
            "postgresql+psycopg2://u:p%40ss@h/db?x=1 and mysql://a:b@c",
            "postgresql+psycopg2://u:***@h/db?x=1 and mysql://a:***@c",
        ),
        ("http://:token@host", "http://:***@host"),
        ("at http://token@host:5000", "at http://***@host:5000"),
        ("http://user:p/w@rd@host/x", "http://user:***@host/x"),
        ("mysql://host/db?user=u&pass%77ord=pw&x=1", "mysql://host/db?user=u&pass%77ord=***&x=1"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("abfs://f@a/x?se=2030&sig=a%2Fb%3D&sv=1 is", "abfs://***@a/x?se=2030&sig=***&sv=1 is"),
        ("https://b/x?X-Amz-Signature=0a&X-Amz-Date=1", "https://b/x?X-Amz-Signature=***&X-Amz-Date=1"),
        ("'s3://b/x?access_key=AK&secret_key=hidden'", "'s3://b/x?access_key=***&secret_key=***"),
        ("s3://b/x?region=design&scheme=http", "s3://b/x?region=design&scheme=http"),
        ("sqlite:////a/b.db, 12:30 me@home", "sqlite:////a/b.db, 12:30 me@home"),
    ],
)
def test_passwords_of_uris_are_hidden(text: str, shown: str):
    assert without_secrets(text) == shown


def test_the_first_line_of_an_error_is_there_even_if_it_says_nothing():
    assert first_line(OSError("full\nsee the manual")) == "full"
    assert first_line(OSError()) == "OSError"


def test_what_a_damaged_file_raises_is_named_where_it_is_but_a_word():
    with (
        pytest.raises(ConfigError, match=r"x\.pt: not a checkpoint \(KeyError 101\)"),
        reading("x.pt", "not a checkpoint"),
    ):
        raise KeyError(101)
    with (
        pytest.raises(ConfigError, match=r"x\.pt: not a checkpoint \(its end is missing\)"),
        reading("x.pt", "not a checkpoint"),
    ):
        raise EOFError("its end is missing")


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (NoRoom(), TOO_SMALL),
        (MemoryError(), MEMORY_RAN_OUT),
        (torch.OutOfMemoryError("CUDA out of memory."), MEMORY_RAN_OUT),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), MEMORY_RAN_OUT),
        (RuntimeError("CUDA error: device-side assert triggered"), None),
    ],
)
def test_memory_that_ran_out_is_told_in_a_line_that_says_what_to_do(error: Exception, told: str | None):
    assert user_message(error) == told


class Settings(BaseModel):
    steps: int


class Unlike(ValueError):
    """One that Ray cannot make again from its message."""

    def __init__(self, what: str, of: str):
        super().__init__(f"{what} of {of}")


@ray.remote(num_cpus=0, max_retries=0)
def failing(how: str) -> Any:
    """A task of that kind of failure."""
    match how:
        case "mistake":
            raise ConfigError("data.tokens: no such folder")
        case "absent":
            return open("/no/such/file")
        case "setting":
            return Settings(steps="x")
        case "nested":
            return ray.get(failing.remote("mistake"))
        case "unlike":
            raise Unlike("no end", "trouble")
        case "not to be pickled":
            error = ConfigError("holds a lock")
            error.lock = threading.Lock()  # type: ignore[attr-defined]
            raise error
        case "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        case "scoring":
            raise NoRoom
        case "memory":
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 20.00 GiB.")
        case "fault":
            return 1 / 0
    return None


@ray.remote(num_cpus=0)
class Failing:
    def __init__(self, how: str):
        if how == "mistake":
            raise ConfigError("base.checkpoint: no such file")
        if how == "nested":
            ray.get(failing.remote("mistake"))
        if how == "fault":
            raise ZeroDivisionError

    def work(self, how: str) -> None:
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        raise ConfigError("train.beta: too large")


class Unmade:
    def __init__(self) -> None:
        raise ConfigError("--tokenizer: no such file")

    def __call__(self, rows: Any) -> Any:
        return rows


def refusing(rows: Any) -> Any:
    raise ConfigError("--label-key: no such field")


def message(work: Any) -> str | None:
    with pytest.raises(Exception) as error:  # noqa: PT011 (of every kind)
        work()
    return user_message(error.value)


DIED = (
    "a process of Ray died, for example because memory ran out or a machine was lost; run the same command again to "
    "continue"
)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("mistake", "data.tokens: no such folder"),
        ("absent", "/no/such/file: No such file or directory"),
        ("setting", "Settings: input should be a valid integer, unable to parse string as an integer, not 'x'"),
        ("nested", "data.tokens: no such folder"),
        ("unlike", "no end of trouble"),
        ("not to be pickled", "holds a lock"),
        ("killed", DIED),
        ("scoring", TOO_SMALL),
        ("memory", MEMORY_RAN_OUT),
        ("fault", None),
    ],
)
def test_an_error_in_a_task_is_told_in_its_own_words(ray_here: None, how: str, told: str | None):
    assert message(lambda: ray.get(failing.remote(how))) == told


@pytest.mark.parametrize(
    ("begins", "works", "told"),
    [
        ("", "", "train.beta: too large"),
        ("", "killed", DIED),
        ("mistake", "", "base.checkpoint: no such file"),
        ("nested", "", "data.tokens: no such folder"),
        ("fault", "", None),
    ],
)
def test_an_error_in_an_actor_is_told_in_its_own_words(ray_here: None, begins: str, works: str, told: str | None):
    assert message(lambda: ray.get(Failing.remote(begins).work.remote(works))) == told


def test_an_error_in_ray_data_is_told_in_its_own_words_and_nothing_else(ray_here: None, capfd):
    quiet_data()
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows, one = ray.data.range(4), ray.data.ActorPoolStrategy(size=1)
    assert message(rows.map_batches(refusing, num_cpus=0.1).take_all) == "--label-key: no such field"
    made = rows.map_batches(Unmade, compute=one, num_cpus=0.1)
    assert message(made.take_all) == "--tokenizer: no such file"
    assert "Traceback" not in capfd.readouterr().err


def test_an_environment_that_ray_cannot_make_is_told(ray_here: None, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "empty.zip", "w"):
        pass
    (tmp_path / "empty.zip").write_bytes(b"no archive")
    environment = {"working_dir": f"file://{tmp_path}/empty.zip"}
    told = message(lambda: ray.get(failing.options(runtime_env=environment).remote("mistake")))
    assert told is not None
    assert told.startswith("Ray cannot set up its processes: ")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Traceback:\ncca_ray.errors.ConfigError: \x1b[36mred\x1b[39m\n\nray.exceptions.UserCodeException: x", "red"),
        ("FileNotFoundError: a: b", "a: b"),
        ("cca_ray.evaluation.thrift.NoRoom: a: b", "a: b"),
        ("cca_ray.errors.ConfigError: first\n\nRuntimeError: then", None),
        ("no.such.module.Error: x", None),
        ("note: nothing here", None),
        ("", None),
    ],
)
def test_the_last_error_of_a_traceback_counts(text: str, told: str | None):
    assert message_in(text) == told
