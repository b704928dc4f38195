from copy import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from cca_ray.config import ResolvedStudy
from cca_ray.errors import ConfigError
from cca_ray.evaluation.fid import FID
from cca_ray.evaluation.kid import KID
from cca_ray.evaluation.scoring import Scoring, load_base, merged, metrics_of, protocol_of, score, scoring_of
from cca_ray.models.parallel import Group
from tests.conftest import MakeStudy

CPU = torch.device("cpu")
ALL = ["fid", "inception_score", "kid", "precision", "recall"]


def names(config: ResolvedStudy, scoring: Scoring) -> list[str]:
    return [metric.name for metric in metrics_of(config, scoring)]


def without_probabilities(scoring: Scoring) -> Scoring:
    extractor = copy(scoring.extractor)
    extractor.provides = frozenset({"pooled"})
    return replace(scoring, extractor=extractor)


def without_features(scoring: Scoring) -> Scoring:
    return replace(scoring, reference=replace(scoring.reference, features=None))


def test_every_metric_that_is_asked_for_is_measured_with_its_jackknife(make_study: MakeStudy):
    config = make_study(score={"metrics": ALL})
    scoring = scoring_of(config, CPU)
    found = score(load_base(config), scoring, protocol_of(config, scoring, 70), Group()).score
    assert list(found.values) == ALL
    assert all(np.isfinite(value) for value in found.values.values())
    assert {name: len(values) for name, values in found.without.items()} == dict.fromkeys(ALL, 7)


def test_more_metrics_change_none(make_study: MakeStudy):
    few, more = make_study(), make_study(score={"metrics": ["kid", "inception_score", "fid"]})
    scores = []
    for config in (few, more):
        scoring = scoring_of(config, CPU)
        scores.append(score(load_base(config), scoring, protocol_of(config, scoring, 60), Group()).score)
    for name in ("fid", "inception_score"):
        assert scores[0].values[name] == scores[1].values[name]
        assert scores[0].without[name] == scores[1].without[name]
    assert protocol_of(few, scoring, 60).id == protocol_of(more, scoring, 60).id


def test_parts_of_several_workers_are_merged_in_their_order():
    assert merged([FID, KID], [[["a"], None], [None, ["x"]], [["b", "c"], ["y"]]]) == [["a", "b", "c"], ["x", "y"]]


def test_the_inception_score_is_left_out_where_there_are_no_probabilities(make_study: MakeStudy):
    config = make_study()
    scoring = without_probabilities(scoring_of(config, CPU))
    assert names(config, scoring) == ["fid"]
    for asked in ({"search": {"metric": "both"}}, {"score": {"metrics": ["inception_score", "fid"]}}):
        with pytest.raises(ConfigError, match="inception_score cannot be had: the feature network gives no class"):
            metrics_of(make_study(**asked), scoring)


@pytest.mark.parametrize("name", ["kid", "precision", "recall"])
def test_what_wants_features_of_real_images_says_how_to_make_them(name: str, make_study: MakeStudy):
    config = make_study(score={"metrics": ["fid", name]})
    scoring = scoring_of(config, CPU)
    assert names(config, scoring) == ["fid", name]
    with pytest.raises(ConfigError, match=f"{name} cannot be had: .*cca_ray.prepare --reference") as error:
        metrics_of(config, without_features(scoring))
    assert "\n" not in str(error.value)


def test_a_metric_says_how_many_images_it_wants(make_study: MakeStudy):
    config = make_study(score={"metrics": ["recall"]}, search={"metric": "recall"}, rungs=[{"at": 1.0, "samples": 5}])
    with pytest.raises(ConfigError, match="recall cannot be had: it wants 4 images, not 2"):
        scoring_of(config, CPU)
