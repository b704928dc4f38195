"""The sections of a search space that say what is searched, and how trials and models are scored.

They are `search`, `control`, `rungs` and `score`.
"""

import math
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from cca_ray.contracts import Strict
from cca_ray.registry import METRICS, SAMPLERS

MOST_SEED = 2**53  # which JSON keeps exactly; the noise of fresh blocks has the seeds after it
MOST_GUIDANCE = 1000.0  # beyond it float32 logits overflow
MOST_WIDENING = 20  # steps beyond a grid
DEFAULT_METRICS = ("fid", "inception_score")


class Range(Strict):
    """Where the search may look, ends included. Log-uniform unless said otherwise."""

    low: float
    high: float
    log: bool = True

    @model_validator(mode="after")
    def ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(f"low ({self.low:g}) must be below high ({self.high:g})")
        if self.log and self.low <= 0:
            raise ValueError("low must be above 0 on a log scale; or set log: false")
        return self


def same(a: float, b: float) -> bool:
    """Whether two settings are one: nobody wants to run both."""
    return math.isclose(a, b, rel_tol=1e-9)


class Control(Strict):
    """Plain fine-tuning with the same steps, data order and EMA; the best of these rates is the control."""

    learning_rates: tuple[float, ...] = Field((1e-6, 3e-6, 1e-5), min_length=1)
    widen: int = Field(3, ge=0, le=MOST_WIDENING)  # rates that may be tried beyond these, while the best is at an end

    @field_validator("learning_rates")
    @classmethod
    def positive(cls, rates: tuple[float, ...]) -> tuple[float, ...]:
        if min(rates) <= 0:
            raise ValueError("every rate must be above 0")
        if twice := [rate for i, rate in enumerate(rates) if any(same(rate, other) for other in rates[:i])]:
            raise ValueError(f"{twice[0]:g} is given twice")
        return rates


class Rung(Strict):
    """Where a trial is scored: at this fraction of its steps, with this many samples."""

    at: float = Field(gt=0, le=1)
    samples: int = Field(ge=2)
    keep: float | None = Field(None, gt=0, le=1)  # share of the trials that goes on from here; None: search.keep

    def step_of(self, total: int) -> int:
        """The optimizer step, of so many, after which a trial is scored."""
        return max(1, round(self.at * total))


class Score(Strict):
    """How samples are made and scored; with the reference's digest this becomes the protocol."""

    features: str | None = None  # checkpoint of the feature network; an embedded base brings its own
    trust_torchscript: bool = False  # run any program that `features` may be: it is code, which can do what you can
    reference: str | None = None  # .npz with mu and sigma of the real images
    image_size: int | None = Field(None, ge=1)  # pixels a side to which samples are resized; None: as they are
    labels: Literal["balanced", "random"] = "balanced"  # random: as the official LlamaGen sampler draws them
    temperature: float = Field(1.0, ge=1e-3, le=1e3)
    top_k: int = Field(0, ge=0)  # 0: all tokens
    top_p: float = Field(1.0, gt=0, le=1)  # 1: all tokens
    last_temperature: float | None = Field(None, ge=1e-3, le=1e3)  # of the last step, reached evenly; None: the same
    seed: int = Field(0, ge=0, le=MOST_SEED)  # of the noise all trials share; fresh blocks take seed + 1, seed + 2, ...
    metrics: tuple[str, ...] = Field(DEFAULT_METRICS, min_length=1)  # what is measured at rungs and in the end
    samples: int = Field(50_000, ge=2)  # of a fresh block
    blocks: int = Field(3, ge=1)  # fresh blocks that choose the winner, and as many others that the table shows
    finalists: int = Field(3, ge=1)  # best trials that are scored again on the fresh blocks
    guidance_scales: tuple[float, ...] = Field((1.25, 1.5, 2.0, 3.0), min_length=1)  # tried on the base
    widen_guidance: int = Field(3, ge=0, le=MOST_WIDENING)  # the same, of larger scales
    guidance_power: float = Field(0.0, ge=0, le=100)  # above 0 they grow over the steps, the later the higher it is
    winner_guidance_scales: tuple[float, ...] = ()  # tried on the winner too, for CCA with guidance

    @field_validator("metrics")
    @classmethod
    def known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(names):
            if name not in METRICS.names():
                raise ValueError(f"unknown metric {name!r}: one of {', '.join(METRICS.names())}")
            if name in names[:i]:
                raise ValueError(f"names {name} twice")
        return names

    @field_validator("guidance_scales", "winner_guidance_scales")
    @classmethod
    def above_one(cls, scales: tuple[float, ...]) -> tuple[float, ...]:
        if min(scales, default=2) <= 1:
            raise ValueError("every scale must be above 1 (1 is guidance-free)")
        if max(scales, default=2) > MOST_GUIDANCE:
            raise ValueError(f"every scale must be at most {MOST_GUIDANCE:g}")
        return scales


def metric_names(metric: str | tuple[str, ...]) -> tuple[str, ...]:
    """The metrics that `search.metric` means."""
    if metric == "both":
        return DEFAULT_METRICS
    return (metric,) if isinstance(metric, str) else metric


class StopWhen(Strict):
    """When a search ends before its number of trials."""

    expected_gain: float = Field(gt=0, lt=1)  # of another trial, as a share of the best score, is below this


class Search(Strict):
    """What is searched, from where, for how long. Names are those of numeric fields of `train`."""

    space: dict[str, Range] = Field(min_length=1)
    first_points: tuple[dict[str, float], ...] = ()  # evaluated before the sampler's own proposals
    metric: str | tuple[str, ...] = "fid"  # of score.metrics; several: their front; both: fid and inception_score
    trials: int = Field(20, ge=1)
    replicates: int = Field(0, ge=0)  # training seeds with which every finalist is trained again
    max_concurrent: int = Field(2, ge=1)
    sampler: str = "gp"  # what proposes settings: gp, tpe, random
    random_trials: int | None = Field(None, ge=0)  # before tpe starts to model; None: six
    rungs: Literal["surely_worse", "posterior"] = "surely_worse"  # which trials stop at a rung
    learn_from: tuple[str, ...] = ()  # earlier studies, by name, path or URI, whose trials are known from the start
    stop_when: StopWhen | None = None  # None: after `trials`, or with the budget
    grace_trials: int = Field(4, ge=1)  # a rung stops no trial before this many have been scored there
    keep: float = Field(0.5, gt=0, le=1)  # share of the trials at a rung that goes on, and what cannot be told apart
    seed: int = Field(0, ge=0, le=MOST_SEED)

    @field_validator("sampler")
    @classmethod
    def known(cls, name: str) -> str:
        if name not in SAMPLERS.names():
            raise ValueError(f"unknown sampler {name!r}: one of {', '.join(SAMPLERS.names())}")
        return name

    @field_validator("learn_from")
    @classmethod
    def names(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        for i, name in enumerate(names):
            if not name.strip():
                raise ValueError("one is empty; expected names, paths or URIs of studies")
            if name in names[:i]:
                raise ValueError(f"names {name} twice")
        return names

    @property
    def metrics(self) -> tuple[str, ...]:
        return metric_names(self.metric)

    @model_validator(mode="after")
    def one_metric(self) -> Self:
        if self.stop_when and len(self.metrics) > 1:
            raise ValueError("stop_when: needs one search metric, because several have no single gain")
        return self

    @model_validator(mode="after")
    def whole_points(self) -> Self:
        for i, point in enumerate(self.first_points):
            if set(point) != set(self.space):
                raise ValueError(f"first_points[{i}] must give exactly {', '.join(self.space)}")
            for name, value in point.items():
                bounds = self.space[name]
                if not bounds.low <= value <= bounds.high:
                    raise ValueError(f"first_points[{i}].{name} = {value:g} is outside {bounds.low:g}..{bounds.high:g}")
        return self
