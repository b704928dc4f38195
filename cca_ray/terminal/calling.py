"""Verbs as Python calls them, in the words of the command line: what options may be stands with the options alone."""

import inspect
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, wraps
from importlib import import_module
from pathlib import PurePath
from types import ModuleType
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar, get_args, get_origin, get_type_hints

import typer
from pydantic import TypeAdapter, ValidationError
from typer.models import ParameterInfo

from cca_ray.errors import ConfigError, reason, user_message, without_secrets
from cca_ray.storage.uris import naming_uris

P = ParamSpec("P")
R = TypeVar("R")
Value = Any  # of an argument, before it is checked


class Verb(ModuleType):
    """A module that is called as the function of its own name in it.

    `cca_ray.tune` is a module, which `python -m` runs, and stays one: only so does it not matter who imports it when.
    """

    @property
    def _function(self) -> Callable[..., Any]:
        function: Callable[..., Any] = vars(self)[self.__name__.rpartition(".")[2]]
        return function

    def __call__(self, *args: Value, **kwargs: Value) -> Any:
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """For `help` and for notebooks."""
        return inspect.signature(self._function)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """As Ray sends any other module to its workers: by its name."""
        return import_module, (self.__name__,)


def callable_module(name: str) -> None:
    """From now on the module of this name is a `Verb`."""
    sys.modules[name].__class__ = Verb


class Option(NamedTuple):
    """What the command line takes: the type of its value, and what typer knows of it."""

    kind: Any
    info: ParameterInfo


@cache
def options_of(main: Callable[..., Any]) -> Mapping[str, Option]:
    """By the names of parameters."""
    found: dict[str, Option] = {}
    for name, hint in get_type_hints(main, include_extras=True).items():
        if get_origin(hint) is Annotated:
            kind, *more = get_args(hint)
            found[name] = Option(kind, next(info for info in more if isinstance(info, ParameterInfo)))
    return found


def checked(name: str, value: Value, option: Option) -> Value:
    """The value as the verb takes it. ConfigError, in a line, if the command line would not take it."""
    kind, info = option
    if value is None and type(None) in get_args(kind):
        return None
    if info.parser is not None:
        try:
            return info.parser(value)
        except typer.BadParameter as error:
            raise ConfigError(f"{name}: {error.message}") from None
    if isinstance(value, PurePath) and str in (kind, *get_args(kind)):
        value = str(value)
    try:
        value = TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        raise ConfigError(f"{name}: {reason(error)}") from None
    if info.min is not None and not value >= info.min:
        raise ConfigError(f"{name}: expected at least {info.min:g}, not {value:g}")
    if info.max is not None and not value <= info.max:
        raise ConfigError(f"{name}: expected at most {info.max:g}, not {value:g}")
    return value


def in_python(function: Callable[P, R]) -> Callable[P, R]:
    """A verb's function. It takes what the options of its module's `main` take that have the same names.

    Also from the environment, where it is not given. A mistake of the user's is a ValueError (ConfigError) of one line,
    or an OSError; Ctrl-C a KeyboardInterrupt.
    """
    signature = inspect.signature(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        given = signature.bind(*args, **kwargs)  # TypeError for what there is not, as of any function
        single = {name for name, p in signature.parameters.items() if p.kind is not p.VAR_POSITIONAL}
        for name, option in options_of(function.__globals__["main"]).items():
            if name not in single:
                continue
            if name in given.arguments:
                given.arguments[name] = checked(name, given.arguments[name], option)
            elif text := os.environ.get(str(option.info.envvar)):
                given.arguments[name] = checked(name, text, option)
        given.apply_defaults()
        with sigterm_as_before(), errors_in_one_line():
            return function(*given.args, **given.kwargs)

    return call


@contextmanager
def sigterm_as_before() -> Iterator[None]:
    """Ray changes what SIGTERM does to this process, and leaves it so."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if before is not None:  # None: not set by Python
            signal.signal(signal.SIGTERM, before)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """What pydantic or Ray says at length, or with a password in it, is said as the command line says it."""
    try:
        yield
    except Exception as error:
        said = user_message(error)
        if said is None:  # a fault of ours
            raise
        named = naming_uris(said)
        shown = without_secrets(named)
        if shown == said and (said == str(error) or type(error).__module__ == "builtins"):
            raise
        told = ConfigError(shown)
        for note in getattr(error, "__notes__", ()):
            told.add_note(note)
        raise told from (error if shown == named else None)
