from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cca_ray.evaluation.reference import Moments, Reference, evenly_spaced, merge_all
from tests.conftest import golden

ADM = golden("adm_metrics.npz")


@pytest.fixture(scope="module")
def reference() -> Reference:
    moments = Moments.of(ADM["ref"])
    return Reference(moments.mean, moments.covariance)


@pytest.mark.parametrize("size", [1, 7, 256, 2500])
def test_moments_do_not_depend_on_the_shards(size: int):
    whole = Moments.of(ADM["gen"])
    merged = merge_all([Moments.of(ADM["gen"][i : i + size]) for i in range(0, 2500, size)])
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12, atol=1e-13)
    np.testing.assert_allclose(merged.m2, whole.m2, rtol=1e-10, atol=1e-8)
    np.testing.assert_allclose(whole.covariance, np.cov(ADM["gen"].astype(np.float64), rowvar=False), rtol=1e-10)


def test_a_reference_is_read_as_it_was_saved(tmp_path: Path, reference: Reference):
    reference.save(tmp_path / "reference.npz")
    found = Reference.load(tmp_path / "reference.npz")
    assert (found.digest, found.image_size) == (reference.digest, None)
    replace(reference, image_size=256).save(tmp_path / "reference.npz")
    found = Reference.load(tmp_path / "reference.npz")
    assert (found.digest, found.image_size) == (reference.digest, 256)


def test_a_reference_may_have_spatial_statistics(tmp_path: Path, reference: Reference):
    small = Reference.of(Moments.of(ADM["ref"][:, :5]))
    Reference(reference.mean, reference.covariance, small).save(tmp_path / "reference.npz")
    found = Reference.load(tmp_path / "reference.npz")
    assert found.spatial is not None
    assert (found.digest, found.spatial.digest) == (reference.digest, small.digest)


@pytest.mark.parametrize(
    "kind",
    [
        "absent",
        "text",
        "without mu",
        "images alone",
        "wrong shape",
        "half spatial",
        "empty",
        "truncated",
        "flipped",
        "other features",
    ],
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
    elif kind == "flipped":
        np.savez_compressed(path, mu=np.random.default_rng(0).random(64), sigma=np.eye(64))
        content = bytearray(path.read_bytes())
        content[50:70] = b"\xff" * 20  # where the packed numbers begin
        path.write_bytes(content)
    elif kind == "without mu":
        np.savez(path, sigma=np.eye(3))
    elif kind == "images alone":
        np.savez(path, arr_0=np.zeros((4, 8, 8, 3), dtype=np.uint8))
    elif kind == "half spatial":
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3), mu_s=np.zeros(3))
    elif kind == "other features":
        np.savez(path, mu=np.zeros(3), sigma=np.eye(3), features=np.zeros((5, 4)))
    elif kind == "wrong shape":
        np.savez(path, mu=np.zeros(3), sigma=np.eye(4))
    with pytest.raises(ValueError, match=r"reference\.npz: ") as error:
        Reference.load(path)
    assert "\n" not in str(error.value)


def test_a_reference_may_have_features_which_are_not_in_its_digest(tmp_path: Path, reference: Reference):
    with_features = Reference(reference.mean, reference.covariance, features=ADM["ref"][:7])
    with_features.save(tmp_path / "reference.npz")
    found = Reference.load(tmp_path / "reference.npz")
    assert found.digest == with_features.digest == reference.digest
    assert found.features is not None
    np.testing.assert_array_equal(found.features, ADM["ref"][:7].astype(np.float32))


def test_a_reference_keeps_the_features_of_images_that_are_evenly_spaced():
    assert evenly_spaced(5).tolist() == [0, 1, 2, 3, 4]
    assert evenly_spaced(10, 4).tolist() == [0, 2, 5, 7]
    assert len(np.unique(evenly_spaced(50_001))) == 10_000
    assert evenly_spaced(50_001).max() < 50_001


def spoiled(kind: str) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 4))
    mu, sigma = x.mean(0), np.cov(x.T)
    features = x.astype(np.float32)
    if kind == "nan in mu":
        mu[1] = np.nan
    elif kind == "infinite sigma":
        sigma[0, 0] = np.inf
    elif kind == "not symmetric":
        sigma[0, 1] += 1
    elif kind == "negative":
        sigma = sigma - 2 * np.eye(4)
    elif kind == "complex":
        sigma = sigma + 1j * np.eye(4)
    elif kind == "nan in features":
        features[0, 0] = np.nan
    return {"mu": mu, "sigma": sigma, "features": features}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("nan in mu", "mu holds a number that is not finite"),
        ("infinite sigma", "sigma holds a number that is not finite"),
        ("not symmetric", "sigma is not symmetric"),
        ("negative", "sigma has the eigenvalue -"),
        ("complex", "numbers of type complex128"),
        ("nan in features", "features holds a number that is not finite"),
    ],
)
def test_statistics_that_can_be_of_no_images_are_refused_in_one_line(tmp_path: Path, kind: str, message: str):
    np.savez(tmp_path / "r.npz", **spoiled(kind))
    with pytest.raises(ValueError, match=rf"r\.npz: .*{message}") as error:
        Reference.load(tmp_path / "r.npz")
    assert "\n" not in str(error.value)


def test_statistics_of_fewer_images_than_features_are_read(tmp_path: Path):
    x = np.random.default_rng(0).normal(size=(5, 40)).astype(np.float32)
    np.savez(tmp_path / "r.npz", mu=x.mean(0), sigma=np.cov(x.T).astype(np.float32), features=x)
    assert len(Reference.load(tmp_path / "r.npz").mean) == 40
