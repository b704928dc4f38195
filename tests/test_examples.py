"""The programs in examples/ that stand alone."""

import runpy
from pathlib import Path

import numpy as np

from cca_ray.data.labelled_images import read_folder

ROOT = Path(__file__).parent.parent


def test_coloured_digits_are_of_ten_classes_and_the_same_by_their_seed(tmp_path: Path):
    make = runpy.run_path(str(ROOT / "examples" / "coloured_digits.py"))["main"]
    for name, seed in (("one", "0"), ("same", "0"), ("other", "1")):
        make([str(tmp_path / name), "--images", "30", "--seed", seed])
    one, same, other = (read_folder(str(tmp_path / name), 32, print) for name in ("one", "same", "other"))
    assert one.class_names == tuple("0123456789")
    assert np.bincount(one.labels).tolist() == [3] * 10
    assert one.images.shape == (30, 32, 32, 3)
    assert (one.images == same.images).all()
    assert (one.images != other.images).any()
