"""What the study of one size takes before it begins: by the speed that was measured, or else by arithmetic.

All trials count as whole ones: how many a rung will stop, nobody knows before.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cca_ray.cluster.placement import CARDS, IMAGES, accelerator_of, devices, ways
from cca_ray.cluster.queue import Node, grant, slots
from cca_ray.config import StudyConfig
from cca_ray.placement_config import CPU, Placement
from cca_ray.search.budget import final_samples
from cca_ray.training import roofline

HOUR = 3600.0
# Fitted to trials of the embedded sizes, 4 k to 81 k parameters, alone on a server of two cores: within a factor 1.5.
CORE_FLOPS = 20e9  # a second
TOKEN_S = 3e-6  # a token that is trained on, however small the model
IMAGE_S = 4e-4  # an image that is sampled and scored, likewise
START_S = 1.0  # a trial


@dataclass(frozen=True)
class Speed:
    """Of a size on one type of card, in hours of one card; of a core, where the type is CPU.

    `source`: how it is known, in words.
    """

    card: str
    trial: float  # training alone
    control: float
    image: float  # sampled and scored
    guided: float  # the same with guidance
    source: str
    table: float = 0.0  # of the reference model's log-likelihoods, once a training seed


@dataclass(frozen=True)
class Work:
    """What is left to do of a size: trials, and images to score; of the final comparison without guidance, and with."""

    trials: int
    controls: int
    rung_images: int
    final_images: tuple[int, int]
    tables: int = 0  # of the reference: one of the study's seed, one of each further seed of the finalists

    @staticmethod
    def of(config: StudyConfig, ended: Mapping[str, int] | None = None, finished: bool = False) -> "Work":
        """`ended`: how many trials have, by arm; more than were planned, as of a wider control, spare no others."""
        ended, search = ended or {}, config.search
        controls = max(0, len(config.control.learning_rates) - ended.get("control", 0))
        further = max(0, search.trials - ended.get("search", 0))
        # Of those that ended it is only known that they count where no further trial may push their finalists out.
        again = max(0, config.replicates - (0 if further else ended.get("replicate", 0)))
        trials = further + again
        left = trials + controls
        return Work(
            trials=trials,
            controls=controls,
            rung_images=left * sum(rung.samples for rung in config.rungs),
            final_images=(0, 0) if finished and not left else final_samples(config),
            tables=(not any(ended.values())) + (search.replicates if again and not ended.get("replicate") else 0),
        )

    def __bool__(self) -> bool:
        """Whether anything is left to do."""
        return bool(self.trials or self.controls or any(self.final_images))

    def hours(self, speed: Speed) -> float:
        """All of it, on one card."""
        return self.training(speed) + self.rungs(speed) + self.final(speed)

    def training(self, speed: Speed) -> float:
        """Hours of one card."""
        return self.trials * speed.trial + self.controls * speed.control + self.tables * speed.table

    def rungs(self, speed: Speed) -> float:
        return self.rung_images * speed.image

    def final(self, speed: Speed) -> float:
        plain, guided = self.final_images
        return plain * speed.image + guided * speed.guided


def speeds_by_arithmetic(config: StudyConfig) -> list[Speed]:
    """On each card of the placement's table; none of a size that is not an official one."""
    size = roofline.size_of(config)
    if size is None:
        return []
    pairs, found = IMAGES * config.train.epochs, []
    for way in ways(config.placement):
        if (card := accelerator_of(way)) in CARDS:
            alone = way.model_copy(update={"workers": 1})  # as parts of the table are computed
            trial, control, table = (
                roofline.training_seconds(size, on, pairs, passes) * on.workers / HOUR
                for on, passes in ((way, 6), (way, 3), (alone, 2))
            )
            image, guided = (roofline.image_seconds(size, card, guided=guided) / HOUR for guided in (False, True))
            found.append(Speed(card, trial, control, image, guided, "by arithmetic for ImageNet, not measured", table))
    return found


def speed_on_a_core(parameters: int, tokens: int, pairs: int) -> Speed:
    """Of a model that is small enough for a processor. `tokens`: an image; `pairs`: a trial."""
    sequences = tokens * (TOKEN_S + 6 * parameters / CORE_FLOPS) * pairs  # of one kind: CCA has two, the control one
    image = IMAGE_S + tokens * 2 * parameters / CORE_FLOPS
    trial, control = START_S + 2 * sequences, START_S + sequences
    source = "by rough arithmetic for a core of a usual server, not measured here"
    return Speed(CPU, trial / HOUR, control / HOUR, image / HOUR, 2 * image / HOUR, source)


def at_once(placement: Placement, most: int, nodes: Sequence[Node]) -> list[Placement]:
    """How the first trials would be placed on nodes that are free: at most so many at a time."""
    return list(grant({f"{i}": ways(placement) for i in range(most)}, [], nodes).values())


def card_of(way: Placement, nodes: Sequence[Node]) -> str:
    """On which cards a trial placed so runs."""
    if accelerator_of(way) or not way.gpus:
        return accelerator_of(way) or CPU
    return next((node.type for node in nodes if node.gpus), CPU)


def wall_hours(config: StudyConfig, work: Work, speeds: Sequence[Speed], nodes: Sequence[Node]) -> float | None:
    """On these nodes, if all are free. None if no trial has room there, or its speed is not known."""
    by_card = {speed.card: speed for speed in speeds}
    placed = at_once(config.placement, config.search.max_concurrent, nodes)
    if not placed or any(card_of(way, nodes) not in by_card for way in placed):
        return None
    trials, rate = work.trials + work.controls, 0.0  # rate: shares of the trials' phase an hour
    for way in placed[:trials]:
        speed = by_card[card_of(way, nodes)]
        rate += devices(way) / (work.training(speed) + work.rungs(speed))
    singles = {card_of(way, nodes): way.model_copy(update={"workers": 1}) for way in ways(config.placement)}
    final = sum(  # the same of the final comparison's, whose parts each take one card
        slots(way, nodes) * devices(way) / hours
        for card, way in singles.items()
        if card in by_card and (hours := work.final(by_card[card]))
    )
    return sum(1 / of_phase for of_phase in (rate, final) if of_phase)
