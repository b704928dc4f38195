"""From someone's images to a size, settings and the facts behind the ranges of the search."""

import pytest

from cca_ray.config import Pretrain
from cca_ray.models.family import family_of
from cca_ray.training.base_space import BaseFacts
from cca_ray.training.plan import plan_for
from tests.conftest import some_digits

START = Pretrain(codebook_size=256, seed=5)


@pytest.mark.parametrize(("family", "tokens"), [("llamagen", 16), ("var", 30)])
def test_the_plan_is_of_the_images_and_their_tokens(family: str, tokens: int):
    plan = plan_for(some_digits(240), family_of(family), None, START, None)
    assert plan.size == "small"
    assert plan.why.startswith("size S, 0.1")
    assert f"240 images of {tokens} tokens" in plan.why
    assert plan.facts == BaseFacts(tokens, 10, plan.settings.learning_rate)
    assert (plan.settings.seed, plan.settings.codebook_size) == (5, 256)
    assert plan.settings.validation == 0.2


def test_what_is_asked_for_is_planned():
    plan = plan_for(some_digits(240), family_of("llamagen"), "large", START, 7)
    assert (plan.size, plan.settings.epochs, plan.settings.learning_rate) == ("large", 7, 9e-4)
    assert plan.why.startswith(
        "size L, 5 M parameters: 240 images of 16 tokens are 0.00078 tokens per parameter; as ask"
    )
