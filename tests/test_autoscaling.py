"""Nodes that come when trials wait for them and go again: Ray's real autoscaler, with nodes that are processes here."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from cca_ray.gangs import TYPE
from cca_ray.pretrain import BaseFiles
from tests.test_cli import write_space
from tests.test_jobs import Cluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

IDLE_MINUTES = 0.2
CARDS = {"H100": 1, "A40": 2}  # a node's


class Growing(Cluster):
    """On this machine: a head without CPUs to give away, and an autoscaler; no worker until one is asked for."""

    def start(self) -> None:
        types = {
            name: {
                "resources": {"CPU": cards, "GPU": cards}, "labels": {TYPE: name},
                "node_config": {}, "min_workers": 0, "max_workers": 2,
            }
            for name, cards in CARDS.items()
        }  # fmt: skip
        types[FAKE_HEAD_NODE_TYPE] = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        provider = {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "head_node_id": FAKE_HEAD_NODE_ID,
            "gcs_address": self.address,
            "launch_multiple": True,
        }
        config = {
            "cluster_name": "growing", "max_workers": 4, "idle_timeout_minutes": IDLE_MINUTES, "upscaling_speed": 1.0,
            "provider": provider, "available_node_types": types, "head_node_type": FAKE_HEAD_NODE_TYPE, "auth": {},
            "file_mounts": {}, "cluster_synced_files": [], "initialization_commands": [], "setup_commands": [],
            **{f"{who}_{what}_commands": [] for who in ("head", "worker") for what in ("setup", "start_ray")},
        }  # fmt: skip
        path = self.folder / "autoscaling.yaml"
        path.write_text(yaml.safe_dump(config))
        self.server |= {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",  # what `ray up` tells a head
            "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
            "RAY_NODE_TYPE_NAME": FAKE_HEAD_NODE_TYPE,
        }
        self.start_head(f"--autoscaling-config={path}")

    def types(self) -> Counter[str]:
        """The living nodes besides the head, by the type of their cards."""
        return Counter(node["labels"].get(TYPE, "") for node in self.alive() if not node["is_head_node"])


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Growing]:
    cluster = Growing(tmp_path_factory.mktemp("cluster"), "")
    try:
        cluster.start()
        cluster.wait()
        yield cluster
    finally:
        cluster.close()


def test_nodes_of_the_right_type_come_for_a_study_and_go_after_it(
    cluster: Growing, base_files: BaseFiles, tmp_path: Path
):
    path = write_space(tmp_path, base_files)
    content = yaml.safe_load(path.read_text())
    content["placement"] = {"accelerators": [{"type": "A40", "workers": 2}], "backend": "gloo"}  # pretended cards
    content["search"] |= {"trials": 1}
    path.write_text(yaml.safe_dump(content))
    assert cluster.types() == {}
    command = [sys.executable, "-m", "cca_ray.tune", "tiny.yaml", "--name", "study", "--storage", "runs"]
    with (tmp_path / "log").open("w") as log:
        environment = {**cluster.client, "RAY_ADDRESS": cluster.address}
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    seen, end = Counter[str](), time.monotonic() + 400
    try:
        while process.poll() is None and time.monotonic() < end:
            seen |= cluster.types()
            time.sleep(0.5)
    finally:
        process.kill()
    assert process.wait() == 0, (tmp_path / "log").read_text()
    assert seen["A40"] >= 1
    assert set(seen) == {"A40"}
    lives = [json.loads(life.read_text()) for life in (tmp_path / "runs" / "study" / "trials").glob("*/alive-*")]
    assert len(lives) == 4  # two workers each: of the control, and of the trial
    (size,) = json.loads((tmp_path / "runs" / "study" / "summary.json").read_text())["sizes"]
    assert set(size["device_hours_by_type"]) == {"A40"}

    end = time.monotonic() + 60 * IDLE_MINUTES + 60
    while cluster.types():
        assert time.monotonic() < end, f"still there: {cluster.types()}"
        time.sleep(1)
