import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError
from torch import nn

from cca_ray.config import Train
from cca_ray.contracts import Strict
from cca_ray.models.likelihood import sequence_logps
from cca_ray.registry import OBJECTIVES
from cca_ray.testing.objective_conformance import ObjectiveConformance, some_pairs
from cca_ray.training.objectives import (
    CCA,
    DPO,
    FINETUNE,
    UNLEARNING,
    NoParameters,
    Objective,
    ScoredPairs,
    finetune_loss,
    objective_of,
)
from tests.conftest import golden

OBJECTIVES_NPZ = golden("objectives.npz")
OF_CCA = [key for key in OBJECTIVES_NPZ if key.startswith("cca_") and not key.endswith(("gpos", "gneg"))]
OF_UNLEARNING = [key for key in OBJECTIVES_NPZ if key.startswith("unlearning_")]
OF_DPO = [key for key in OBJECTIVES_NPZ if key.startswith("dpo_")]
SIMPLE = [key for key in OBJECTIVES_NPZ if key.startswith("ccasimple_")]


class TestCca(ObjectiveConformance):
    objective = CCA


class TestDpo(ObjectiveConformance):
    objective = DPO


class TestUnlearning(ObjectiveConformance):
    objective = UNLEARNING


class TestFinetune(ObjectiveConformance):
    objective = FINETUNE


def lifted_loss(pairs: ScoredPairs, own: NoParameters) -> torch.Tensor:
    return pairs.negative_logps - pairs.logps


def anchored_loss(pairs: ScoredPairs, own: NoParameters) -> torch.Tensor:
    return torch.nn.functional.mse_loss(pairs.logps, pairs.reference_logps, reduction="none")


class TestOneWithoutReference(ObjectiveConformance):
    objective = Objective("lifted", "lifted", NoParameters, lifted_loss, reference=False)


class TestOneWithoutPairs(ObjectiveConformance):
    objective = Objective("anchored", "anchored", NoParameters, anchored_loss, pairs=False)


def test_an_objective_that_wants_more_than_it_says_is_told_in_a_line():
    for log, name in (({}, "reference_logps"), ({"margin": lambda pairs: pairs.negative_gap}, "negative_reference")):
        loss = finetune_loss if log else lambda pairs, own: pairs.gap
        mine = Objective("mine", "mine", NoParameters, loss, pairs=False, reference=False, log=log)
        with pytest.raises(ValueError, match=f"{name}.* is used by an objective that was made without: see its pairs="):
            mine.values(some_pairs(mine), NoParameters())


def tensor(name: str) -> torch.Tensor:
    return torch.from_numpy(OBJECTIVES_NPZ[name])


def settings(key: str) -> list[float]:
    return [float(part[1:]) for part in key.split("_")[1:]]


@pytest.fixture
def pairs() -> ScoredPairs:
    return ScoredPairs(
        length=16,
        logps=tensor("policy_pos").requires_grad_(),
        labels=tensor("labels"),
        null=tensor("uncond_mask"),
        reference_logps=tensor("ref_pos"),
        negative_logps=tensor("policy_neg").requires_grad_(),
        negative_labels=tensor("negative_labels"),
        negative_reference_logps=tensor("ref_neg"),
    )


def mean_loss(objective: Objective[Any], pairs: ScoredPairs, **parameters: float) -> torch.Tensor:
    return objective.loss(pairs, objective.parameters.model_validate(parameters)).mean()


@pytest.mark.parametrize("key", OF_CCA)
def test_cca_and_its_gradients_are_the_official_ones(key: str, pairs: ScoredPairs):
    beta, lambda_ = settings(key)
    loss = mean_loss(CCA, pairs, beta=beta, lambda_=lambda_)
    loss.backward()
    np.testing.assert_allclose(loss.detach(), OBJECTIVES_NPZ[key], rtol=1e-5)
    np.testing.assert_allclose(pairs.logps.grad, OBJECTIVES_NPZ[f"{key}_gpos"], rtol=1e-4, atol=1e-8)
    np.testing.assert_allclose(pairs.negative_logps.grad, OBJECTIVES_NPZ[f"{key}_gneg"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("key", OF_UNLEARNING)
def test_unlearning_is_the_official_one(key: str, pairs: ScoredPairs):
    _, lambda_ = settings(key)
    loss = mean_loss(UNLEARNING, pairs, lambda_=lambda_)
    np.testing.assert_allclose(loss.detach(), OBJECTIVES_NPZ[key], rtol=1e-5)


@pytest.mark.parametrize("key", OF_DPO)
def test_dpo_is_the_official_one(key: str, pairs: ScoredPairs):
    (beta,) = settings(key)
    np.testing.assert_allclose(mean_loss(DPO, pairs, beta=beta).detach(), OBJECTIVES_NPZ[key], rtol=1e-5)


@pytest.mark.parametrize("key", SIMPLE)
def test_cca_without_positives_is_the_simple_form_up_to_its_scale(key: str, pairs: ScoredPairs):
    beta, lambda_ = settings(key)
    apart = replace(pairs, null=torch.zeros(12, dtype=torch.bool), negative_labels=pairs.labels + 1)
    loss = mean_loss(CCA, apart, beta=beta, lambda_=lambda_) * lambda_
    np.testing.assert_allclose(loss.detach(), OBJECTIVES_NPZ[key], rtol=1e-5)


def test_finetune_loss_is_the_next_token_loss():
    torch.manual_seed(0)
    hidden, head, tokens = torch.randn(3, 5, 4), nn.Linear(4, 7), torch.randint(7, (3, 5))
    expected = nn.functional.cross_entropy(head(hidden).flatten(0, 1), tokens.flatten())
    logps, labels = sequence_logps(hidden, head, tokens), torch.zeros(3)
    torch.testing.assert_close(mean_loss(FINETUNE, ScoredPairs(5, logps, labels, labels > 0)), expected)


def test_rewards_are_logged_of_objectives_with_a_reference():
    for objective in (CCA, DPO, UNLEARNING):
        assert objective.logged == ("loss", "reward_accuracy", "reward_margin")
    assert FINETUNE.logged == ("loss",)


def test_the_registry_has_ours():
    assert [OBJECTIVES.get(name) for name in OBJECTIVES.names()[:4]] == [CCA, DPO, UNLEARNING, FINETUNE]


class HingeParameters(Strict):
    margins: tuple[float, ...] = (1.0,)
    rounds: int = 2


def hinge_loss(pairs: ScoredPairs, own: HingeParameters) -> torch.Tensor:
    return (own.margins[0] - (pairs.gap - pairs.negative_gap)).relu()


HINGE = Objective("hinge", "hinge", HingeParameters, hinge_loss)


@pytest.fixture
def hinge():
    OBJECTIVES.add(HINGE, "my_pkg.hinge")
    yield HINGE
    del OBJECTIVES.found["hinge"], OBJECTIVES.owners["hinge"]


def test_an_objective_of_others_brings_its_own_parameters(hinge: Objective[Any]):
    train = Train.model_validate_json('{"objective": "hinge", "margins": [2, 3]}')
    assert objective_of(train) is hinge
    assert train.parameters == HingeParameters(margins=(2.0, 3.0))
    assert train.is_whole("rounds")
    assert Train.model_validate_json(train.model_dump_json(by_alias=True)) == train
    with pytest.raises(ValidationError, match=r"beta\n.*Extra inputs are not permitted"):
        Train.model_validate({"objective": "hinge", "beta": 0.1})


class Lenient(BaseModel):
    margin: float = 1.0


class Clash(Strict):
    epochs: int = 3


@pytest.mark.parametrize(
    ("parameters", "why"), [(Lenient, "a subclass of cca_ray.contracts.Strict"), (Clash, "every `train` has epochs")]
)
def test_parameters_that_would_swallow_a_mistake_are_refused(parameters: Any, why: str):
    with pytest.raises(TypeError, match=why):
        Objective("mine", "mine", parameters, hinge_loss)


def test_parameters_are_those_of_the_paper_unless_given_and_none_may_be_0():
    """beta 0.02, lambda 1."""
    assert CCA.parameters().model_dump(by_alias=True) == {"lambda": 1.0, "beta": 0.02}
    assert DPO.parameters().model_dump(by_alias=True) == {"beta": 0.02}
    assert UNLEARNING.parameters().model_dump(by_alias=True) == {"lambda": 1.0}
    for objective in (CCA, DPO, UNLEARNING):
        for name in objective.parameters().model_dump(by_alias=True):
            assert objective.parameters.model_validate({name: 1e-9}).model_dump(by_alias=True)[name] == 1e-9
            with pytest.raises(ValidationError, match="greater than 0"):
                objective.parameters.model_validate({name: 0.0})


def test_a_reward_counts_only_what_is_larger():
    """Of the gaps 3, 2 and 1 beside 2, 2 and 2 only the first wins; the margins are their differences."""
    zeros = torch.zeros(3)
    three = ScoredPairs(
        length=1,
        logps=torch.tensor([4.0, 3.0, 2.0]),
        labels=zeros,
        null=zeros.bool(),
        reference_logps=torch.ones(3),
        negative_logps=torch.tensor([1.0, 1.0, 1.0]),
        negative_labels=zeros,
        negative_reference_logps=-torch.ones(3),
    )
    _, accuracy, margin = CCA.values(three, CCA.parameters())
    assert accuracy.tolist() == [1.0, 0.0, 0.0]
    assert margin.tolist() == [1.0, 0.0, -1.0]


@pytest.mark.parametrize(("null", "negative", "positive"), [(True, 1, True), (False, 0, True), (False, 1, False)])
def test_a_second_term_is_a_positive_if_masked_or_of_the_same_label(null: bool, negative: int, positive: bool):
    zero = torch.zeros(1)
    pairs = ScoredPairs(1, zero, torch.tensor([0]), torch.tensor([null]), negative_labels=torch.tensor([negative]))
    assert pairs.counts_as_positive.tolist() == [positive]


def test_an_objective_wants_pairs_and_a_reference_unless_it_says_otherwise():
    for objective in (CCA, DPO, UNLEARNING, HINGE):
        assert (objective.pairs, objective.reference) == (True, True)
    assert (FINETUNE.pairs, FINETUNE.reference) == (False, False)


@pytest.fixture
def foreign():
    OBJECTIVES.add(SimpleNamespace(kind="objective", name="foreign", label="", parameters=HingeParameters), "my_pkg")
    yield
    del OBJECTIVES.found["foreign"], OBJECTIVES.owners["foreign"]


def test_what_is_no_objective_is_refused_by_name(foreign: None):
    with pytest.raises(ValueError, match=r"'foreign': not an instance of cca_ray\.training\.objectives\.Objective"):
        objective_of(Train(objective="foreign"))


def test_whoever_only_wants_names_does_without_torch():
    ask = "import cca_ray.training.objectives, sys; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
