"""What a fine-tuning minimizes: Condition Contrastive Alignment, and what it is compared with.

An `Objective` says which parameters it has, what it must be given, and what it makes of it: a loss for every pair. The
loss of a step is their mean over the *global* batch, which the training loop takes. Torch is imported where a loss is
computed, for whoever only wants names and parameters does without.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

from pydantic import Field

from cca_ray.config import Train
from cca_ray.contracts import Strict
from cca_ray.registry import OBJECTIVES

if TYPE_CHECKING:
    from torch import Tensor


def wanted(found: "Tensor | None", name: str) -> "Tensor":
    """ValueError if it is not there: the objective, or what it logs, wants more than the objective says."""
    if found is None:
        raise ValueError(f"{name} is used by an objective that was made without: see its pairs=, reference= and log=")
    return found


@dataclass(frozen=True)
class ScoredPairs:
    """Images with their true conditions and, for an objective with pairs, with negative ones; tensors are [B].

    logps, negative_logps: log p of the image under either condition, summed over its tokens, in nats.
    reference_logps, negative_reference_logps: the same of the frozen base, for an objective with a reference.
    labels, negative_labels: the conditions; both are the null label where `null`. length: tokens of an image.
    """

    length: int
    logps: "Tensor"
    labels: "Tensor"
    null: "Tensor"
    reference_logps: "Tensor | None" = None
    negative_logps: "Tensor | None" = None
    negative_labels: "Tensor | None" = None
    negative_reference_logps: "Tensor | None" = None

    @property
    def gap(self) -> "Tensor":
        """log p - log p_ref under the true condition."""
        return self.logps - wanted(self.reference_logps, "reference_logps")

    @property
    def negative_gap(self) -> "Tensor":
        """log p - log p_ref under the negative condition."""
        reference = wanted(self.negative_reference_logps, "negative_reference_logps")
        return wanted(self.negative_logps, "negative_logps") - reference

    @property
    def counts_as_positive(self) -> "Tensor":
        """Pairs whose second term is a positive of weight 1: null-masked, or of equal labels (official code)."""
        return self.null | (self.labels == wanted(self.negative_labels, "negative_labels"))


def reward_accuracy(pairs: ScoredPairs) -> "Tensor":
    """Counts every pair, as the official code does: null-masked and equal-label pairs can never win."""
    return (pairs.gap > pairs.negative_gap).float()


def reward_margin(pairs: ScoredPairs) -> "Tensor":
    return pairs.gap - pairs.negative_gap


P = TypeVar("P", bound=Strict)
Logged = Mapping[str, Callable[[ScoredPairs], "Tensor"]]
REWARDS: Logged = {"reward_accuracy": reward_accuracy, "reward_margin": reward_margin}


@dataclass(frozen=True)
class Objective(Generic[P]):
    """An objective. `cca_ray.testing.objective_conformance` holds what each must satisfy.

    parameters: its own settings, further keys of `train`, with a default each. loss: of every pair [B].
    pairs: whether it needs negative conditions. reference: whether it needs log-likelihoods of the frozen base.
    log: by name, what is logged beside the loss, of every pair [B]; by default the rewards, where it has both.
    """

    name: str
    label: str  # as reports speak of it
    parameters: type[P]
    loss: Callable[[ScoredPairs, P], "Tensor"]
    pairs: bool = True
    reference: bool = True
    log: Logged | None = None
    kind: str = "objective"

    def __post_init__(self) -> None:
        if not issubclass(self.parameters, Strict):
            raise TypeError(f"objective {self.name}: its parameters must be a subclass of {Strict.__module__}.Strict")
        fields = self.parameters.model_fields
        if taken := {field.alias or name for name, field in fields.items()} & set(Train.model_fields):
            raise TypeError(f"objective {self.name}: every `train` has {', '.join(sorted(taken))} already")

    @property
    def beside(self) -> Logged:
        """What is logged beside the loss."""
        if self.log is not None:
            return self.log
        return REWARDS if self.pairs and self.reference else {}

    @property
    def logged(self) -> tuple[str, ...]:
        """Names of the values that a step logs."""
        return ("loss", *self.beside)

    def values(self, pairs: ScoredPairs, parameters: P) -> "tuple[Tensor, ...]":
        """Of every pair [B], in the order of `logged`; the first is the loss."""
        return self.loss(pairs, parameters), *(value(pairs) for value in self.beside.values())


class CcaParameters(Strict):
    lambda_: float = Field(1.0, gt=0, alias="lambda")  # weight of the negative term
    beta: float = Field(0.02, gt=0)  # of the log-likelihood ratio, summed over the tokens of an image


class UnlearningParameters(Strict):
    lambda_: float = Field(1.0, gt=0, alias="lambda")  # weight of the negative term


class DpoParameters(Strict):
    beta: float = Field(0.02, gt=0)  # of the log-likelihood ratio, summed over the tokens of an image


class NoParameters(Strict):
    pass


def cca_loss(pairs: ScoredPairs, own: CcaParameters) -> "Tensor":
    """CCA, eq. 12 of arXiv 2410.09347, with the official treatment of null-masked pairs.

    Divided by max(lambda, 1), as the official code does.
    """
    import torch
    from torch.nn.functional import logsigmoid

    positive = pairs.counts_as_positive
    sign = torch.where(positive, 1.0, -1.0)
    weight = torch.where(positive, 1.0, own.lambda_)
    loss = -logsigmoid(own.beta * pairs.gap) - weight * logsigmoid(sign * own.beta * pairs.negative_gap)
    return loss / max(own.lambda_, 1.0)


def unlearning_loss(pairs: ScoredPairs, own: UnlearningParameters) -> "Tensor":
    """Raise the likelihood of true pairs, lower that of negative ones, without a sigmoid (the paper's ablation)."""
    import torch

    positive = pairs.counts_as_positive
    sign = torch.where(positive, 1.0, -1.0)
    weight = torch.where(positive, 1.0, own.lambda_)
    return (-pairs.gap - weight * sign * pairs.negative_gap) / max(own.lambda_, 1.0)


def dpo_loss(pairs: ScoredPairs, own: DpoParameters) -> "Tensor":
    """Direct preference optimisation between the true and the negative condition (the paper's ablation)."""
    from torch.nn.functional import logsigmoid

    return -logsigmoid(own.beta * (pairs.gap - pairs.negative_gap))


def finetune_loss(pairs: ScoredPairs, own: NoParameters) -> "Tensor":
    """Plain next-token loss, nats per token: that of the control of every study."""
    return -pairs.logps / pairs.length


CCA = Objective("cca", "CCA", CcaParameters, cca_loss)
DPO = Objective("dpo", "DPO", DpoParameters, dpo_loss)
UNLEARNING = Objective("unlearning", "unlearning", UnlearningParameters, unlearning_loss)
FINETUNE = Objective("finetune", "plain fine-tuning", NoParameters, finetune_loss, pairs=False, reference=False)


def objective_of(train: Train) -> Objective[Strict]:
    """ValueError if what has this name among the plug-ins is none of ours to call."""
    found = OBJECTIVES.get(train.objective)
    if not isinstance(found, Objective):
        raise ValueError(f"objective {train.objective!r}: not an instance of {Objective.__module__}.Objective")
    return found
