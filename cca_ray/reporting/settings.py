"""The settings of a study that the report reads, from what Optuna's storage keeps of them; others are passed over."""

from pydantic import BaseModel, ConfigDict, field_validator


class Light(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Bounds(Light):
    """Where the search looked, or what an axis spans."""

    low: float
    high: float
    log: bool


class Base(Light):
    family: str
    size: str


class Train(Light):
    objective: str
    beta: float | None = None  # not every objective has one
    global_batch: int
    epochs: int
    ema_decay: float


class Control(Light):
    learning_rates: tuple[float, ...]


class Rung(Light):
    at: float
    samples: int
    keep: float | None


class Scoring(Light):
    image_size: int | None
    labels: str
    temperature: float
    top_k: int
    top_p: float
    last_temperature: float | None = None  # where it is another
    guidance_power: float = 0.0
    samples: int
    blocks: int
    finalists: int
    guidance_scales: tuple[float, ...]


class Search(Light):
    space: dict[str, Bounds]
    metric: tuple[str, ...]  # names of those that it went by
    grace_trials: int
    keep: float

    @field_validator("metric", mode="before")
    @classmethod
    def several(cls, metric: object) -> object:
        """One may stand alone; version 0.1.0 had a name for its two together."""
        if metric == "both":
            return "fid", "inception_score"
        return (metric,) if isinstance(metric, str) else metric


class Files(Light):
    protocol: str  # the id of the final scores' protocol


class Settings(Light):
    base: Base
    train: Train
    search: Search
    control: Control
    rungs: tuple[Rung, ...]
    score: Scoring
    files: Files
