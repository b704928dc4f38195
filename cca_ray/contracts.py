"""What crosses the borders between packages: frozen, typed, and readable from what earlier versions left.

A score is known by its metric's name, a model of the final comparison by its role. Each class reads the files of
version 0.1.0, which knew two metrics and had flat keys.
"""

from collections.abc import Mapping
from typing import Any, Literal, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, model_validator

Role = Literal["base", "guided", "control", "tuned", "tuned_guided"]  # of a model in the final comparison
ROLES: tuple[Role, ...] = get_args(Role)
COMPARED: tuple[Role, ...] = ("base", "guided", "control")  # that the tuned model is compared with
OLD_METRICS = ("fid", "inception_score")  # version 0.1.0's, in the order of its pairs
OLD_ROLES: dict[Role, str] = {
    "base": "base", "guided": "guided", "control": "control", "tuned": "cca", "tuned_guided": "cca_guided",
}  # fmt: skip
OLD_OBJECTIVES = {"cca": "CCA", "dpo": "DPO", "unlearning": "unlearning", "finetune": "plain fine-tuning"}  # labels


class Contract(BaseModel):
    """A frozen class; a key that it does not know is an error. JSON keeps numbers that are not finite, as Python's."""

    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class MetricInfo(Contract):
    """What a table or a figure must know of a metric, wherever the metric itself cannot be imported."""

    name: str
    label: str
    lower_is_better: bool

    def cost(self, value: float) -> float:
        """The same value so that less is better."""
        return value if self.lower_is_better else -value


FID = MetricInfo(name="fid", label="FID", lower_is_better=True)
INCEPTION_SCORE = MetricInfo(name="inception_score", label="inception score", lower_is_better=False)


class Strict(BaseModel):
    """A frozen class that is read from a user's file: no key too many, no number for a word, nothing infinite."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, populate_by_name=True)


class Score(Contract):
    """The scores of one model on one set of samples, by metric.

    `without`: by metric, the value without each group of the jackknife, [G]; empty where the metric has none.
    """

    values: dict[str, float]
    without: dict[str, tuple[float, ...]] = {}


class RungScore(Score):
    """A trial's scores at one rung, after so many optimizer steps, of so many samples."""

    step: int
    samples: int
    scoring_seconds: float
    protocol: str = ""  # its id
    grid: str = ""  # URI or path of the picture of the first samples

    @model_validator(mode="before")
    @classmethod
    def of_version_0_1(cls, content: Any) -> Any:
        """`fid` and `inception_score` were keys, `without` rows of both."""
        if not isinstance(content, Mapping) or "fid" not in content:
            return content
        values = {name: content[name] for name in OLD_METRICS}
        columns = zip(*content["without"], strict=True)
        without = dict(zip(OLD_METRICS, map(tuple, columns), strict=True))
        kept = {key: content[key] for key in cls.model_fields if key in content and key != "without"}
        return {**kept, "values": values, "without": without}


class Attempt(Contract):
    """What one attempt at a trial has taken so far, from its start: it may resume, repeat, fail or be lost.

    `device_seconds`: by type of card, of all workers together.
    """

    id: str  # an attempt of another has another one
    seconds: float
    device_seconds: dict[str, float]

    def longer(self, seconds: float) -> "Attempt":
        """The same if it went on for so long, on the same cards."""
        factor = (self.seconds + seconds) / self.seconds if self.seconds else 1.0
        used = {card: factor * device_seconds for card, device_seconds in self.device_seconds.items()}
        return Attempt(id=self.id, seconds=factor * self.seconds, device_seconds=used)


class TrialReport(Contract):
    """What a trial tells of itself: every few seconds, and at each rung with a score.

    `history`: a row for every step since the last report: the step, then the values of `logged`.
    `seconds`, `device_seconds`: that the steps up to this one took, without what was lost and repeated; the second by
    type of card, of all workers together. `load`: under MLflow's names of system metrics.
    """

    step: int
    total_steps: int
    seconds: float
    logged: tuple[str, ...]
    history: tuple[tuple[float, ...], ...]
    images_per_second: float
    accelerator: str  # type of card, or CPU
    workers: int
    micro_batch: int
    load: dict[str, float] = {}
    gpu_memory_gib: float | None = None  # the most that a worker has held in this attempt; None without GPUs
    device_seconds: dict[str, float]
    attempt: Attempt | None = None  # which told this; earlier versions did not say
    score: RungScore | None = None
    stopped: bool = False  # whether it was asked to stop, and has done so

    @model_validator(mode="before")
    @classmethod
    def of_version_0_1(cls, content: Any) -> Any:
        """In checkpoints: no `logged`, pairs for mappings, and the score's keys among the report's own."""
        if not isinstance(content, Mapping) or "logged" in content:
            return content
        kept = {key: content[key] for key in cls.model_fields if key in content}
        kept |= {"logged": ("loss", "reward_accuracy", "reward_margin")}
        kept |= {key: dict(kept[key]) for key in ("load", "device_seconds") if key in kept}
        if "fid" in content:
            kept["score"] = {key: content[key] for key in content if key in {*RungScore.model_fields, *OLD_METRICS}}
        return kept

    def rows(self) -> dict[int, dict[str, float]]:
        """`history` by step and name."""
        return {int(step): dict(zip(self.logged, values, strict=True)) for step, *values in self.history}

    def merged_after(self, earlier: Self) -> Self:
        """This report with the history of an earlier one, which it takes the place of."""
        return self.model_copy(update={"history": earlier.history + self.history})


class ModelScore(Contract):
    """How one model of the final comparison did, by metric: means over the blocks of noise that are shown.

    `std`: of one block by the jackknife or, where models of several training seeds were scored, of one model.
    """

    values: dict[str, float]
    std: dict[str, float]
    guidance_scale: float = 1.0


class Difference(Contract):
    """The tuned model's headline metric minus another model's, on the same blocks of noise.

    The noise is that of sampling and, where several models of the winner's settings were trained, that of training.
    """

    value: float
    low: float  # ends of the 95 % interval
    high: float
    at_least_as_good: float = Field(ge=0, le=1)  # the probability that the tuned model is


class Finalist(Contract):
    """One of the best trials, scored again on fresh noise.

    `score`: on the blocks that the table shows. `selection`: on the blocks that chose the winner; earlier versions kept
    none.
    """

    trial: int  # its number in Optuna
    params: dict[str, int | float]
    score: ModelScore
    selection: ModelScore | None = None
    models: int = 1  # that were trained with its settings, each with a seed of its own
    tied: bool = False  # whether it cannot be told from the best on the blocks that chose


class Edge(Contract):
    """What was chosen lies at an end of what was tried: there may be better beyond it."""

    of: str  # a setting of the search, control_learning_rate or guidance_scale
    value: float
    low: float  # of what was tried, as the next
    high: float
    end: Literal["low", "high"]
    setting: str  # for --set: looks further

    @property
    def continues(self) -> bool:
        """Whether the same study goes on with this setting; else it takes a new one."""
        return self.setting.partition("=")[0] in ("control.widen", "score.widen_guidance")


class TradeOff(Contract):
    """A completed trial's scores at its last rung; `front`: no other trial beats it in all of them."""

    trial: int
    params: dict[str, int | float]
    values: dict[str, float]
    front: bool


class MlflowNames(Contract):
    """Where a size is found in MLflow."""

    key: str = ""  # of the size's run
    run_id: str | None = None
    experiment: str = ""
    winner_key: str = ""  # of the winner's run
    registered_model: str = ""


class Machine(Contract):
    """What a worker computed with. On another machine sums are rounded differently."""

    processor: str
    arithmetic: str  # the vector instructions that PyTorch uses there, such as AVX2
    threads: int  # of PyTorch
    card: str = ""  # the first GPU's name; empty without one
    python: str
    libraries: dict[str, str]  # versions
    source: str  # digest of this package's files
    revision: str = ""  # git commit, where it runs from a checkout


class Prospect(Contract):
    """What a trial more would be expected to bring, by the Gaussian process of all scores of a size's search."""

    expected_gain: float = Field(ge=0)  # as a share of the best score
    chance: float = Field(ge=0, le=1)  # that it improves the best by more than `CHANCE_OF`

    def __str__(self) -> str:
        return (
            f"another trial should improve the best by {100 * self.expected_gain:.1f} % on average, and by more than "
            f"{100 * CHANCE_OF:.0f} % with a probability of {100 * self.chance:.0f} %"
        )


CHANCE_OF = 0.03


class SizeSummary(Contract):
    """The outcome for one model size: a row of summary.json."""

    size: str
    family: str
    objective: str = "cca"
    objective_label: str = OLD_OBJECTIVES["cca"]  # as people write it
    parameters: int
    metrics: tuple[MetricInfo, ...] = Field((FID, INCEPTION_SCORE), min_length=1)  # the winner was chosen by the first
    searched: tuple[str, ...] = ("fid",)  # names of the metrics that the search went by
    models: dict[Role, ModelScore]
    differences: dict[Role, Difference] = {}  # from those of COMPARED; version 0.1.0 wrote none
    winner: Finalist
    checkpoint: str
    settings: dict[str, int | float] = {}  # the searched ones of the winner, and λ and learning rate if they were fixed
    control_learning_rate: float | None = None
    finalists: tuple[Finalist, ...]
    guidance_scales: tuple[float, ...] = ()  # that were tried on the base
    edges: tuple[Edge, ...] = ()  # of the winner's settings, the control's rate and the guidance scale
    trade_off: tuple[TradeOff, ...] = ()
    trials: int  # of the search that have ended
    seconds: float = 0.0  # of wall time, over all runs of the command
    protocol: str = ""
    device: Literal["CPU", "GPU", ""] = ""
    device_hours: float | None = None  # of all attempts at all trials
    device_hours_by_type: dict[str, float] = {}
    machine: Machine | None = None  # of a worker of the final comparison; version 0.1.0 wrote none
    prospect: Prospect | None = None  # when the search ended; none of several metrics
    stopped_below: float | None = None  # `search.stop_when`'s gain, where it ended the search before all its trials
    mlflow: MlflowNames = Field(default_factory=MlflowNames)

    @model_validator(mode="before")
    @classmethod
    def of_version_0_1(cls, content: Any) -> Any:
        """Flat keys such as `fid_cca`; KeyError becomes a ValueError that names the key."""
        if not isinstance(content, Mapping) or "models" in content:
            return content
        try:
            return size_of_version_0_1(content)
        except KeyError as error:
            raise ValueError(f"{content.get('size', 'a size')} has no {error.args[0]}") from None

    @model_validator(mode="after")
    def whole(self) -> Self:
        """Every model but the last has been scored; the last only if it was asked for."""
        for role in ROLES[:-1]:
            if role not in self.models:
                raise ValueError(f"{self.size} has no scores of {role}")
        for role, model in self.models.items():
            if missing := [metric.name for metric in self.metrics if metric.name not in model.values]:
                raise ValueError(f"{self.size} has no {missing[0]} of {role}")
        return self

    @property
    def headline(self) -> MetricInfo:
        """What the winner was chosen by."""
        return self.metrics[0]

    @property
    def shown(self) -> tuple[MetricInfo, ...]:
        """The headline, and what else the search went by: a table each."""
        return (self.headline, *(m for m in self.metrics[1:] if m.name in self.searched))

    def value(self, role: Role, metric: MetricInfo | None = None) -> float:
        """Of the headline, unless another is given."""
        return self.models[role].values[(metric or self.headline).name]

    def std(self, role: Role, metric: MetricInfo | None = None) -> float | None:
        """The same of its spread; None where there is none."""
        return self.models[role].std.get((metric or self.headline).name)


class StudySummary(Contract):
    """summary.json: the sizes of a study that have finished, in the order in which they ran."""

    schema_version: Literal[2] = 2  # version 0.1.0 wrote none
    sizes: tuple[SizeSummary, ...]


Json = dict[str, Any]  # of a file that version 0.1.0 wrote; a contract checks it


def size_of_version_0_1(row: Mapping[str, Any]) -> Json:
    """The content of a `SizeSummary` from a row that version 0.1.0 wrote. Raises KeyError."""
    params = dict(row["winner"])

    def finalist(content: Mapping[str, Any]) -> Json:
        return {
            "trial": content["trial"],
            "params": {key: content[key] for key in params},
            "score": {"values": {"fid": content["fid"]}, "std": {"fid": content["std"]}},
            "models": content["models"],
            "tied": content["tied"],
        }

    def model(role: Role, name: str) -> Json:
        scale = row["guidance_scale"] if role == "guided" else 1.0
        values = {metric: row[f"{metric}_{name}"] for metric in OLD_METRICS}
        return {"values": values, "std": {"fid": row[f"std_{name}"]}, "guidance_scale": scale}

    finalists = [finalist(content) for content in row["finalists"]]
    models = {
        role: model(role, name) for role, name in OLD_ROLES.items() if role != "tuned_guided" or f"fid_{name}" in row
    }
    winner = next(
        (f for f in finalists if f["trial"] == row["trial"]),
        {"trial": row["trial"], "params": params, "score": {**models["tuned"], "guidance_scale": 1.0}},
    )
    trade_off = [
        {"trial": p["trial"], "params": {key: p[key] for key in params if key in p},
         "values": {metric: p[metric] for metric in OLD_METRICS}, "front": p["front"]}
        for p in row.get("trade_off", ())
    ]  # fmt: skip
    kept = {
        key: row[key]
        for key in ("size", "family", "checkpoint", "trials", "seconds", "protocol", "device", "device_hours",
                    "device_hours_by_type", "control_learning_rate")
        if key in row
    }  # fmt: skip
    fixed = {key: row[key] for key in ("lambda", "learning_rate") if key in row}
    named = {"key": "mlflow_key", "run_id": "mlflow_run_id", "experiment": "experiment", "winner_key": "winner_key",
             "registered_model": "registered_model"}  # fmt: skip
    return {
        **kept,
        "parameters": row["params"],
        "models": models,
        "winner": winner,
        "settings": {**fixed, **params},
        "finalists": finalists,
        "trade_off": trade_off,
        "mlflow": {new: row[old] for new, old in named.items() if old in row},
    }
