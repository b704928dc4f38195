"""`.npz` files of any content: the numbers that were written, or one line that names the file."""

import io
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from cca_ray.evaluation.npz import NpzWriter, open_images
from cca_ray.evaluation.reference import Reference

ORDERS = st.sampled_from("CF")
DTYPES = st.one_of(
    of_numpy.integer_dtypes(), of_numpy.unsigned_integer_dtypes(), of_numpy.floating_dtypes(),
    of_numpy.boolean_dtypes(), of_numpy.complex_number_dtypes(), of_numpy.unicode_string_dtypes(max_len=3),
    of_numpy.datetime64_dtypes(),
)  # fmt: skip
KEYS = st.sampled_from(["mu", "sigma", "mu_s", "sigma_s", "features", "arr_0", "labels", "mu/x", "mu_"])


@st.composite
def any_arrays(draw: st.DrawFn) -> Any:
    shape = draw(of_numpy.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3))
    array = draw(of_numpy.arrays(draw(DTYPES), shape))
    return np.asarray(array, order=draw(ORDERS))


def saved(content: dict[str, Any], compressed: bool = False) -> bytes:
    file = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(file, **content)
    return file.getvalue()


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The file cut short, with some bytes replaced, or as it is."""
    content = content[: draw(st.integers(0, len(content)))] if draw(st.booleans()) else content
    for _ in range(draw(st.integers(0, 3)) if content else 0):
        at = draw(st.integers(0, len(content) - 1))
        content = content[:at] + draw(st.binary(min_size=1, max_size=4)) + content[at + 1 :]
    return content


def written(content: bytes, read: Any) -> Any:
    """What `read` finds in a file of this content; None if it is refused by a line that names the file."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "x.npz"
        path.write_bytes(content)
        try:
            return read(path)
        except ValueError as error:
            named = str(path) in str(error)
        assert named
        return None


def all_images(path: Path) -> np.ndarray:
    count, batches = open_images(path)
    images = np.concatenate(list(batches))
    assert len(images) == count
    return images


@given(
    st.integers(1, 4), st.integers(2, 9), st.integers(0, 2**32 - 1), ORDERS, st.booleans(), st.booleans(),
    st.sampled_from(["<f8", ">f8", "<f4", ">f4", "<i4", ">i2"]),
)  # fmt: skip
def test_statistics_are_what_was_written(
    width: int, count: int, seed: int, order: Any, compressed: bool, spatial: bool, dtype: str
):
    features = np.random.default_rng(seed).normal(size=(count, width)) * 10
    covariance = np.cov(features, rowvar=False).reshape(width, width)
    if np.dtype(dtype).kind == "i":
        covariance = np.diag(np.diag(covariance))
    content = {"mu": features.mean(0).astype(dtype), "sigma": np.asarray(covariance.astype(dtype), order=order)}
    content |= {f"{key}_s": value for key, value in content.items()} if spatial else {}
    content["features"] = features.astype(np.float32)
    found = written(saved(content, compressed), Reference.load)
    assert found.mean.tolist() == content["mu"].tolist()
    assert found.covariance.tolist() == content["sigma"].tolist()
    assert (found.spatial is not None) == spatial
    assert found.features.tolist() == content["features"].tolist()


@given(st.dictionaries(KEYS, any_arrays(), max_size=4))
def test_statistics_of_any_arrays_are_real_ones_or_one_line(content: dict[str, Any]):
    found = written(saved(content), Reference.load)
    if found is not None:
        assert found.mean.tolist() == content["mu"].astype(float).tolist()
        assert np.isfinite(found.covariance).all()


@given(st.data())
def test_a_damaged_file_of_statistics_is_refused_or_says_the_same(data: st.DataObject):
    content = {"mu": np.arange(3.0), "sigma": np.eye(3), "features": np.ones((4, 3), np.float32)}
    compressed = data.draw(st.booleans())
    found = written(data.draw(damaged(saved(content, compressed))), Reference.load)
    if found is not None:
        assert found.mean.tolist() == [0, 1, 2]
        assert found.covariance.tolist() == np.eye(3).tolist()


@given(
    of_numpy.arrays(np.uint8, st.tuples(st.integers(2, 6), st.just(3), st.just(3), st.just(3))), ORDERS, st.booleans()
)
def test_images_are_what_was_written(images: np.ndarray, order: Any, compressed: bool):
    content = {"arr_0": np.asarray(images, order=order), "labels": np.arange(len(images))}
    found = written(saved(content, compressed), all_images)
    assert found.tolist() == images.tolist()
    with TemporaryDirectory() as folder:
        path = Path(folder) / "own.npz"
        writer = NpzWriter(path, images.shape)
        writer.add(images[:1])
        writer.add(images[1:])
        writer.close(np.arange(len(images)))
        assert all_images(path).tolist() == np.load(path)["arr_0"].tolist() == images.tolist()


@given(st.dictionaries(KEYS, any_arrays(), max_size=3))
def test_images_of_any_arrays_are_images_or_one_line(content: dict[str, Any]):
    found = written(saved(content), all_images)
    assert found is None or found.tolist() == content["arr_0"].tolist()


@given(st.data())
def test_a_damaged_file_of_images_is_refused_or_says_the_same(data: st.DataObject):
    images = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    images = np.asarray(images, order=data.draw(ORDERS))
    found = written(data.draw(damaged(saved({"arr_0": images}, data.draw(st.booleans())))), all_images)
    assert found is None or found.tolist() == images.tolist()


@given(st.binary(max_size=200))
def test_any_bytes_are_one_line(content: bytes):
    assert written(content, Reference.load) is None
    assert written(content, all_images) is None
