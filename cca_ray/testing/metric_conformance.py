"""What every metric must do. For the author of one:

class TestBrightness(MetricConformance):
    metric = BRIGHTNESS
"""

import math
import pickle
from dataclasses import replace

import numpy as np
import torch

from cca_ray.evaluation.features import FeatureArrays
from cca_ray.evaluation.metric import AnyMetric, Context, obstacle
from cca_ray.evaluation.reference import Moments, Reference

WIDTH, SPATIAL, CLASSES, IMAGES, GROUPS = 6, 4, 5, 60, 5


def some_features(seed: int, shift: float = 0.0, sureness: float = 4.0) -> FeatureArrays:
    """Of `IMAGES` images. `shift`: how far they are from others; `sureness`: of the classifier."""
    rng = np.random.default_rng(seed)
    logits = sureness * np.eye(CLASSES)[np.arange(IMAGES) % CLASSES]
    odds = np.exp(logits + 0.1 * rng.normal(size=logits.shape))
    return FeatureArrays(
        (rng.normal(size=(IMAGES, WIDTH)) + shift).astype(np.float32),
        (odds / odds.sum(1, keepdims=True)).astype(np.float32),
        (rng.normal(size=(IMAGES, SPATIAL)) + shift).astype(np.float32),
    )


def a_reference() -> Reference:
    real = some_features(0)
    assert real.spatial is not None
    return Reference.of(Moments.of(real.pooled), Moments.of(real.spatial), real.pooled)


class MetricConformance:
    """Subclass it, and give the metric."""

    metric: AnyMetric

    @property
    def context(self) -> Context:
        return Context(a_reference(), IMAGES, torch.device("cpu"))

    def features(self, seed: int = 1, shift: float = 0.0, sureness: float = 4.0) -> FeatureArrays:
        """No more than the metric says that it needs."""
        whole, needs = some_features(seed, shift, sureness), self.metric.needs
        return replace(
            whole,
            probabilities=whole.probabilities if "probabilities" in needs else None,
            spatial=whole.spatial if "spatial" in needs else None,
        )

    def state(self, start: int, end: int) -> object:
        """Of the images of these indices."""
        index = np.arange(IMAGES)
        rows = (start <= index) & (index < end)
        return self.metric.state_of(self.features().of(rows), index[rows], self.context)

    def value(self, state: object) -> float:
        return self.metric.value(state, self.context)

    def close(self, found: float, expected: float) -> bool:
        """Equal but for the order of sums."""
        return math.isclose(found, expected, rel_tol=1e-6, abs_tol=1e-8)

    def test_it_has_a_name_a_label_and_a_direction(self) -> None:
        metric = self.metric
        assert metric.kind == "metric"
        assert metric.name.isidentifier()
        assert metric.label
        assert isinstance(metric.lower_is_better, bool)

    def test_its_value_is_a_number(self) -> None:
        value = self.value(self.state(0, IMAGES))
        assert isinstance(value, float)
        assert math.isfinite(value)

    def test_a_value_does_not_depend_on_who_scored_which_images(self) -> None:
        whole = self.value(self.state(0, IMAGES))
        parts = [self.state(start, start + 12) for start in range(0, IMAGES, 12)]
        assert self.close(self.value(self.metric.merged(parts)), whole)
        assert self.close(self.value(self.metric.merged([None, *parts, None])), whole)

    def test_merging_is_associative(self) -> None:
        first, second, third = (self.state(start, start + 20) for start in (0, 20, 40))
        merge = self.metric.merge
        assert self.close(
            self.value(merge(merge(first, second), third)), self.value(merge(first, merge(second, third)))
        )

    def test_merging_changes_neither_part(self) -> None:
        first, second = self.state(0, 30), self.state(30, IMAGES)
        before = self.value(first), self.value(second)
        self.metric.merge(first, second)
        assert (self.value(first), self.value(second)) == before

    def test_a_state_is_sent_between_processes(self) -> None:
        state = self.state(0, IMAGES)
        assert self.value(pickle.loads(pickle.dumps(state))) == self.value(state)  # noqa: S301 (our own)

    def test_the_jackknife_leaves_out_each_group(self) -> None:
        size = IMAGES // GROUPS
        groups = [self.state(start, start + size) for start in range(0, IMAGES, size)]
        value, without = self.metric.with_jackknife(groups, self.context)
        assert self.close(value, self.value(self.metric.merged(groups)))
        assert len(without) == GROUPS
        for g, left in enumerate(without):
            assert self.close(left, self.value(self.metric.merged(groups[:g] + groups[g + 1 :])))

    def test_the_jackknife_of_one_group_is_its_value(self) -> None:
        value, without = self.metric.with_jackknife([self.state(0, IMAGES)], self.context)
        assert without == (value,)

    def test_the_fewest_images_will_do(self) -> None:
        assert math.isfinite(self.value(self.state(0, self.metric.fewest)))

    def test_images_like_the_real_ones_are_no_worse_than_others(self) -> None:
        index = np.arange(IMAGES)

        def value_of(features: FeatureArrays) -> float:
            return self.value(self.metric.state_of(features, index, self.context))

        like, unlike = value_of(self.features()), value_of(self.features(shift=5.0, sureness=0.0))
        assert like <= unlike if self.metric.lower_is_better else like >= unlike

    def test_it_is_absent_where_what_it_needs_is(self) -> None:
        reference, metric = a_reference(), self.metric
        assert obstacle(metric, frozenset({"pooled", "spatial", "probabilities"}), reference, IMAGES) == ""
        bare = Reference(reference.mean, reference.covariance)
        possible = not metric.needs - {"pooled"}
        assert (obstacle(metric, frozenset({"pooled"}), bare, IMAGES) == "") is possible
