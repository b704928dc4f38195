from pathlib import Path

import numpy as np
import pytest

from cca_ray.evaluation.jackknife import jackknife_error, jackknife_groups
from cca_ray.evaluation.metrics import (
    Moments,
    Protocol,
    Reference,
    divergences,
    frechet_distance,
    frechet_distance_few,
    inception_score,
    merge_all,
    precision_recall,
)
from tests.conftest import golden, largest_tensor

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


def test_a_reference_may_have_spatial_statistics(tmp_path: Path, reference: Reference):
    small = Reference.of(Moments.of(ADM["ref"][:, :5]))
    Reference(reference.mean, reference.covariance, small).save(tmp_path / "reference.npz")
    found = Reference.load(tmp_path / "reference.npz")
    assert found.spatial is not None
    assert (found.digest, found.spatial.digest) == (reference.digest, small.digest)


@pytest.mark.parametrize(
    "kind", ["absent", "text", "without mu", "images alone", "wrong shape", "half spatial", "empty", "truncated"]
)
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
    elif kind == "images alone":
        np.savez(path, arr_0=np.zeros((4, 8, 8, 3), dtype=np.uint8))
    elif kind == "half spatial":
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(3))
    elif kind == "wrong shape":
        np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"reference\.npz: ") as error:
        Reference.load(path)
    assert "\n" not in str(error.value)


def softmax(logits: np.ndarray) -> np.ndarray:
    p = np.exp(logits - logits.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def test_inception_score_is_the_adm_evaluators():
    p = softmax(ADM["gen"] @ ADM["softmax_weight"])
    found = inception_score([divergences(p, np.arange(len(p)), block=1000)])
    np.testing.assert_allclose(found, ADM["inception_score_split1000"], rtol=1e-6)


def test_inception_score_does_not_depend_on_who_scored_which():
    p = softmax(ADM["gen"] @ ADM["softmax_weight"])
    index = np.arange(len(p))
    parts = [divergences(p[i : i + 256], index[i : i + 256], block=1000) for i in range(0, len(p), 256)]
    assert inception_score(parts) == pytest.approx(inception_score([divergences(p, index, block=1000)]), rel=1e-12)


def test_inception_score_of_sure_and_of_unsure_classifiers():
    index = np.arange(100)
    assert inception_score([divergences(np.eye(10)[index % 10], index)]) == pytest.approx(10)
    assert inception_score([divergences(np.full((100, 10), 0.1), index)]) == pytest.approx(1)


def test_precision_and_recall_are_the_adm_evaluators():
    """In float16 the order of a sum decides its last bit: one of the 1,200 samples may fall on the other side."""
    precision, recall = precision_recall(ADM["ref"][:1500], ADM["gen"][:1200])
    assert precision == pytest.approx(float(ADM["precision"]), abs=1.01 / 1200)
    assert recall == pytest.approx(float(ADM["recall"]), abs=1e-9)


def test_precision_and_recall_do_not_depend_on_the_rows_at_a_time():
    real, made = ADM["ref"][:300], ADM["gen"][:200]
    assert precision_recall(real, made, rows=64) == precision_recall(real, made)


def test_precision_and_recall_keep_no_more_than_some_rows_of_distances():
    largest = largest_tensor(lambda: precision_recall(ADM["ref"][:1000], ADM["gen"][:1000], rows=100))
    assert largest == 100 * 1000


def test_precision_and_recall_of_too_few_images_is_one_line():
    with pytest.raises(ValueError, match="more than 3 sample images, not 3"):
        precision_recall(ADM["ref"][:300], ADM["gen"][:3])


def test_features_too_large_for_float16_are_compared_in_float32():
    rng = np.random.default_rng(0)
    real, made = rng.normal(size=(50, 8)) * 1e3, rng.normal(size=(50, 8)) * 1e3 + 1e5
    assert precision_recall(real, made) == (0.0, 0.0)
    assert precision_recall(real, real + 1e-3) == (1.0, 1.0)


def test_the_protocol_id_names_everything_a_score_depends_on():
    protocol = Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8)
    assert protocol.id == Protocol(extractor="a", reference="b", samples=100, seed=0, image_size=8).id
    changes = {"extractor": "c", "reference": "c", "samples": 101, "seed": 1, "image_size": 9, "guidance_scale": 1.5,
               "temperature": 0.9, "top_k": 5, "top_p": 0.9, "labels": "random", "resize": "bicubic",
               "precision": "bfloat16"}  # fmt: skip
    ids = {protocol.model_copy(update={key: value}).id for key, value in changes.items()}
    assert set(changes) == set(Protocol.model_fields)
    assert len(ids | {protocol.id}) == len(changes) + 1


def test_jackknife_groups_are_whole_rounds_of_all_classes():
    index = np.arange(130)
    groups = jackknife_groups(index, 130, classes=10)
    assert sorted(set(groups.tolist())) == list(range(10))
    for group in range(10):
        counts = np.bincount(index[groups == group] % 10, minlength=10)
        assert counts.min() == counts.max()
    assert set(jackknife_groups(np.arange(70), 70, classes=10).tolist()) == set(range(7))
    assert len(set(jackknife_groups(np.arange(20), 20, classes=10).tolist())) == 10  # too few rounds
    np.testing.assert_array_equal(groups[50:70], jackknife_groups(index[50:70], 130, classes=10))


def test_the_jackknife_error_is_that_of_a_mean():
    """For a mean it is exact: the standard error of the groups' means."""
    values = np.random.default_rng(0).normal(size=(10, 30))
    without = np.array([np.delete(values, group, axis=0).mean() for group in range(10)])
    assert jackknife_error(without) == pytest.approx(values.mean(1).std(ddof=1) / 10**0.5)


def test_the_jackknife_error_of_a_fid_is_about_the_spread_over_fresh_samples():
    rng, dim, count = np.random.default_rng(0), 8, 400
    reference = Reference(np.zeros(dim), np.eye(dim))
    fids, errors = [], []
    for _ in range(40):
        features = 1.2 * rng.normal(size=(count, dim)) + 0.3
        groups = np.arange(count) % 10
        fids.append(frechet_distance(Moments.of(features), reference))
        errors.append(jackknife_error(np.array([
            frechet_distance(Moments.of(features[groups != g]), reference) for g in range(10)
        ])))  # fmt: skip
    assert 0.7 < np.mean(errors) / np.std(fids, ddof=1) < 1.4
