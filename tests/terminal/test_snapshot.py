"""How a study stands, in the file that says so."""

import subprocess
import sys
from pathlib import Path

from cca_ray.contracts import FID
from cca_ray.terminal.snapshot import STATUS, AtWork, Best, DriverStatus, SizeSnapshot, read_driver_status

AT_WORK = AtWork(
    arm="control", number=0, trials=1, settings="lr=1.0e-03", step=5, total=10, images_per_second=10.0, values={},
    accelerator="CPU", workers=1, seconds_left=15.0, reported=1000.0,
)  # fmt: skip
BEST = Best(number=1, settings="λ=3.1", values={"fid": 4.0})
SNAPSHOT = SizeSnapshot(
    size="digits_s", phase="search", metric=FID, planned=4, ended={"COMPLETE": 2}, at_work=(AT_WORK,), best=BEST,
    seconds_left=60.0, at=1000.0,
)  # fmt: skip


def test_the_file_reads_as_it_was_written_and_a_torn_one_as_none(tmp_path: Path):
    assert read_driver_status(tmp_path) is None
    written = DriverStatus.of_this_process("study", ("digits_s",), tmp_path / "log.txt").model_copy(
        update={"snapshots": (SNAPSHOT,), "cluster": {"CPU": (1.0, 2.0)}}
    )
    written.write(tmp_path)
    assert read_driver_status(tmp_path) == written
    (tmp_path / STATUS).write_text((tmp_path / STATUS).read_text()[:100])
    assert read_driver_status(tmp_path) is None


def test_who_reads_the_file_needs_neither_torch_nor_ray():
    look = "import sys, cca_ray.terminal.snapshot; print([name for name in ('torch', 'ray') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", look], capture_output=True, text=True, check=True).stdout == "[]\n"
