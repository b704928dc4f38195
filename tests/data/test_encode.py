"""What a run does before and around the work on images: what it takes up, and what it reads again."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cca_ray.data.encode import Part, ReadImages, claim
from cca_ray.data.images import Square, centre_crop
from cca_ray.data.listing import list_images
from cca_ray.errors import ConfigError
from tests.data.made_images import picture, png, write_parquet


def test_a_process_that_read_for_another_run_reads_again(tmp_path: Path):
    """As Ray's, which outlive a `prepare` in Python; only the driver forgot what it had read."""
    folder = str(write_parquet(tmp_path / "photos"))
    rows = list_images(folder).table(np.array([0])).to_pydict()
    first = {name: np.array(values) for name, values in rows.items()}
    for seed in (0, 20):
        table = pa.table({"image": [{"bytes": png(picture(seed)), "path": "0.png"}], "label": [0]})
        pq.write_table(table, tmp_path / "photos" / "0.parquet")
        found = ReadImages(folder, [Square("adm", 16)])(first)
        np.testing.assert_array_equal(found["pixels_adm_16_0"][0], centre_crop(picture(seed), 16))


def test_a_part_is_in_the_order_of_the_images_whichever_worker_was_first():
    """Each of them gives its rows back when it is done."""
    part = Part(6)
    for index in ([12, 13], [10], [15, 14, 11]):
        assert not part.complete
        rows = np.array(index)
        part.rows.append({"index": rows, "label": rows * 2, "tokens": rows[:, None, None] + np.arange(3)})
    assert part.complete
    found = part.in_order()
    assert found["index"].tolist() == [10, 11, 12, 13, 14, 15]
    assert found["label"].tolist() == [20, 22, 24, 26, 28, 30]
    assert found["tokens"][:, 0].tolist() == [[i, i + 1, i + 2] for i in range(10, 16)]


LEASE_S = ("driver.json", "driver.json.partial-7", "driver.json.0123abcd")


@pytest.mark.parametrize("name", ["plan.json.partial-7", "probe-0123abcd", "lock", *LEASE_S])
def test_a_folder_in_which_a_run_was_killed_as_it_began_is_taken_up(name: str, tmp_path: Path):
    (tmp_path / name).touch()
    assert claim(tmp_path, {"images": "mine"}) is None
    assert json.loads((tmp_path / "plan.json").read_text()) == {"images": "mine"}


@pytest.mark.parametrize("name", ["part-00000.parquet", "photo.jpg", "plan.json.partial-old", "probe-data", "locks"])
def test_a_folder_of_anything_else_is_not(name: str, tmp_path: Path):
    (tmp_path / name).touch()
    with pytest.raises(ConfigError, match="is not empty and not a token set begun here; use another --out"):
        claim(tmp_path, {"images": "mine"})
    assert not (tmp_path / "plan.json").exists()
