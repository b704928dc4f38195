"""Reads a search-space file: YAML, with `--set` overrides, into a `StudyConfig`.

Anything unknown, mistyped or impossible is a `ConfigError` of one line: the file, the key, what is allowed.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from cca_ray.config import StudyConfig, Train, keys_of_train
from cca_ray.errors import ConfigError, first_line, reason

LONGEST_NAME = 150  # bytes: a file's may have 255, and ours go on after it
# What lies in the storage or in a study's folder, where it would be in the way of a study or a size of this name.
OURS = {
    "asked.json", "bases", "driver.json", "lock", "log.txt", "mlartifacts", "mlflow.db", "reference", "report",
    "scores", "status.json", "study.db", "summary.json", "trials",
}  # fmt: skip

MOST_BYTES, MOST_NODES = 2**20, 10_000  # of a file; of its values, with every alias written out


class UniqueKeyLoader(yaml.SafeLoader):
    """YAML 1.1, but `1e-3` is a number, as everyone expects, and a key given twice is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"key {twice[0]!r} is given twice", node.start_mark)
        return super().construct_mapping(node, deep)


UniqueKeyLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def allowed_keys(location: tuple[int | str, ...], content: Mapping[str, Any]) -> str:
    """For an unknown key: the keys that its section knows, which in `train` depend on the objective."""
    model: Any = StudyConfig
    for part in location[:-1]:
        if isinstance(model, type) and issubclass(model, BaseModel) and part in model.model_fields:
            model = model.model_fields[str(part)].annotation
        elif getattr(model, "__args__", None):
            model = next(a for a in reversed(model.__args__) if a is not Ellipsis)
        if get_origin(model) in (Union, UnionType):  # a section that may be left out
            model = next(a for a in get_args(model) if a is not NoneType)
    if model is Train:
        known = list(keys_of_train(content["train"].get("objective", Train.model_fields["objective"].default)))
    else:
        known = [f.alias or n for n, f in model.model_fields.items() if (model, n) != (StudyConfig, "name")]
    return f"; allowed: {', '.join(known)}"


def parse(content: Any, name: str, source: str) -> StudyConfig:
    """Validate the content of a file. Raises ConfigError."""
    if not isinstance(content, dict):
        raise ConfigError(f"{source}: not a search space (a mapping with base, search, rungs, ...)")
    if "name" in content:
        raise ConfigError(f"{source}: name: unknown key; the file's own name is the study's")
    try:
        # By way of JSON, where pydantic's strictness takes a list for a tuple but nothing else for anything else.
        as_json = json.dumps({"name": name, **content}, default=str)
    except TypeError:
        raise ConfigError(f"{source}: every key must be a word; one is a date or a number") from None
    except (ValueError, RecursionError) as error:  # what holds itself
        raise ConfigError(f"{source}: not a search space: {first_line(error)}") from None
    try:
        return StudyConfig.model_validate_json(as_json)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "file"
        extra = allowed_keys(first["loc"], content) if first["type"] == "extra_forbidden" else ""
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        raise ConfigError(f"{source}: {where}: {reason(error)}{extra}{more}") from None


def as_settings(given: Mapping[str, object] | Sequence[str]) -> list[str]:
    """Overrides as `--set` takes them: Python's `{"train.beta": 0.05}` is `train.beta=0.05`."""
    if isinstance(given, str):
        raise ConfigError(f"settings: expected a mapping, such as {{'train.beta': 0.05}}, not {given!r}")
    if not isinstance(given, Mapping):
        return list(given)
    try:
        return [f"{key}={json.dumps(value, default=plain)}" for key, value in given.items()]
    except (TypeError, ValueError) as error:
        raise ConfigError(f"settings: {first_line(error)}") from None


def plain(value: object) -> object:
    """A number of NumPy's, or a path, as JSON has it. TypeError for what is neither."""
    if isinstance(value, PurePath):
        return str(value)
    if callable(item := getattr(value, "item", None)):
        return item()
    raise TypeError(f"{value!r} is not a number, word, list or mapping")


def override(content: Any, setting: str) -> None:
    """Apply `a.b=c` to the raw content of a file; c is read as YAML."""
    path, equals, text = setting.partition("=")
    keys = path.split(".")
    if not equals or not all(keys):
        raise ConfigError(f"--set {setting}: expected KEY.KEY=VALUE, such as --set train.beta=0.05")
    if not isinstance(content, dict):
        raise ConfigError(f"--set {setting}: the file holds no keys")
    for key in keys[:-1]:
        content = content.setdefault(key, {}) if isinstance(content, dict) else None
        if not isinstance(content, dict):
            raise ConfigError(f"--set {setting}: {key} holds no keys")
    content[keys[-1]] = read_yaml(text, f"--set {setting}")


def read_yaml(text: str, source: str) -> Any:
    """ConfigError if it is not YAML, or would become far more than it looks: aliases of aliases double at each line."""
    if len(text) > MOST_BYTES:
        raise ConfigError(f"{source}: has {len(text):,} characters; a search space has at most {MOST_BYTES:,}")
    try:
        loader = UniqueKeyLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if written_out(node, {}) > MOST_NODES:
            raise ConfigError(f"{source}: with its aliases written out it has more than {MOST_NODES:,} values")
        return by_value(loader.construct_document(node))
    except RecursionError:
        raise ConfigError(f"{source}: is nested too deeply, or within itself") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{source}:{where} not YAML: {getattr(error, 'problem', error)}") from None
    except (ValueError, TypeError, LookupError, AttributeError) as error:  # of `!!float x`, 2001-99-99
        raise ConfigError(f"{source}: not YAML that can be read: {first_line(error)}") from None


def fault_of_name(name: str) -> str:
    """Why this can be no name of a study or size, which names folders, files and runs; nothing if it can."""
    if not re.fullmatch(r"[\w.-]+", name):
        return "letters, digits, '.', '_' and '-' only"
    if name.startswith("-") or not name.strip("."):
        return "expected a name that is not '.' or '..' and does not begin with '-'"
    if len(name.encode()) > LONGEST_NAME:
        return f"at most {LONGEST_NAME} bytes"
    return f"{name} is the name of a file that studies write" if name in OURS else ""


def written_out(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is, each alias counted as often as it stands there."""
    if id(node) not in known:
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(written_out(part, known) for part in parts)
    return known[id(node)]


def by_value(content: Any) -> Any:
    """The same with a copy in each place of what aliases share: `--set` changes one place."""
    if isinstance(content, dict):
        return {key: by_value(value) for key, value in content.items()}
    return [by_value(value) for value in content] if isinstance(content, list) else content


def load_config(path: str | Path, settings: Iterable[str] = ()) -> StudyConfig:
    """Read a search-space file, apply `--set` overrides, validate. Raises ConfigError."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such search-space file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from None
    content = read_yaml(text, str(path))
    for setting in settings:
        override(content, setting)
    if fault := fault_of_name(path.stem):
        raise ConfigError(f"{path}: the file's name is the study's: {fault}")
    return with_absolute_paths(parse(content, path.stem, str(path)))


def is_uri(place: str | Path) -> bool:
    return isinstance(place, str) and "://" in place


def with_absolute_paths(config: StudyConfig) -> StudyConfig:
    """Trials run in directories of their own. URIs stay."""
    named = {key: path for key, path in config.paths().items() if not is_uri(path)}
    return config.with_paths({key: str(Path(path).expanduser().absolute()) for key, path in named.items()})
