"""A fine-tuning as it is set up: model, reference, optimizer, tokens and scoring, loaded and laid out over workers."""

from dataclasses import dataclass

import torch
from torch import nn

from cca_ray.cluster.placement import micro_batch_size, precision_of
from cca_ray.config import ResolvedStudy, Train
from cca_ray.contracts import Strict
from cca_ray.data.pairs import EpochPlan, steps_per_epoch
from cca_ray.data.tokens import TokenSet
from cca_ray.evaluation.scoring import Scoring, load_base, load_tokens, protocol_of, scoring_of
from cca_ray.models.base import Model
from cca_ray.models.files import digest_of_weights
from cca_ray.models.parallel import Group, Passes, Weights, distribute, weights_of, whole_model
from cca_ray.registry import owner_of
from cca_ray.training.checkpoint import Settings
from cca_ray.training.job import Job
from cca_ray.training.objectives import Objective, objective_of
from cca_ray.training.reference_logps import ReferenceTable, read_table, table_key


@dataclass
class Loop:
    """A fine-tuning under way: what `fine_tune` and its steps share."""

    job: Job
    group: Group
    objective: Objective[Strict]
    parameters: Strict  # the objective's own
    base_digest: str
    model: Model
    scorer: nn.Module  # the model's `Scorer`, wrapped for several workers
    frozen: nn.Module | None  # that of the reference, where the objective has one and it is live
    table: ReferenceTable | None
    ema: Weights | None
    optimizer: torch.optim.Optimizer
    data: TokenSet
    scoring: Scoring
    plan: EpochPlan | None = None

    @property
    def steps(self) -> int:
        return total_steps(len(self.data.labels), self.job.train)

    def scored_model(self) -> Model:
        """What is sampled at a rung: the EMA, whole, on every worker."""
        return whole_model(self.model, self.ema or {}, self.group.device)


def reference_key(base_digest: str, config: ResolvedStudy, train: Train, data: TokenSet) -> str:
    """Names the reference's table of this study: see `table_key`. Weights mean nothing without a plug-in's own code."""
    owner, precision = owner_of("family", config.base.family), precision_of(config.placement)
    code = owner.digest if owner else ""
    return table_key(base_digest, data, train.null_ratio, train.seed, precision, config.data.order, code)


def prepare(job: Job, group: Group) -> Loop:
    """Load everything; several workers share one process group that Ray Train has set up."""
    train = job.train
    data, model, objective = load_tokens(job.config.data.tokens), load_base(job.config), objective_of(train)
    base_digest = digest_of_weights(model)
    table = frozen = None
    if objective.reference and job.table is not None:
        key = reference_key(base_digest, job.config, train, data)
        table = read_table(job.table, key, len(data.labels), train.epochs)
    elif objective.reference:
        frozen = load_base(job.config)
    return laid_out(job, group, model, data, scoring_of(job.config, group.device), base_digest, table, frozen)


def laid_out(
    job: Job,
    group: Group,
    model: Model,
    data: TokenSet,
    scoring: Scoring,
    base_digest: str,
    table: ReferenceTable | None = None,
    frozen: Model | None = None,
) -> Loop:
    """A fine-tuning of what is loaded already. `frozen`: the reference, where it has no table."""
    train, placement, objective = job.train, job.config.placement, objective_of(job.train)
    pairs = micro_batch_size(placement, train.global_batch)
    model.train()  # it was loaded to be scored, as the reference is
    live = distribute(frozen.requires_grad_(False), placement, group, Passes(2 * pairs)) if frozen else None
    scorer = distribute(model, placement, group, Passes(2 * pairs if objective.pairs else pairs, train.dropout))
    return Loop(
        job=job,
        group=group,
        objective=objective,
        parameters=train.parameters,
        base_digest=base_digest,
        model=model,
        scorer=scorer,
        frozen=live,
        table=table,
        ema={name: tensor.clone() for name, tensor in weights_of(model).items()} if train.ema_decay else None,
        optimizer=torch.optim.AdamW(
            model.parameters(),
            lr=train.learning_rate,
            betas=(train.adam_beta1, train.adam_beta2),
            weight_decay=train.weight_decay,
            fused=True,
        ),
        data=data,
        scoring=scoring,
    )


def total_steps(images: int, train: Train) -> int:
    return steps_per_epoch(images, train.global_batch) * train.epochs


def settings_of(loop: Loop) -> Settings:
    config = loop.job.config
    return Settings(
        train=loop.job.train,
        base=loop.base_digest,
        tokens=loop.data.digest,
        rungs=config.rungs,
        protocol=protocol_of(config, loop.scoring, 0).id,
        precision=config.placement.precision,
        order=config.data.order,
    )
