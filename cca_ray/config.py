"""A search-space file -> a `StudyConfig`: typed, frozen, strict, every default visible here.

One YAML file describes the search for one model size; `space_file` reads it.
"""

import json
import math
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.fields import FieldInfo

from cca_ray.contracts import Strict
from cca_ray.errors import reason
from cca_ray.placement_config import Placement
from cca_ray.registry import FAMILIES, OBJECTIVES, PluginInfo, load_plugins, used_plugins
from cca_ray.search_config import (
    DEFAULT_METRICS,
    MOST_GUIDANCE,
    MOST_SEED,
    MOST_WIDENING,
    Control,
    Range,
    Rung,
    Score,
    Search,
    StopWhen,
    metric_names,
    same,
)

__all__ = [  # the sections have files of their own, and are to be had here
    "CONTROL_OBJECTIVE",
    "DEFAULT_METRICS",
    "MOST_GUIDANCE",
    "MOST_SEED",
    "MOST_WIDENING",
    "PATHS",
    "Base",
    "Control",
    "Data",
    "Placement",
    "Pretrain",
    "Range",
    "ResolvedBase",
    "ResolvedData",
    "ResolvedScore",
    "ResolvedStudy",
    "Rung",
    "Score",
    "Search",
    "StopWhen",
    "StudyConfig",
    "TokenOrder",
    "Train",
    "keys_of_train",
    "metric_names",
    "same",
    "searchable",
    "without_others",
]  # fmt: skip

CONTROL_OBJECTIVE = "finetune"


class Base(Strict):
    """The pretrained model. Either `embedded` (made on first use, see `Pretrain`) or official checkpoint files.

    Paths, here and below, are relative to the working directory, or URIs such as s3://bucket/file.
    """

    family: str
    size: str
    embedded: Literal["digits"] | None = None
    checkpoint: str | None = None
    tokenizer: str | None = None

    @field_validator("family")
    @classmethod
    def known_family(cls, family: str) -> str:
        FAMILIES.get(family)
        return family

    @model_validator(mode="after")
    def one_source(self) -> Self:
        sizes = FAMILIES.get(self.family).sizes
        if self.size not in sizes:
            raise ValueError(f"size {self.size!r} of {self.family}: one of {', '.join(sizes)}")
        if self.embedded is None and (self.checkpoint is None or self.tokenizer is None):
            raise ValueError("needs embedded: digits, or both checkpoint: FILE and tokenizer: FILE")
        return self


TokenOrder = Literal["raster", "random"]


class Data(Strict):
    """Where the token set is; an embedded base brings its own."""

    tokens: str | None = None
    order: TokenOrder = "raster"  # in which tokens are trained on; random: an order of each image's own, every epoch


class Train(Strict):
    """One fine-tuning. Any numeric field may be searched, the objective's own among them.

    The objective's own parameters are keys beside these; a key that neither knows is an error.
    """

    model_config = ConfigDict(extra="allow")  # the objective's own, by their names in the file

    objective: str = "cca"
    learning_rate: float = Field(1e-5, gt=0)
    null_ratio: float = Field(0.1, ge=0, lt=1)  # share of pairs trained under the null condition
    global_batch: int = Field(256, ge=1)  # images a step, over all workers
    epochs: int = Field(1, ge=1)
    warmup_steps: int = Field(0, ge=0)  # linear from 0, then constant
    adam_beta1: float = Field(0.9, ge=0, lt=1)
    adam_beta2: float = Field(0.95, ge=0, lt=1)
    weight_decay: float = Field(0.05, ge=0)
    clip: float = Field(1.0, ge=0)  # largest gradient norm; 0: off
    dropout: float = Field(0.0, ge=0, lt=1)  # of the trained model; the reference has none
    ema_decay: float = Field(0.0, ge=0, lt=1)  # of the weights that are scored; 0: off
    seed: int = Field(0, ge=0, le=MOST_SEED)  # of the order, crops, negatives and null masks
    reference: Literal["table", "live"] = "table"  # log p_ref once per study, or a second model in memory

    @field_validator("objective")
    @classmethod
    def known(cls, objective: str) -> str:
        return OBJECTIVES.get(objective).name

    @model_validator(mode="after")
    def own_parameters(self) -> Self:
        """Checked as the objective declares them, and its defaults filled in."""
        own = self.parameters.model_dump(mode="json", by_alias=True)
        object.__setattr__(self, "__pydantic_extra__", own)  # frozen from here on
        return self

    @property
    def parameters(self) -> Strict:
        """The objective's own, as its class."""
        # By way of JSON, for the same strictness as of a file.
        content = json.dumps(self.model_extra, default=str)
        own = OBJECTIVES.get(self.objective).parameters.model_validate_json(content)
        assert isinstance(own, Strict)
        return own

    def is_whole(self, name: str) -> bool:
        """Whether the field of this name, as in the file, is a whole number."""
        return keys_of_train(self.objective)[name].annotation is int


def keys_of_train(objective: str) -> dict[str, FieldInfo]:
    """What `train` may hold with this objective, by the names in the file: its own parameters and the common fields."""
    common, own = Train.model_fields, OBJECTIVES.get(objective).parameters.model_fields
    fields = {"objective": common["objective"], **own, **common}
    return {field.alias or name: field for name, field in fields.items()}


def searchable(objective: str) -> list[str]:
    return [name for name, field in keys_of_train(objective).items() if field.annotation in (int, float)]


def without_others(train: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a `train` without the parameters of other objectives: version 0.1.0 wrote those of all."""
    keys = keys_of_train(train["objective"])
    return {name: value for name, value in train.items() if name in keys}


class Pretrain(Strict):
    """How an embedded base is made: tokenizer, feature network, model. Rates are annealed to zero."""

    variants: int = Field(1, ge=1, le=100)  # of every image: itself, and slightly turned, scaled and shifted ones
    image_size: int = Field(8, ge=4)  # pixels along a side
    downsample: int = Field(2, ge=1)  # pixels a token along a side: a power of two
    codebook_size: int = Field(128, ge=2, le=65536)
    code_dim: int = Field(8, ge=1)  # channels of a code
    tokenizer_width: int = Field(16, ge=8, multiple_of=8)
    tokenizer_epochs: int = Field(10, ge=1)
    feature_epochs: int = Field(8, ge=1)
    epochs: int = Field(30, ge=1)  # of the model
    batch: int = Field(128, ge=1)
    learning_rate: float = Field(2e-3, gt=0)
    null_ratio: float = Field(0.1, gt=0, lt=1)
    dropout: float = Field(0.0, ge=0, lt=1)
    ema_decay: float = Field(0.0, ge=0, lt=1)  # of the model's weights that are kept; 0: off
    validation: float = Field(0.0, ge=0, lt=1)  # share of the images that the model is not trained on; 0: no early end
    seed: int = Field(0, ge=0, le=MOST_SEED)  # of the model alone

    @property
    def content(self) -> dict[str, int | float]:
        """All that a base depends on, by name; of what came after version 0.1.0, only what is not as it was then.

        So studies and bases of earlier versions know their settings again.
        """
        added = ("variants", "ema_decay", "validation")
        as_before = {name for name in added if getattr(self, name) == type(self).model_fields[name].default}
        return self.model_dump(mode="json", exclude=as_before)

    @model_validator(mode="after")
    def whole_grid(self) -> Self:
        if self.downsample & (self.downsample - 1) or self.image_size % self.downsample:
            raise ValueError("downsample must be a power of two that divides image_size")
        return self


# Where the fields are that name files; an embedded base fills them when it is made.
PATHS = {"base": ("checkpoint", "tokenizer"), "data": ("tokens",), "score": ("features", "reference")}


class StudyConfig(Strict):
    """The search for one model size. `name` is the file's name without its ending."""

    name: str
    plugins: tuple[str, ...] = Field((), validate_default=True)  # modules, imported before the rest is read
    base: Base
    data: Data = Data()
    train: Train = Field(default_factory=Train)
    search: Search
    control: Control = Control()
    rungs: tuple[Rung, ...] = Field(min_length=1)
    score: Score = Score()
    placement: Placement = Placement()
    pretrain: Pretrain = Pretrain()

    @field_validator("plugins")
    @classmethod
    def loaded(cls, modules: tuple[str, ...]) -> tuple[str, ...]:
        """Fields are validated in their order, so that what the rest names is known by then; in a worker too."""
        load_plugins(modules)
        return modules

    @model_validator(mode="after")
    def consistent(self) -> Self:
        fractions = [rung.at for rung in self.rungs]
        if fractions != sorted(set(fractions)) or fractions[-1] != 1:
            raise ValueError("rungs must rise in `at` and end at 1")
        if self.base.embedded is None and not (self.data.tokens and self.score.features and self.score.reference):
            raise ValueError("without an embedded base, data.tokens, score.features and score.reference must be given")
        if self.data.order != "raster" and not FAMILIES.get(self.base.family).any_order:
            raise ValueError(f"data.order: {self.data.order}: {self.base.family} supports raster order only")
        searched = self.search.metrics
        if not searched or len(set(searched)) < len(searched) or not set(searched) <= set(self.score.metrics):
            raise ValueError(f"search.metric: expected one or more of score.metrics: {', '.join(self.score.metrics)}")
        for name, bounds in self.search.space.items():
            if name not in (names := searchable(self.train.objective)):
                raise ValueError(
                    f"search.space: cannot search {name!r}: {name} has no effect on objective {self.train.objective}; "
                    f"one of {', '.join(names)}"
                )
            low, high = math.ceil(bounds.low), math.floor(bounds.high)
            if self.train.is_whole(name) and low >= high:
                raise ValueError(
                    f"search.space.{name}: expected at least two whole numbers from low to high; {bounds.low:g} to "
                    f"{bounds.high:g} holds {high - low + 1}"
                )
            for value in (low, high) if self.train.is_whole(name) else (bounds.low, bounds.high):
                try:
                    self.train_with({name: value})
                except ValidationError as error:
                    raise ValueError(f"search.space.{name}: {value:g} is not allowed: {reason(error)}") from None
            # Optuna would keep another number than the trial was trained with.
            for i, point in enumerate(self.search.first_points):
                if self.train.is_whole(name) and not (point[name].is_integer() and low <= point[name] <= high):
                    raise ValueError(
                        f"search.first_points[{i}].{name}: expected a whole number from {low} to {high}, "
                        f"not {point[name]:g}"
                    )
        return self

    @property
    def replicates(self) -> int:
        """How many trials the finalists are trained again in, with further training seeds."""
        return self.score.finalists * self.search.replicates

    def plugins_used(self) -> tuple[PluginInfo, ...]:
        """Which code of others its results depend on: the modules of `plugins`, and what its names stand for."""
        metrics = [("metric", name) for name in self.score.metrics]
        things = [("family", self.base.family), ("objective", self.train.objective), *metrics]
        things.append(("sampler", self.search.sampler))
        return used_plugins(self.plugins, things)

    def paths(self) -> dict[str, str]:
        """Those of `PATHS` that are given."""
        found = {key: getattr(getattr(self, section), key) for section, keys in PATHS.items() for key in keys}
        return {key: path for key, path in found.items() if path is not None}

    def with_paths(self, paths: Mapping[str, str]) -> Self:
        """The study with the given ones of `PATHS` replaced."""
        return self.model_copy(
            update={
                section: getattr(self, section).model_copy(update={key: paths[key] for key in keys if key in paths})
                for section, keys in PATHS.items()
            }
        )

    def train_with(self, values: Mapping[str, float | str]) -> Train:
        """`train` with some fields replaced, by their names in the file; validated. Integer fields are rounded.

        With another objective, those parameters fall away that it does not have.
        """
        objective = str(values.get("objective", self.train.objective))
        keys = keys_of_train(objective)
        content = {name: value for name, value in self.train.model_dump().items() if name in keys}
        for name, value in values.items():
            whole = name in keys and keys[name].annotation is int
            content[name] = round(value) if whole and not isinstance(value, str) else value
        return Train.model_validate(content)


class ResolvedBase(Base):
    checkpoint: str
    tokenizer: str


class ResolvedData(Data):
    tokens: str


class ResolvedScore(Score):
    features: str
    reference: str


class ResolvedStudy(StudyConfig):
    """A study whose files are all there: an embedded base has been made, and no path is left out."""

    base: ResolvedBase
    data: ResolvedData
    score: ResolvedScore

    @staticmethod
    def of(config: StudyConfig, paths: Mapping[str, str]) -> "ResolvedStudy":
        """The study with these of `PATHS`. ValidationError if one is missing."""
        return ResolvedStudy.model_validate_json(config.with_paths(paths).model_dump_json(by_alias=True))
