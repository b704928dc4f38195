"""The section `placement` of a search space: how many workers train a trial, on which cards, in which precision."""

from typing import Literal, Self

from pydantic import Field, model_validator

from cca_ray.contracts import Strict

CPU = "CPU"  # the type of "accelerator" that every node without one has
Strategy = Literal["ddp", "fsdp"]  # of several workers: a whole model each, or a part each
Precision = Literal["auto", "float32", "bfloat16"]  # auto: bfloat16 where workers hold GPUs, float32 on CPUs


class Accelerator(Strict):
    """One way to place a trial: so many workers, all on one type of card. What is not given is as in `placement`.

    `type` is the value of Ray's node label `ray.io/accelerator-type`; CPU: any node without such a label.
    """

    type: str = Field(pattern=r"^[\w.-]+$")
    workers: int | None = Field(None, ge=1)
    micro_batch: int | None = Field(None, ge=1)
    cpus: int | None = Field(None, ge=1)
    gpus: float | None = Field(None, ge=0)
    precision: Precision | None = None  # the same in all ways
    strategy: Strategy | None = None
    activation_checkpointing: bool | None = None
    compile: bool | None = None
    graphs: bool | None = None

    @model_validator(mode="after")
    def has_gpus(self) -> Self:
        if self.type == CPU and self.gpus:
            raise ValueError("type CPU has no gpus")
        if self.type != CPU and self.gpus == 0:
            raise ValueError(f"type {self.type} needs gpus above 0")
        return self


class Placement(Strict):
    """How many workers train a trial, and how much each holds at a time; accumulation is derived.

    On a cluster of several types of cards `accelerators` lists the ways to place a trial, the preferred first: each
    trial takes the first that fits. They compute in one precision, for another would change results.
    """

    workers: int = Field(1, ge=1)
    micro_batch: int | None = Field(None, ge=1)  # pairs a forward pass and worker; None: all of a worker's share
    cpus: int = Field(1, ge=1)  # a worker
    gpus: float = Field(0, ge=0)  # a worker; 0: the CPU, whatever cards there are
    precision: Precision = "auto"  # of all accelerators, if they say one; auto: bfloat16 with GPUs
    strategy: Strategy = "ddp"
    backend: Literal["auto", "nccl", "gloo"] = "auto"  # between several workers; auto: NCCL on GPUs, gloo on CPUs
    activation_checkpointing: bool = False  # a third more arithmetic, a fraction of the memory
    compile: bool = False  # torch.compile of every block, in training; off with a warning where that fails
    graphs: bool = True  # on GPUs, decoding steps as CUDA graphs, in sampling; off with a warning where that fails
    max_failures: int = Field(2, ge=0)  # lost workers a trial survives
    checkpoint_minutes: float = Field(10, gt=0)  # between two checkpoints of a trial, which also has one at each rung
    hung_minutes: float = Field(30, gt=0)  # without a sign of life, after which a worker counts as lost
    accelerators: tuple[Accelerator, ...] = ()  # none: wherever Ray finds room

    @model_validator(mode="after")
    def one_precision(self) -> Self:
        said = {way.precision or self.precision for way in self.accelerators} or {self.precision}
        if len(said) > 1:
            raise ValueError(
                f"accelerators have more than one precision, {' and '.join(sorted(said))}: a result must not depend on "
                "the card; expected one for all"
            )
        (precision,) = said
        types = {way.type for way in self.accelerators}
        if CPU in types and len(types) > 1 and precision == "auto":
            raise ValueError(
                "with accelerators of type CPU beside others, precision must be given: float32 or bfloat16"
            )
        object.__setattr__(self, "precision", precision)  # frozen from here on
        return self

    @model_validator(mode="after")
    def whole_cards(self) -> Self:
        """NCCL refuses two workers of a trial on one card, and Ray shares of several cards."""
        for way in self.accelerators or (self,):
            gpus = way.gpus if way.gpus is not None else self.gpus
            if gpus > 1 and gpus % 1:
                raise ValueError(f"gpus {gpus:g}: expected a share of one card, or whole cards")
            if gpus % 1 and (way.workers or self.workers) > 1 and self.backend != "gloo":
                raise ValueError(
                    f"gpus {gpus:g} with {way.workers or self.workers} workers: NCCL refuses two workers on one card; "
                    "use workers 1, whole cards, or backend gloo"
                )
        return self
