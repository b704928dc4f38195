"""How many optimizer steps a trial may take, and whether its rungs lie apart in all of them."""

import math

from cca_ray.config import StudyConfig
from cca_ray.data.pairs import steps_per_epoch
from cca_ray.errors import ConfigError


def lengths(config: StudyConfig, images: int) -> list[int]:
    """In how many optimizer steps a trial may be trained, short ones first."""

    def values(name: str, own: int) -> set[int]:
        bounds = config.search.space.get(name)
        return {own} if bounds is None else {own, *range(math.ceil(bounds.low), math.floor(bounds.high) + 1)}

    epochs, batches = values("epochs", config.train.epochs), values("global_batch", config.train.global_batch)
    return sorted({steps_per_epoch(images, batch) * count for batch in batches if batch <= images for count in epochs})


def check_rungs(config: StudyConfig, images: int) -> None:
    """ConfigError if two rungs of a trial fall on one step: it would be compared with others at another rung of theirs.

    `images`: in the token set.
    """
    for total in lengths(config, images):
        steps = [rung.step_of(total) for rung in config.rungs]
        if len(set(steps)) < len(steps):
            places, found = ", ".join(f"{rung.at:g}" for rung in config.rungs), ", ".join(map(str, steps))
            raise ConfigError(
                f"{config.name}: rungs: {places} of a trial of {total} steps are its steps {found}, and each must be "
                "another; take fewer rungs, more epochs or a smaller global_batch"
            )
