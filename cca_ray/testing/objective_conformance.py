"""What every objective must satisfy.

class TestMine(ObjectiveConformance):
    objective = MINE
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from cca_ray.contracts import Strict
from cca_ray.training.objectives import Objective, ScoredPairs

PAIRS = 12


def some_pairs(objective: Objective[Any]) -> ScoredPairs:
    """As the training loop would score them: only what the objective says that it wants. One pair is null-masked."""
    generator = torch.Generator().manual_seed(0)

    def logps() -> Tensor:
        return -60 + 3 * torch.randn(PAIRS, generator=generator)

    labels, null = torch.arange(PAIRS) % 5, torch.arange(PAIRS) == 4
    return ScoredPairs(
        length=16,
        logps=logps().requires_grad_(),
        labels=labels,
        null=null,
        reference_logps=logps() if objective.reference else None,
        negative_logps=logps().requires_grad_() if objective.pairs else None,
        negative_labels=torch.where(null, labels, (labels + 1) % 5) if objective.pairs else None,
        negative_reference_logps=logps() if objective.pairs and objective.reference else None,
    )


def part_of(pairs: ScoredPairs, rows: Tensor) -> ScoredPairs:
    """These of the pairs, in this order."""
    cut: Mapping[str, Any] = {name: v[rows] for name, v in vars(pairs).items() if isinstance(v, Tensor)}
    return replace(pairs, **cut)


class ObjectiveConformance:
    """Subclass it, and name the objective."""

    objective: ClassVar[Objective[Any]]

    @pytest.fixture
    def pairs(self) -> ScoredPairs:
        return some_pairs(self.objective)

    @property
    def defaults(self) -> Strict:
        return self.objective.parameters()

    def loss(self, pairs: ScoredPairs) -> Tensor:
        return self.objective.loss(pairs, self.defaults)

    def test_it_has_a_kind_a_name_and_a_label(self) -> None:
        assert self.objective.kind == "objective"
        assert self.objective.name.isidentifier()
        assert self.objective.label

    def test_the_loss_is_a_finite_number_a_pair(self, pairs: ScoredPairs) -> None:
        loss = self.loss(pairs)
        assert loss.shape == (PAIRS,)
        assert loss.dtype == torch.float32
        assert loss.isfinite().all()

    def test_the_loss_moves_every_log_likelihood_that_it_is_given(self, pairs: ScoredPairs) -> None:
        self.loss(pairs).sum().backward()
        for logps in (pairs.logps, pairs.negative_logps):
            if logps is not None:
                assert logps.grad is not None
                assert logps.grad.isfinite().all()
                assert logps.grad.any()

    def test_no_value_depends_on_the_pairs_beside_it(self, pairs: ScoredPairs) -> None:
        """So the mean over the global batch is the same however that is cut."""
        whole = self.objective.values(pairs, self.defaults)
        order = torch.randperm(PAIRS, generator=torch.Generator().manual_seed(1))
        parts = [self.objective.values(part_of(pairs, rows), self.defaults) for rows in order.split(5)]
        for name, value, cut in zip(self.objective.logged, whole, zip(*parts, strict=True), strict=True):
            assert torch.allclose(torch.cat(cut), value[order]), name

    def test_what_it_logs_is_named_and_a_finite_number_a_pair(self, pairs: ScoredPairs) -> None:
        names, values = self.objective.logged, self.objective.values(pairs, self.defaults)
        assert names[0] == "loss"
        assert len(set(names)) == len(names) == len(values)
        for value in values:
            assert value.shape == (PAIRS,)
            assert value.isfinite().all()

    def test_every_parameter_has_a_default(self) -> None:
        fields = self.objective.parameters.model_fields.values()
        assert not any(field.is_required() for field in fields)

    def test_its_parameters_are_the_same_after_a_file(self) -> None:
        content = self.defaults.model_dump_json(by_alias=True)
        assert self.objective.parameters.model_validate_json(content) == self.defaults

    def test_it_wants_no_more_than_it_uses(self, pairs: ScoredPairs) -> None:
        """A reference costs a second model, negative conditions a second forward pass."""
        unused = [
            name
            for name in ("reference_logps", "negative_logps", "negative_reference_logps")
            if (logps := getattr(pairs, name)) is not None
            and torch.equal(self.loss(replace(pairs, **{name: logps - 5})), self.loss(pairs))
        ]
        assert unused == []
