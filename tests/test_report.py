import json
from pathlib import Path

import numpy as np
from PIL import Image

from cca_ray.report import TITLES, picture, table, verdict, write_summary

SIZE = {
    "size": "digits_s", "params": 16640, "fid_base": 24.4, "fid_guided": 18.0, "guidance_scale": 1.5,
    "fid_control": 23.7, "fid_cca": 17.1, "lambda": 4.54, "learning_rate": 0.0098, "trials": 14, "seconds": 72.0,
    "std_base": 0.5, "std_guided": 0.4, "std_control": 0.3, "std_cca": 0.21,
}  # fmt: skip


def test_the_table_has_a_row_a_size():
    lines = table([SIZE, {**SIZE, "size": "digits_medium"}]).splitlines()
    assert len(lines) == 4
    assert len({len(line) for line in lines}) == 1
    assert "| 18.00 ± 0.40 (s = 1.5) | 23.70 ± 0.30 | 17.10 ± 0.21 | 4.54 | 0.0098 | 14     | 1.2     |" in lines[2]
    guided = table([{**SIZE, "fid_cca_guided": 15.5, "std_cca_guided": 0.25}])
    assert "| CCA and guidance |" in guided
    assert "| 15.50 ± 0.25 " in guided


def test_the_verdict_compares_with_guidance_and_control():
    assert "0.95 × the guided base" in verdict(SIZE)
    assert "0.72 × the control" in verdict(SIZE)


def test_the_summary_is_json(tmp_path: Path):
    assert json.loads(write_summary(tmp_path, [SIZE]).read_text()) == {"sizes": [SIZE]}
    other, changed = {**SIZE, "size": "digits_m"}, {**SIZE, "fid_cca": 1.0}
    write_summary(tmp_path, [SIZE, other])
    assert json.loads(write_summary(tmp_path, [changed]).read_text()) == {"sizes": [changed, other]}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_the_picture_shows_all_four_models(tmp_path: Path):
    images = {name: np.random.default_rng(0).integers(0, 255, (80, 8, 8, 3), dtype=np.uint8) for name in TITLES}
    with Image.open(picture(tmp_path / "samples.png", SIZE, images)) as image:
        assert image.width > 1000
        assert len(image.convert("L").getcolors() or []) > 100
