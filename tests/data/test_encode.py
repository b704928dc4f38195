"""What a run does before and around the work on images: what it reads again."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cca_ray.data.encode import ReadImages
from cca_ray.data.images import Square, centre_crop
from cca_ray.data.listing import list_images
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
