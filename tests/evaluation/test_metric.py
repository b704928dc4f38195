"""What a metric does where it says nothing of its own: merging, the jackknife, and when it cannot be had."""

from typing import Any

import numpy as np
import pytest
import torch

from cca_ray.evaluation.features import FeatureArrays
from cca_ray.evaluation.metric import REASONS, Context, FeatureMetric, Metric, metric_named, obstacle
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.registry import METRICS

ALL = frozenset({"pooled", "spatial", "probabilities"})


class Largest(FeatureMetric):
    """The largest feature: which images there are shows in it."""

    name, label = "largest", "largest feature"

    def value(self, state: list[np.ndarray], context: Context) -> float:
        return float(np.concatenate(state).max())


class Demanding(Largest):
    needs = frozenset({"pooled", "reference_features", "reference_spatial"})
    fewest = 5


@pytest.fixture
def reference() -> Reference:
    return Reference.of(Moments.of(np.random.default_rng(0).normal(size=(9, 1))))


def arrays(*values: float) -> FeatureArrays:
    return FeatureArrays(np.array(values)[:, None])


def test_states_are_merged_in_their_order_and_none_is_no_images(reference: Reference):
    context = Context(reference, 4, torch.device("cpu"))
    first, second = (Largest().state_of(arrays(*v), np.arange(2), context) for v in ((1.0, 2.0), (3.0, 4.0)))
    merged = Largest().merged([None, first, None, second])
    assert merged is not None
    assert np.concatenate(merged).ravel().tolist() == [1.0, 2.0, 3.0, 4.0]
    assert Largest().merged([None, None]) is None
    assert Largest().merged([]) is None


def test_the_jackknife_leaves_out_one_group_after_the_other(reference: Reference):
    context = Context(reference, 4, torch.device("cpu"))
    groups = [[np.array([[value]])] for value in (3.0, 9.0, 5.0)]
    assert Largest().with_jackknife(groups, context) == (9.0, (9.0, 5.0, 9.0))
    assert Largest().with_jackknife(groups[:2], context) == (9.0, (9.0, 3.0))
    assert Largest().with_jackknife(groups[:1], context) == (3.0, (3.0,))


def test_less_is_better_and_two_images_are_enough_unless_a_metric_says_otherwise():
    assert Largest.lower_is_better is True
    assert Largest.fewest == 2


def test_it_is_said_why_a_metric_cannot_be_had(reference: Reference):
    whole = Reference.of(Moments.of(np.eye(3)), Moments.of(np.eye(2)), np.eye(3))
    assert obstacle(Demanding(), ALL, whole, 5) == ""
    assert obstacle(Demanding(), ALL, whole, 4) == "it needs 5 images, not 4"
    assert obstacle(Demanding(), ALL, reference, 5) == REASONS["reference_features"]
    without_spatial = Reference.of(Moments.of(np.eye(3)), None, np.eye(3))
    assert obstacle(Demanding(), ALL, without_spatial, 5) == REASONS["reference_spatial"]
    assert obstacle(Demanding(), ALL - {"pooled"}, reference, 5) == REASONS["pooled"]  # the first of what is missing
    assert (
        obstacle(Demanding(), ALL, Reference.of(Moments.of(np.eye(3)), Moments.of(np.eye(2))), 5)
        == (REASONS["reference_features"])
    )


@pytest.fixture
def not_ours():
    METRICS.add(NotOurs(), "my_pkg.not_ours")
    yield
    del METRICS.found["not_ours"], METRICS.owners["not_ours"]


class NotOurs:
    kind, name, label, lower_is_better = "metric", "not_ours", "not ours", True


def test_what_is_no_metric_is_refused_by_name(not_ours: Any):
    assert metric_named("fid").label == "FID"
    with pytest.raises(ValueError, match=r"metric 'not_ours': is not a cca_ray\.evaluation\.metric\.Metric"):
        metric_named("not_ours")
    with pytest.raises(ValueError, match="nothing"):
        metric_named("nothing")


@pytest.mark.parametrize("missing", ["state_of", "merge", "value"])
def test_a_metric_without_one_of_its_functions_cannot_be_made(missing: str):
    def something(*arguments: object) -> None: ...

    functions = dict.fromkeys({"state_of", "merge", "value"} - {missing}, something)
    with pytest.raises(TypeError, match=f"abstract.* '?{missing}"):
        type("Incomplete", (Metric,), functions)()
