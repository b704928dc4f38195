import numpy as np

from cca_ray.data.labelled_images import LabelledImages, digits
from cca_ray.data.variants import with_variants
from tests.conftest import some_digits


def test_the_images_come_first_as_they_are_then_as_often_in_variants():
    data = some_digits(60)
    more = with_variants(data, 4)
    assert more.images.shape == (240, 8, 8, 3)
    assert more.images.dtype == np.uint8
    np.testing.assert_array_equal(more.images[:60], data.images)
    np.testing.assert_array_equal(more.labels, np.tile(data.labels, 4))
    assert more.class_names == data.class_names
    assert len({image.tobytes() for image in more.images}) == 240  # no variant twice


def test_a_variant_is_its_own_image_moved_a_little():
    """It is nearer to the image that it is made of than to nearly all others, and its mass is where that was."""
    data = some_digits(100)
    images, variants = (x[..., 0].astype(float) for x in np.split(with_variants(data, 2).images, 2))
    distance = np.square(variants[:, None] - images[None]).mean((2, 3))
    ranks = (distance < np.diagonal(distance)[:, None]).sum(1)
    assert np.median(ranks) <= 5  # of 100

    def centre(x: np.ndarray) -> np.ndarray:
        grid = np.indices(x.shape[1:])
        return (x[:, None] * grid).sum((2, 3)) / x.sum((1, 2))[:, None]

    shifts = centre(variants) - centre(images)
    assert np.abs(shifts.mean(0)).max() < 0.25  # pixels; no way is preferred
    assert 0.2 < shifts.std() < 1.0


def test_the_same_seed_makes_the_same_images_and_one_variant_is_none():
    data = some_digits(20)
    assert with_variants(data, 3).digest == with_variants(data, 3).digest
    assert with_variants(data, 3, seed=1).digest != with_variants(data, 3).digest
    assert with_variants(data, 1).digest == data.digest


def test_images_of_any_size_have_variants():
    rng = np.random.default_rng(0)
    data = LabelledImages(rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8), np.arange(3), ("a", "b", "c"))
    assert with_variants(data, 2).images.shape == (6, 32, 32, 3)
    assert len(digits().images) == 1797
