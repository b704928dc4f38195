import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch

from cca_ray.config import ResolvedStudy
from cca_ray.errors import ConfigError
from cca_ray.evaluation import fid
from cca_ray.evaluation.features import Extractor, Features
from cca_ray.evaluation.fid import FID, frechet_distance
from cca_ray.evaluation.kid import KID
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.evaluation.sampler import Decoding, decode_images, sample_tokens, uniforms
from cca_ray.evaluation.scoring import (
    Scoring,
    load_base,
    merged,
    metrics_of,
    protocol_of,
    sample_shards,
    score,
    scoring_of,
)
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


def test_statistics_that_were_made_again_are_read_again(make_study: MakeStudy, tmp_path: Path):
    config, path = make_study(), tmp_path / "reference.npz"
    shutil.copy(config.score.reference, path)
    config = config.model_copy(update={"score": config.score.model_copy(update={"reference": str(path)})})
    before = scoring_of(config, CPU)
    assert scoring_of(config, CPU).reference is before.reference
    shifted = replace(before.reference, mean=before.reference.mean + 1)
    with path.open("wb") as file:
        shifted.save(file)
    assert scoring_of(config, CPU).reference.digest == shifted.digest != before.reference.digest


class Threads(Group):
    """Workers that are threads of this process."""

    def gather(self, value: Any) -> list[Any]:
        GIVEN[self.rank] = value
        MEETING.wait(60)
        values = [GIVEN[rank] for rank in range(self.world)]
        MEETING.wait(60)
        return values


GIVEN, MEETING = dict[int, Any](), Barrier(3)


def test_samples_are_not_compared_with_images_of_another_size(make_study: MakeStudy):
    config = make_study()
    scoring = scoring_of(config, CPU)
    assert scoring.reference.image_size == 8
    extractor = copy(scoring.extractor)
    extractor.image_size = None  # takes images of any size, as Inception does
    larger = replace(scoring, extractor=extractor, reference=replace(scoring.reference, image_size=16))
    with pytest.raises(
        ValueError, match=r"of images 16 pixels wide, but the samples are 8 wide; set score\.image_size"
    ):
        protocol_of(config, larger, 40)
    resized = config.model_copy(update={"score": config.score.model_copy(update={"image_size": 16})})
    assert protocol_of(resized, larger, 40).image_size == 16
    unknown = replace(larger, reference=replace(scoring.reference, image_size=None))
    assert protocol_of(config, unknown, 40).image_size == 8


def test_workers_share_the_distances_out_and_have_the_same_values(make_study: MakeStudy, monkeypatch):
    config = make_study()
    scoring, model = scoring_of(config, CPU), load_base(config)
    protocol = protocol_of(config, scoring, 700)  # three shards
    alone, counted = score(model, scoring, protocol, Group()).score, list[Moments]()

    def distance(sample: Moments, reference: Reference) -> float:
        counted.append(sample)
        return frechet_distance(sample, reference)

    monkeypatch.setattr(fid, "frechet_distance", distance)
    with ThreadPoolExecutor(3) as pool:
        groups = [Threads(rank, 3, CPU) for rank in range(3)]
        found = [scored.score for scored in pool.map(lambda group: score(model, scoring, protocol, group), groups)]
    assert len(counted) == 11
    assert found == [found[0]] * 3
    assert found[0].values == pytest.approx(alone.values, rel=1e-6)
    assert found[0].without == {name: pytest.approx(values, rel=1e-6) for name, values in alone.without.items()}


class Damaged(Extractor):
    """Of what it is given, nothing is finite."""

    def forward(self, images: torch.Tensor) -> Features:
        return Features(torch.full((len(images), self.width), torch.nan))


@pytest.mark.parametrize("fault", ["features", "state_of", "value"])
def test_what_one_worker_meets_is_raised_by_all_and_none_waits_for_it(
    make_study: MakeStudy, monkeypatch: pytest.MonkeyPatch, fault: str
):
    config = make_study(score={"metrics": ["fid"]})
    whole, model = scoring_of(config, CPU), load_base(config)
    protocol, scorings, calls = protocol_of(config, whole, 300), [whole] * 3, count()  # two shards: the third has none
    failing = np.linalg.LinAlgError("does not converge")

    def fails_once(otherwise: Callable[..., Any], *given: Any) -> Any:
        if next(calls) == 0:
            raise failing
        return otherwise(*given)

    if fault == "features":
        extractor = Damaged()
        extractor.width, extractor.digest = whole.extractor.width, whole.extractor.digest
        scorings[1] = replace(whole, extractor=extractor)
    else:
        (metric,) = whole.metrics
        monkeypatch.setattr(metric, fault, partial(fails_once, getattr(metric, fault)))

    message = "^the feature network .* gives numbers that" if fault == "features" else f"^{failing}$"

    def meets(rank: int) -> None:
        with pytest.raises(ValueError, match=message):
            score(model, scorings[rank], protocol, Threads(rank, 3, CPU))

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(meets, range(3)))


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
        with pytest.raises(ConfigError, match="inception_score cannot be computed: the feature network gives no class"):
            metrics_of(make_study(**asked), scoring)


@pytest.mark.parametrize("name", ["kid", "precision", "recall"])
def test_what_wants_features_of_real_images_says_how_to_make_them(name: str, make_study: MakeStudy):
    config = make_study(score={"metrics": ["fid", name]})
    scoring = scoring_of(config, CPU)
    assert names(config, scoring) == ["fid", name]
    with pytest.raises(ConfigError, match=f"{name} cannot be computed: .*cca_ray.prepare --reference") as error:
        metrics_of(config, without_features(scoring))
    assert "\n" not in str(error.value)


def test_a_metric_says_how_many_images_it_wants(make_study: MakeStudy):
    config = make_study(score={"metrics": ["recall"]}, search={"metric": "recall"}, rungs=[{"at": 1.0, "samples": 5}])
    with pytest.raises(ConfigError, match="recall cannot be computed: it needs 4 images, not 2"):
        scoring_of(config, CPU)


def test_samples_are_drawn_as_the_protocol_says(make_study: MakeStudy):
    """And how guidance grows is no part of it where there is none."""
    cut = {"temperature": 0.9, "top_k": 20, "top_p": 0.9, "guidance_power": 1.5, "last_temperature": 0.3}
    config, plain = make_study(score=cut), make_study(score={**cut, "guidance_power": 0.0})
    scoring, base = scoring_of(config, CPU), load_base(config)
    assert protocol_of(config, scoring, 20).id == protocol_of(plain, scoring, 20).id
    protocol = protocol_of(config, scoring, 20, 3.0, seed=7)
    assert protocol.id != protocol_of(plain, scoring, 20, 3.0, seed=7).id
    ((index, images, labels),) = sample_shards(base, scoring, protocol, Group())
    tokens = sample_tokens(base, labels, uniforms(7, index, 16), Decoding(guidance_scale=3.0, **cut))
    assert torch.equal(images, decode_images(scoring.tokenizer, tokens))


def test_where_decoding_steps_cannot_be_recorded_they_run_without_it(
    make_study: MakeStudy, caplog: pytest.LogCaptureFixture
):
    """Here: by CUDA, which is not there."""
    config = make_study()
    scoring, base = scoring_of(config, CPU), load_base(config)
    protocol = protocol_of(config, scoring, 300)  # two shards
    eager = [images for _, images, _ in sample_shards(base, scoring, protocol, Group())]
    assert not caplog.records
    tried = [images for _, images, _ in sample_shards(base, replace(scoring, graphs=True), protocol, Group())]
    assert len(tried) == 2
    assert all(map(torch.equal, tried, eager))
    (said,) = (record.getMessage() for record in caplog.records)  # once, not at every shard
    assert said.startswith("decoding is not recorded as CUDA graphs here: slower, with the same images (")
