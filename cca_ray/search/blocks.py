"""Which models the final comparison scores on which blocks of noise: pure functions.

What chooses is not what is shown: guidance scales, control and winner are chosen on some blocks of noise, the table
shows others. `benchmarks/cluster_sim.py` asks these functions, too.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from cca_ray.config import StudyConfig
from cca_ray.search.standings import Contender

FEW = 10_000  # images: of fewer, FID depends on their number more than on what is compared


class Wanted(NamedTuple):
    """All models of one setting; the numbers of the blocks of noise, from 1; images of each, None: `score.samples`."""

    models: Sequence[Contender]
    numbers: Sequence[int]
    samples: int | None = None


def few_samples(config: StudyConfig) -> int | None:
    """Of how many images the scales are compared first; None where that would spare little, or tell little."""
    return FEW if config.score.samples >= 2 * FEW else None


def choosing_blocks(config: StudyConfig) -> range:
    return range(1, config.score.blocks + 1)


def shown_blocks(config: StudyConfig) -> range:
    """Numbers of the blocks of noise that the table shows: others chose what it shows."""
    return range(config.score.blocks + 1, 2 * config.score.blocks + 1)


def at_scales(contender: Contender, scales: Sequence[float]) -> list[Contender]:
    return [replace(contender, guidance_scale=scale) for scale in scales]


def rivals(contenders: Sequence[Contender]) -> Sequence[Contender]:
    """Those among whom there is a choice: of one alone nothing is scored."""
    return contenders if len(contenders) > 1 else ()


def choosing(config: StudyConfig, contenders: Sequence[Contender], samples: int | None = None) -> list[Wanted]:
    """What tells the best of these. `samples`: see `Wanted`."""
    return [Wanted([contender], choosing_blocks(config)[:1], samples) for contender in rivals(contenders)]


def first(config: StudyConfig, finalists: Sequence[Sequence[Contender]], controls: Sequence[Contender]) -> list[Wanted]:
    """What tells which finalists may still win, and which control is the best."""
    block = choosing_blocks(config)[:1]
    return [*(Wanted(models, block) for models in finalists), *choosing(config, controls)]


def further(config: StudyConfig, contested: Sequence[Sequence[Contender]]) -> list[Wanted]:
    """What tells the winner among those that may still win."""
    return [Wanted(models, choosing_blocks(config)) for models in contested]


def of_base(config: StudyConfig, base: Contender) -> list[Wanted]:
    """What needs no trial: scales to choose among, and the base's row of the table."""
    scales = at_scales(base, config.score.guidance_scales)
    return [Wanted([base], shown_blocks(config)), *choosing(config, scales, few_samples(config))]


def of_guided_base(config: StudyConfig, guided: Contender) -> list[Wanted]:
    """Its row of the table, once the scale is chosen."""
    return [Wanted([guided], shown_blocks(config))]


def of_trials(
    config: StudyConfig,
    chosen: Sequence[Contender],
    finalists: Sequence[Sequence[Contender]],
    winner: Contender,
) -> list[Wanted]:
    """The rest of the table. Of a finalist that did not win one block is enough."""
    shown = shown_blocks(config)
    return [
        *(Wanted([contender], shown) for contender in chosen),
        *(Wanted(models, shown if models[0] == winner else shown[:1]) for models in finalists),
    ]
