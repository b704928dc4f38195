"""A trial's scores made again on this machine, beside those that its study has kept: does the card change them?"""

from dataclasses import dataclass
from pathlib import Path

from optuna.trial import FrozenTrial

from cca_ray.cluster.device import local_device
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import MetricInfo
from cca_ray.errors import ConfigError
from cca_ray.evaluation.estimate import Estimate
from cca_ray.evaluation.scoring import Scored, load_base, protocol_of, score, scoring_of
from cca_ray.models.parallel import Group, for_sampling
from cca_ray.search.blocks import shown_blocks
from cca_ray.search.final_comparison import weights_of
from cca_ray.search.standings import Contender, Standing
from cca_ray.storage.files import fingerprint
from cca_ray.storage.mirror import exists
from cca_ray.training.tasks import MadeOf, card_of, kept_score


@dataclass(frozen=True)
class Block:
    """One block of noise: its seed, the score that was kept and the card that made it, the score made here."""

    seed: int
    kept: float
    kept_card: str
    here: float


@dataclass(frozen=True)
class Verification:
    """`difference`: here minus kept, by `metric`, mean over the blocks; `std`: of one score, by sampling."""

    trial: int
    metric: str
    card: str
    blocks: tuple[Block, ...]
    difference: Estimate
    std: float | None  # None where there are too few images for one

    @property
    def explained(self) -> bool:
        """Whether the difference is within its 95 % interval: then it is of the images that happened to be drawn."""
        low, high = self.difference.interval()
        return low <= 0 <= high


def verify(config: ResolvedStudy, folder: Path, trial: FrozenTrial, study: str, metric: MetricInfo) -> Verification:
    """Score a trial again on its blocks in the table of the study in `folder`; `study`: its id.

    ConfigError if its weights are gone, or if it has no scores under this configuration's protocol.
    """
    key, weights = trial.user_attrs["key"], weights_of(trial, folder, study)
    if not exists(weights):
        raise ConfigError(f"{weights}: the weights of trial {trial.number} are gone")
    group = Group(device=local_device(config.placement))
    scoring, made_of = scoring_of(config, group.device), MadeOf(fingerprint(weights), study)
    model = for_sampling(load_base(config, str(weights)), config.placement, group)
    seeds, before, here = list[int](), list[Scored](), list[Scored]()
    for seed in (config.score.seed + block for block in shown_blocks(config)):
        protocol = protocol_of(config, scoring, config.score.samples, seed=seed)
        if kept := kept_score(folder / "scores" / f"{key}-{protocol.id}.npz", made_of, weights):
            seeds.append(seed)
            before.append(kept)
            here.append(score(model, scoring, protocol, group))
    if not seeds:  # of a finalist that did not win there may be fewer than all
        raise ConfigError(
            f"{folder}: no score of trial {trial.number} under protocol {protocol.id}; "
            "use the search space and the settings of that study"
        )
    ours, theirs = (Standing.of(Contender(key), [[s.score for s in some]], some[0].images) for some in (here, before))
    blocks = [
        Block(seed, was.score.values[metric.name], was.card, now.score.values[metric.name])
        for seed, was, now in zip(seeds, before, here, strict=True)
    ]
    difference, std = ours.beside(theirs, metric.name), theirs.std(metric.name)
    return Verification(trial.number, metric.name, card_of(config.placement), tuple(blocks), difference, std)
