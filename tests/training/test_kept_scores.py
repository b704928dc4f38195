from pathlib import Path

import numpy as np

from cca_ray.contracts import Score
from cca_ray.evaluation.scoring import Scored
from cca_ray.training.trial import keep_score, kept_score

IMAGES = np.arange(24, dtype=np.uint8).reshape(2, 2, 2, 3)


def test_a_score_is_kept_to_the_last_digit(tmp_path: Path):
    score = Score(values={"fid": 0.1 + 0.2, "kid": -1e-17}, without={"fid": (1 / 3, 2 / 3), "kid": (0.0, 5e-324)})
    keep_score(tmp_path / "kept.npz", Scored(score, IMAGES))
    found = kept_score(tmp_path / "kept.npz")
    assert found is not None
    assert found.score == score
    np.testing.assert_array_equal(found.images, IMAGES)


def test_a_score_of_version_0_1_is_read(tmp_path: Path):
    without = np.array([(3.0, 8.0), (4.0, 9.0)])
    np.savez(tmp_path / "kept.npz", fid=3.5, inception_score=8.5, images=IMAGES, without=without)
    found = kept_score(tmp_path / "kept.npz")
    assert found is not None
    assert found.score.values == {"fid": 3.5, "inception_score": 8.5}
    assert found.score.without == {"fid": (3.0, 4.0), "inception_score": (8.0, 9.0)}


def test_a_file_that_cannot_be_read_is_as_none(tmp_path: Path):
    assert kept_score(tmp_path / "kept.npz") is None
    (tmp_path / "kept.npz").write_bytes(b"no")
    assert kept_score(tmp_path / "kept.npz") is None
    np.savez(tmp_path / "kept.npz", fid=3.5)
    assert kept_score(tmp_path / "kept.npz") is None
