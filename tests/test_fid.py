from pathlib import Path

import numpy as np
import pytest
import torch

from cca_ray.fid import (
    FeatureNet,
    Moments,
    Protocol,
    Reference,
    digest_of_weights,
    frechet_distance,
    frechet_distance_few,
    inception_score,
    merge_all,
)
from tests.conftest import golden

ADM = golden("adm_metrics.npz")


@pytest.fixture(scope="module")
def reference() -> Reference:
    moments = Moments.of(ADM["ref"])
    return Reference(moments.mean, moments.covariance)


def test_fid_is_the_adm_evaluators(reference: Reference):
    np.testing.assert_allclose(frechet_distance(Moments.of(ADM["gen"]), reference), ADM["fid"], rtol=1e-5)


def test_fid_of_few_samples_is_the_adm_evaluators(reference: Reference):
    few = ADM["gen"][:40]
    np.testing.assert_allclose(frechet_distance_few(few, reference), ADM["fid_few40"], rtol=1e-4)
    np.testing.assert_allclose(frechet_distance(Moments.of(few), reference), ADM["fid_few40"], rtol=1e-4)


@pytest.mark.parametrize("size", [1, 7, 256, 2500])
def test_moments_do_not_depend_on_the_shards(size: int):
    whole = Moments.of(ADM["gen"])
    merged = merge_all([Moments.of(ADM["gen"][i : i + size]) for i in range(0, 2500, size)])
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(whole.covariance, np.cov(ADM["gen"].astype(np.float64), rowvar=False), rtol=1e-10)


def test_the_reference_has_no_distance_from_itself(reference: Reference):
    assert abs(frechet_distance(Moments.of(ADM["ref"]), reference)) < 1e-9


def test_a_reference_is_read_as_it_was_saved(tmp_path: Path, reference: Reference):
    reference.save(tmp_path / "reference.npz")
    assert Reference.load(tmp_path / "reference.npz").digest == reference.digest


@pytest.mark.parametrize("kind", ["absent", "text", "without mu", "wrong shape", "empty", "truncated"])
def test_a_bad_reference_is_one_line(tmp_path: Path, kind: str):
    path = tmp_path / "reference.npz"
    if kind == "text":
        path.write_text("no")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        np.savez(path, mu=np.zeros(64), sigma=np.eye(64))
        path.write_bytes(path.read_bytes()[:2000])
    elif kind == "without mu":
        np.savez(path, sigma=np.eye(3))
    elif kind == "wrong shape":
        np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"reference\.npz: ") as error:
        Reference.load(path)
    assert "\n" not in str(error.value)


def test_inception_score_of_sure_and_of_unsure_classifiers():
    assert inception_score(np.eye(10)[np.arange(100) % 10]) == pytest.approx(10)
    assert inception_score(np.full((100, 10), 0.1)) == pytest.approx(1)


def test_the_protocol_id_names_everything_a_score_depends_on():
    protocol = Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8)
    assert protocol.id == Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8).id
    changes = {"extractor": "c", "reference": "c", "samples": 101, "seed": 1, "image_size": 9, "guidance_scale": 1.5,
               "temperature": 0.9, "top_k": 5, "top_p": 0.9, "labels": "random", "resize": "bicubic"}  # fmt: skip
    ids = {protocol.model_copy(update={key: value}).id for key, value in changes.items()}
    assert set(changes) == set(Protocol.model_fields)
    assert len(ids | {protocol.id}) == len(changes) + 1


def test_features_of_any_image_size():
    for size in (4, 8, 32):
        features, logits = FeatureNet(size, 7)(torch.zeros(2, size, size, 3, dtype=torch.uint8))
        assert (features.shape, logits.shape) == ((2, 64), (2, 7))


def test_the_digest_of_weights_sees_every_weight():
    network = FeatureNet(8, 7)
    before = digest_of_weights(network)
    network.classify.bias.data[3] += 1e-3
    assert digest_of_weights(network) != before
