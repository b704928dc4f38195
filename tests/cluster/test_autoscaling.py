"""Nodes that come when trials wait for them and go again: Ray's real autoscaler, with nodes that are processes here."""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from PIL import Image
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from cca_ray.cluster.placement import TYPE
from cca_ray.data.tokens import MANIFEST
from cca_ray.training.small_base import BaseFiles
from tests.commands import write_space
from tests.job_clusters import Cluster
from tests.processes import begin

pytestmark = pytest.mark.timeout(600)

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
    cluster = Growing(tmp_path_factory.mktemp("cluster"), "runs", "")
    try:
        cluster.start()
        cluster.wait()
        yield cluster
    finally:
        cluster.close()


def watched(cluster: Growing, folder: Path, verb: str, *arguments: str) -> Counter[str]:
    """Run a verb on the cluster, in a folder; how many nodes of each type there were at most."""
    command, environment = [sys.executable, "-m", f"cca_ray.{verb}"], {**cluster.client, "RAY_ADDRESS": cluster.address}
    with (folder / "log").open("w") as log:
        process = begin([*command, *arguments], cwd=folder, env=environment, stdout=log, stderr=log)
    seen, end = Counter[str](), time.monotonic() + 400
    while process.poll() is None:
        assert time.monotonic() < end, (folder / "log").read_text()
        seen |= cluster.types()
        time.sleep(0.5)
    assert process.returncode == 0, (folder / "log").read_text()
    return seen


def gone(cluster: Growing) -> None:
    """Wait until no node is left."""
    end = time.monotonic() + 60 * IDLE_MINUTES + 60
    while cluster.types():
        assert time.monotonic() < end, f"still there: {cluster.types()}"
        time.sleep(1)


@pytest.mark.nightly
def test_nodes_of_the_right_type_come_for_a_study_and_go_after_it(
    cluster: Growing, base_files: BaseFiles, tmp_path: Path
):
    path = write_space(tmp_path, base_files)
    content = yaml.safe_load(path.read_text())
    content["placement"] = {"accelerators": [{"type": "A40", "workers": 2}], "backend": "gloo"}  # pretended cards
    content["search"] |= {"trials": 1}
    path.write_text(yaml.safe_dump(content))
    assert cluster.types() == {}
    seen = watched(cluster, tmp_path, "tune", "tiny.yaml", "--name", "study", "--storage", "runs")
    assert seen["A40"] >= 1
    assert set(seen) == {"A40"}
    lives = [json.loads(life.read_text()) for life in (tmp_path / "runs" / "study" / "trials").glob("*/alive-*")]
    assert len(lives) == 4  # two workers each: of the control, and of the trial
    (size,) = json.loads((tmp_path / "runs" / "study" / "summary.json").read_text())["sizes"]
    assert set(size["device_hours_by_type"]) == {"A40"}

    gone(cluster)


@pytest.mark.nightly
def test_prepare_waits_for_the_gpus_that_it_was_told_of(cluster: Growing, base_files: BaseFiles, tmp_path: Path):
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (10, 12), (40 * i, 90, 200)).save(tmp_path / "photos" / name / f"{i}.png")
    options = ["--tokenizer", str(base_files.tokenizer), "--image-size", "8", "--gpus", "3", "--out", "tokens"]
    seen = watched(cluster, tmp_path, "prepare", "photos", *options)
    assert sum(CARDS[name] * nodes for name, nodes in seen.items()) >= 3
    assert "waiting for 3 GPUs" in (tmp_path / "log").read_text()
    assert (tmp_path / "tokens" / MANIFEST).is_file()
    gone(cluster)
