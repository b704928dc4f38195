"""Whether scores depend on the type of card that made them: seen in what the final comparison scores anyway.

In bfloat16 another card draws other images from the same noise, so a score on it is another draw; the errors of a study
include that, for they are of the images that were drawn. What they do not include is a card whose scores are all a
little higher. That is what is looked for here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cca_ray.evaluation.estimate import Estimate

SMALL = 0.1  # of the differences that a study decides on: what is less matters to no decision


@dataclass(frozen=True)
class OnCard:
    """A score: of which model (with which guidance), on which block of noise, on which type of card."""

    model: str
    block: int
    card: str
    value: float


@dataclass(frozen=True)
class CardEffect:
    """By how much scores from `card` are higher than those from `usual`, of the same models on the same noise."""

    card: str
    usual: str
    higher: Estimate

    def __str__(self) -> str:
        (low, high), value = self.higher.interval(), self.higher.value
        if value < 0:
            low, high = -high, -low
        return (
            f"scores made on {self.card} are {'higher' if value > 0 else 'lower'} by {abs(value):.2f} "
            f"({low:.2f} to {high:.2f}) than those made on {self.usual}"
        )


def columns(names: Sequence[str | int]) -> np.ndarray:
    """[N, K - 1]: a one for every name but the first that there is."""
    found = list(dict.fromkeys(names))
    return np.array([[float(name == other) for other in found[1:]] for name in names]).reshape(len(names), -1)


def card_effects(scores: Sequence[OnCard]) -> tuple[CardEffect, ...]:
    """Of every card but the usual one, by least squares: a score is of its model, plus its block, plus its card.

    None where there is one card only, or where scores are too few to tell a card from models and blocks.
    """
    counts = {card: sum(score.card == card for score in scores) for card in dict.fromkeys(s.card for s in scores)}
    usual = max(counts, key=lambda card: counts[card], default="")
    others = [card for card in counts if card != usual]  # in the order of their columns
    if not others:
        return ()
    parts = [columns([usual, *(s.card for s in scores)])[1:], np.ones((len(scores), 1))]
    design = np.hstack([*parts, columns([s.model for s in scores]), columns([s.block for s in scores])])
    freedom = len(scores) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        return ()
    values = np.array([s.value for s in scores])
    found = np.linalg.lstsq(design, values)[0]
    variance = float(np.square(values - design @ found).sum()) / freedom
    errors = np.sqrt(variance * np.diag(np.linalg.inv(design.T @ design)))
    return tuple(
        CardEffect(card, usual, Estimate(float(found[i]), float(errors[i]), freedom)) for i, card in enumerate(others)
    )


def matters(effect: CardEffect, decided: Sequence[float]) -> bool:
    """Whether it is beyond its own error, and not small against the least of these differences."""
    low, high = effect.higher.interval()
    return not low <= 0 <= high and abs(effect.higher.value) > SMALL * min(map(abs, decided), default=0.0)
