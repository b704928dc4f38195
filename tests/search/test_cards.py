"""Scores of known models, noise and cards: what the cards add is found with its error."""

import numpy as np
import pytest

from cca_ray.search.cards import CardEffect, OnCard, card_effects, matters


def scores(higher: float, seed: int = 0, noise: float = 0.3, cards: tuple[str, ...] = ("A40", "H100")) -> list[OnCard]:
    """Six models on ten blocks, each on a card that happened to be free."""
    rng = np.random.default_rng(seed)
    models, blocks = rng.normal(20, 5, 6), rng.normal(0, 1, 10)
    return [
        OnCard(f"trial-{m}", b, card, models[m] + blocks[b] + (card == "A40") * higher + noise * rng.normal())
        for m in range(6)
        for b in range(10)
        for card in [cards[rng.integers(len(cards))]]
    ]


def the_effect(found: tuple[CardEffect, ...]) -> float:
    """Of A40 against H100, whichever was the usual one."""
    (effect,) = found
    assert {effect.card, effect.usual} == {"A40", "H100"}
    return effect.higher.value if effect.card == "A40" else -effect.higher.value


def test_a_card_whose_scores_are_higher_is_found():
    found = card_effects(scores(0.8))
    assert the_effect(found) == pytest.approx(0.8, abs=0.3)
    assert matters(found[0], [5.0, -2.0])
    assert not matters(found[0], [50.0, -20.0])  # small against what is decided


def test_its_interval_covers_the_truth_as_often_as_it_says():
    """95 % of 400, within three standard errors of that share."""
    covered = 0
    for seed in range(400):
        (effect,) = card_effects(scores(0.5, seed))
        low, high = effect.higher.interval()
        covered += low <= (0.5 if effect.card == "A40" else -0.5) <= high
    assert 0.917 < covered / 400 < 0.983


def test_cards_that_score_alike_are_seldom_blamed():
    blamed = [matters(effect, [0.0]) for seed in range(200) for effect in card_effects(scores(0.0, seed))]
    assert len(blamed) == 200
    assert sum(blamed) / 200 < 0.1


def test_three_cards_are_told_from_the_usual_one():
    found = card_effects(scores(0.8, cards=("H100", "A40", "H100", "L40S")))
    assert {effect.usual for effect in found} == {"H100"}
    assert {effect.card: round(effect.higher.value) for effect in found} == {"A40": 1, "L40S": 0}


def test_where_a_card_cannot_be_told_from_the_models_nothing_is_said():
    assert card_effects([]) == ()
    assert card_effects(scores(0.8, cards=("H100",))) == ()
    apart = [OnCard(f"trial-{m}", b, "A40" if m else "H100", float(m + b)) for m in range(2) for b in range(10)]
    assert card_effects(apart) == ()
