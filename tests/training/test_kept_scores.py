import os
from pathlib import Path

import numpy as np
import pytest

from cca_ray.contracts import Score
from cca_ray.evaluation.scoring import Scored
from cca_ray.storage.files import fingerprint
from cca_ray.training.tasks import MadeOf, keep_score, kept_score

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)
OURS, GONE = MadeOf("w", "s"), Path("gone.pt")


def test_a_score_is_kept_to_the_last_digit(tmp_path: Path):
    score = Score(values={"fid": 0.1 + 0.2, "kid": -1e-17}, without={"fid": (1 / 3, 2 / 3), "kid": (0.0, 5e-324)})
    keep_score(tmp_path / "kept.npz", Scored(score, IMAGES), OURS)
    found = kept_score(tmp_path / "kept.npz", OURS, GONE)
    assert found is not None
    assert found.score == score
    np.testing.assert_array_equal(found.images, IMAGES)


def test_a_score_of_version_0_1_is_read(tmp_path: Path):
    without = np.array([(3.0, 8.0), (4.0, 9.0)])
    np.savez(tmp_path / "kept.npz", fid=3.5, inception_score=8.5, images=IMAGES, without=without)
    found = kept_score(tmp_path / "kept.npz", OURS, GONE)
    assert found is not None
    assert found.score.values == {"fid": 3.5, "inception_score": 8.5}
    assert found.score.without == {"fid": (3.0, 4.0), "inception_score": (8.0, 9.0)}


def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path):
    assert kept_score(tmp_path / "kept.npz", OURS, GONE) is None
    (tmp_path / "kept.npz").write_bytes(b"no")
    assert kept_score(tmp_path / "kept.npz", OURS, GONE) is None
    np.savez(tmp_path / "kept.npz", fid=3.5)
    assert kept_score(tmp_path / "kept.npz", OURS, GONE) is None


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        (MadeOf("w", "another"), True),  # the same weights, whoever trained them
        (MadeOf("other weights", "s"), False),  # trained again under the same name
        (MadeOf("", "s"), True),  # the weights are gone, but the study is the same
        (MadeOf("", "another"), False),
    ],
)
def test_a_score_of_other_weights_is_made_again(tmp_path: Path, asked: MadeOf, found: bool):
    score = Score(values={"fid": 1.0}, without={"fid": (1.0, 2.0)})
    keep_score(tmp_path / "kept.npz", Scored(score, IMAGES), OURS)
    assert (kept_score(tmp_path / "kept.npz", asked, GONE) is not None) == found


def test_a_score_of_version_0_1_counts_if_it_is_not_older_than_the_weights(tmp_path: Path):
    path, weights = tmp_path / "kept.npz", tmp_path / "model.pt"
    np.savez(path, fid=3.5, inception_score=8.5, images=IMAGES, without=np.array([(3.0, 8.0), (4.0, 9.0)]))
    weights.write_bytes(b"w")
    os.utime(weights, (1000, 1000))
    assert kept_score(path, OURS, weights) is not None
    os.utime(path, (999, 999))
    assert kept_score(path, OURS, weights) is None


def test_weights_are_told_apart_by_what_is_in_them(tmp_path: Path):
    paths = [tmp_path / name for name in ("a", "b", "c")]
    for path, last in zip(paths, (b"x", b"x", b"y"), strict=True):
        path.write_bytes(b"0" * 5_000_000 + last)
    assert fingerprint(paths[0]) == fingerprint(paths[1]) != fingerprint(paths[2])
    assert fingerprint(tmp_path / "gone") == ""
