"""What plugs in: model families, objectives, feature extractors, metrics and samplers, by name; ours and others'.

Ours are imported when they are asked for. Others' come from modules that the entry-point group `cca_ray.plugins` names,
or a search space's `plugins`. Such a module has `PLUGINS`, a sequence of objects, each with a `kind` and a `name`.
"""

import hashlib
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from pydantic import BaseModel

from cca_ray.contracts import MetricInfo
from cca_ray.errors import ConfigError

GROUP = "cca_ray.plugins"


class Named(Protocol):
    """Anything that plugs in. `kind`: family, objective, extractor, metric or sampler."""

    @property
    def kind(self) -> str: ...
    @property
    def name(self) -> str: ...


class FamilyFacts(Named, Protocol):
    """What a search space must know of a model family; `models.family.Family` is the whole."""

    @property
    def sizes(self) -> Mapping[str, Mapping[str, Any]]:
        """By name, from small to large."""

    @property
    def passes(self) -> str:
        """What sampling an image without guidance costs, in words."""

    @property
    def any_order(self) -> bool:
        """Whether it can be trained on tokens in any order."""

    @property
    def text_positions(self) -> int:
        """Of a text that its models take for a condition; 0: they take classes."""


class ObjectiveFacts(Named, Protocol):
    """What a search space must know of an objective; `training.objectives.Objective` is the whole."""

    @property
    def label(self) -> str: ...
    @property
    def parameters(self) -> type[BaseModel]:
        """Its own settings: keys of `train` beside the common ones."""


class MetricFacts(Named, Protocol):
    """What a table or a figure must know of a metric; `evaluation.metric.Metric` is the whole."""

    @property
    def label(self) -> str: ...
    @property
    def lower_is_better(self) -> bool: ...


T = TypeVar("T", bound=Named)


class Registry(Generic[T]):
    """Things of one kind, by name. `built_in`: name -> `module:attribute`."""

    def __init__(self, kind: str, built_in: Mapping[str, str]):
        self.kind, self.built_in = kind, dict(built_in)
        self.found: dict[str, T] = {}
        self.owners: dict[str, str] = {}  # name -> the module that brought it; of ours none

    def names(self) -> list[str]:
        """Ours first, then others' in the order in which they came."""
        return [*self.built_in, *(name for name in self.found if name not in self.built_in)]

    def get(self, name: str) -> T:
        """ValueError, naming those that there are, if there is none of this name."""
        if name not in self.found:
            if name not in self.built_in:
                raise ValueError(f"unknown {self.kind} {name!r}: one of {', '.join(self.names())}")
            module, attribute = self.built_in[name].split(":")
            self.found[name] = getattr(import_module(module), attribute)
        return self.found[name]

    def add(self, thing: T, owner: str) -> None:
        """ConfigError if the name is taken by ours or by another module's."""
        taken = thing.name in self.built_in or self.owners.get(thing.name, owner) != owner
        if taken:
            by = self.owners.get(thing.name, "cca_ray")
            raise ConfigError(f"plug-in {owner}: its {self.kind} {thing.name!r} has the name of one of {by}")
        self.found[thing.name], self.owners[thing.name] = thing, owner


FAMILIES: Registry[FamilyFacts] = Registry(
    "family",
    {name: f"cca_ray.models.{name}_family:FAMILY" for name in ("llamagen", "var", "rar", "llamagen_t2i")},
)
OBJECTIVES: Registry[ObjectiveFacts] = Registry(
    "objective",
    {name: f"cca_ray.training.objectives:{name.upper()}" for name in ("cca", "dpo", "unlearning", "finetune")},
)
EXTRACTORS: Registry[Named] = Registry(
    "extractor",
    {
        "small": "cca_ray.evaluation.small_network:SMALL",
        "inception": "cca_ray.evaluation.inception:INCEPTION",
        "nvidia_inception": "cca_ray.evaluation.inception:NVIDIA_INCEPTION",
    },
)
METRICS: Registry[MetricFacts] = Registry(
    "metric",
    {
        "fid": "cca_ray.evaluation.fid:FID",
        "sfid": "cca_ray.evaluation.fid:SFID",
        "inception_score": "cca_ray.evaluation.inception_score:INCEPTION_SCORE",
        "kid": "cca_ray.evaluation.kid:KID",
        "precision": "cca_ray.evaluation.precision_recall:PRECISION",
        "recall": "cca_ray.evaluation.precision_recall:RECALL",
    },
)
SAMPLERS: Registry[Any] = Registry(  # of `search.samplers.Sampler`
    "sampler",
    {
        "gp": "cca_ray.search.gp_sampler:GP",
        "tpe": "cca_ray.search.samplers:TPE",
        "random": "cca_ray.search.samplers:RANDOM",
    },
)
REGISTRIES: Mapping[str, Registry[Any]] = {
    registry.kind: registry for registry in (FAMILIES, OBJECTIVES, EXTRACTORS, METRICS, SAMPLERS)
}


def metric_info(name: str) -> MetricInfo:
    """Of a metric, for whoever cannot import it. ValueError if there is none of this name."""
    metric = METRICS.get(name)
    return MetricInfo(name=name, label=metric.label, lower_is_better=metric.lower_is_better)


@dataclass(frozen=True)
class PluginInfo:
    """Which code a plug-in is: for a study's memory and a score's protocol."""

    module: str
    version: str  # of its distribution; empty if it has none
    digest: str  # sixteen hexadecimal digits, of its source files

    def __str__(self) -> str:
        return " ".join(filter(None, (self.module, self.version, self.digest)))


LOADED: dict[str, PluginInfo] = {}  # by module


def load_plugins(modules: Iterable[str] = ()) -> tuple[PluginInfo, ...]:
    """Import these modules, and those of the entry points, once. ConfigError, naming the module, if one does not do."""
    wanted = dict.fromkeys([*(point.value.split(":")[0] for point in metadata.entry_points(group=GROUP)), *modules])
    for module in wanted:
        if module not in LOADED:
            LOADED[module] = load(module)
    return tuple(LOADED[module] for module in wanted)


def load(module: str) -> PluginInfo:
    """Import one and add what it brings. ConfigError unless it is the dotted name of a module, never a path or URI."""
    if not all(part.isidentifier() for part in module.split(".")):
        raise ConfigError(
            f"plug-in {module!r}: expected the dotted name of an installed module, such as my_package.mine"
        )
    try:
        found = import_module(module)
    except Exception as error:  # whatever its code raises
        said = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"plug-in {module}: cannot be imported ({said})") from error
    things = getattr(found, "PLUGINS", None)
    if not isinstance(things, list | tuple) or not things:
        kinds = "families, objectives, extractors, metrics or samplers"
        raise ConfigError(f"plug-in {module}: has no PLUGINS, a list of {kinds}")
    for thing in things:
        if getattr(thing, "kind", None) not in REGISTRIES or not isinstance(getattr(thing, "name", None), str):
            raise ConfigError(f"plug-in {module}: {thing!r} has no kind ({', '.join(REGISTRIES)}) or no name")
        REGISTRIES[thing.kind].add(thing, module)
    return PluginInfo(module, version_of(module), digest_of(module))


def version_of(module: str) -> str:
    """Of the distribution that installed the module's top-level package."""
    names = metadata.packages_distributions().get(module.partition(".")[0], [])
    return metadata.version(names[0]) if names else ""


def digest_of(module: str) -> str:
    """Of all Python files of the module's own package, or of its one file."""
    path = Path(sys.modules[module].__file__ or "")
    top = sys.modules[module.partition(".")[0]]
    folders = [Path(folder) for folder in getattr(top, "__path__", [])]
    files = sorted(file for folder in folders for file in folder.rglob("*.py")) or [path]
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()[:16]


def used_plugins(modules: Iterable[str], things: Iterable[tuple[str, str]]) -> tuple[PluginInfo, ...]:
    """Those of these modules, and those that brought these things, given by kind and name; each once."""
    owners = [owner_of(kind, name) for kind, name in things]
    return tuple(dict.fromkeys([*(LOADED[module] for module in modules), *filter(None, owners)]))


def owner_of(kind: str, name: str) -> PluginInfo | None:
    """The plug-in that brought this; None if it is ours."""
    module = REGISTRIES[kind].owners.get(name)
    return LOADED.get(module) if module else None
