"""What is given back on a cluster: real placement groups, of real Ray."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import ray
from ray.util import placement_group, placement_group_table, remove_placement_group

from cca_ray.cluster.session import free_worker_group, remove_leaked_groups

LEAK = """
import sys, ray
from ray.util import placement_group

@ray.remote(num_cpus=0)
class Waiting:  # outlives its driver, as a trainer that is being set up does for a moment
    def reserve(self):
        self.group = placement_group([{"CPU": 0.5}])
        ray.get(self.group.ready())

ray.init(address=sys.argv[1], namespace="leak", logging_level="ERROR", log_to_driver=False)
ray.get(Waiting.options(name=sys.argv[2], lifetime="detached").remote().reserve.remote())
"""


def test_what_dead_studies_left_reserved_is_freed_and_nothing_else(ray_here: None):
    address = ray.get_runtime_context().gcs_address
    mine = placement_group([{"CPU": 0.5}])
    ray.get(mine.ready())
    for name in ("cca_ray", "somebody_else"):
        subprocess.run([sys.executable, "-c", LEAK, address, name], check=True, capture_output=True)
    lines: list[str] = []
    try:
        remove_leaked_groups(lines.append)
        assert lines == ["removed 1 placement group(s) that dead studies had left behind"]
        states = [group["state"] for group in ray.util.placement_group_table().values()]
        assert states.count("CREATED") == 2
        assert placement_group_table(mine)["state"] == "CREATED"
    finally:
        remove_placement_group(mine)
        for name in ("cca_ray", "somebody_else"):
            ray.kill(ray.get_actor(name, namespace="leak"))


@pytest.mark.parametrize("key", ["group", "gang"])  # the second: as version 0.1.0 left it
def test_what_the_workers_of_a_trial_hold_is_freed_by_their_signs_of_life(ray_here: None, tmp_path: Path, key: str):
    group = placement_group([{"CPU": 0.5}])
    ray.get(group.ready())
    (tmp_path / "alive-0").write_text(json.dumps({"pid": 0, key: group.id.hex()}))
    (tmp_path / "alive-1").write_text(json.dumps({"pid": 0}))
    assert free_worker_group(tmp_path)
    assert placement_group_table(group)["state"] == "REMOVED"
    assert not free_worker_group(tmp_path)
