"""Who trains where: the rules of the queue, and a real study on a cluster of pretended cards."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
import yaml
from ray.cluster_utils import Cluster

from cca_ray.cluster import queue
from cca_ray.cluster.placement import accelerator_of
from cca_ray.cluster.placement import ways as ways_of
from cca_ray.cluster.queue import (
    DEAD_S,
    DEMAND_S,
    GONE_S,
    QUIET_S,
    REFUSED_S,
    Answer,
    CardQueue,
    Node,
    grant,
    impossible,
    slots,
)
from cca_ray.inputs import find_space
from cca_ray.placement_config import Placement
from cca_ray.space_file import load_config
from cca_ray.training.small_base import BaseFiles
from tests.cluster.placements import table
from tests.commands import write_space
from tests.conftest import apart
from tests.processes import begin

H100, A100, A40 = (Node(name, cpus=16, gpus=8) for name in ("H100", "A100", "A40"))
HEAD = Node("CPU", cpus=0, gpus=0)


def names(granted: dict[str, Placement]) -> dict[str, str]:
    return {key: f"{way.workers} {way.accelerators[0].type}" for key, way in granted.items()}


def waiting(*wanted: Placement) -> dict[str, tuple[Placement, ...]]:
    return {f"t{number}": ways_of(placement) for number, placement in enumerate(wanted)}


ANY = table(("H100", 4), ("A100", 8), ("A40", 8))


def test_trials_take_the_first_way_that_fits_and_run_on_different_types_at_a_time():
    nodes = [HEAD, H100, A100, A40]
    assert names(grant(waiting(ANY, ANY, ANY, ANY, ANY), [], nodes)) == {
        "t0": "4 H100", "t1": "4 H100", "t2": "8 A100", "t3": "8 A40",
    }  # fmt: skip
    assert names(grant(waiting(ANY), [ways_of(ANY)[0], ways_of(ANY)[0]], nodes)) == {"t0": "8 A100"}


def test_a_worker_group_is_on_one_type_and_may_be_on_several_nodes():
    assert grant(waiting(table(("A40", 16))), [], [A40, A100]) == {}
    assert names(grant(waiting(table(("A40", 16))), [], [A40, A40])) == {"t0": "16 A40"}


def test_where_cpus_are_few_they_bound_the_workers():
    assert slots(ways_of(ANY)[0], [Node("H100", cpus=5, gpus=8)]) == 2
    assert slots(ways_of(table(("CPU", 1)))[0], [Node("CPU", cpus=5, gpus=0), A40]) == 2


def test_small_trials_do_not_starve_a_large_one_and_take_only_what_it_cannot_use():
    large, small = table(("A100", 8)), table(("A100", 1), ("A40", 1))
    busy = [ways_of(table(("A100", 2)))[0]]
    nodes = [A100, A40]
    assert names(grant(waiting(large, small, small), busy, nodes)) == {"t1": "1 A40", "t2": "1 A40"}
    assert names(grant(waiting(large, small), [], nodes)) == {"t0": "8 A100", "t1": "1 A40"}
    never = table(("H100", 8))  # waits for an autoscaler, and keeps nothing from others
    assert names(grant(waiting(never, small), [], nodes)) == {"t1": "1 A100"}


def test_when_everything_is_taken_all_wait_and_none_holds_a_part():
    full = [ways_of(ANY)[0], ways_of(ANY)[0], ways_of(ANY)[1], ways_of(ANY)[2]]
    assert grant(waiting(ANY, ANY), full, [H100, A100, A40]) == {}


def test_a_placement_that_can_never_fit_is_named_unless_nodes_may_come():
    why = impossible(ANY, [HEAD, Node("A40", cpus=8, gpus=4), Node("A40", cpus=2, gpus=1)])
    assert why == "placement asks for 4 × 1 H100 or 8 × 1 A100 or 8 × 1 A40, the cluster has 5 A40, 0 CPU"
    assert impossible(ANY, [HEAD, Node("H100", cpus=8, gpus=4)]) == ""
    assert impossible(ANY, [Node("CPU", cpus=0, gpus=0, managed=True)]) == ""
    assert (
        impossible(Placement(workers=3), [Node("CPU", 2, 0)]) == "placement asks for 3 × 1 CPU, the cluster has 2 CPU"
    )
    assert impossible(Placement(workers=2), [Node("CPU", 1, 0), Node("A40", 1, 1)]) == ""


def test_a_fine_tuning_outside_a_search_takes_the_first_way_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(queue, "nodes_now", lambda: [HEAD, A40])
    assert queue.first_way(ANY) == ways_of(ANY)[2]
    assert queue.first_way(Placement(workers=2)) == Placement(workers=2)
    with pytest.raises(ValueError, match="the cluster has 8 A40, 0 CPU"):
        queue.first_way(table(("H100", 1)))


def test_who_was_first_keeps_its_place_after_a_loss():
    nodes, one = [H100], table(("H100", 8), ("A40", 8))
    queue = CardQueue(lambda: nodes)
    assert queue.ask("a", one).granted == ways_of(one)[0]
    assert queue.ask("a", one).granted == ways_of(one)[0]  # asked again, as by a process that was lost
    assert queue.ask("b", one) == Answer()
    nodes[:] = [A40]
    queue.release("a")  # its node is gone
    assert queue.ask("b", one).granted == ways_of(one)[1]
    queue.release("b")
    assert queue.ask("a", one).granted == ways_of(one)[1]
    queue.ask("b", one)
    queue.release("a")
    assert queue.ask("a", one).granted  # before b, which waits longer but came later
    assert queue.ask("b", one) == Answer()
    queue.forget("a")
    assert queue.ask("b", one).granted == ways_of(one)[1]


def test_a_way_that_ray_could_not_start_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue, one = CardQueue(lambda: [H100, A40]), table(("H100", 8), ("A40", 8))
    assert queue.ask("a", one).granted == ways_of(one)[0]
    queue.refuse("a")
    assert queue.ask("a", one).granted == ways_of(one)[1]
    queue.refuse("a")
    assert queue.ask("a", one) == Answer()
    clock[0] += REFUSED_S + 1
    assert queue.ask("a", one).granted == ways_of(one)[0]


def test_who_no_longer_asks_is_out_of_the_queue(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue, one = CardQueue(lambda: [A40]), table(("A40", 8))
    queue.ask("a", one)
    assert queue.ask("b", one) == Answer()
    assert queue.ask("c", one) == Answer()
    clock[0] += GONE_S + 1
    queue.release("a")
    assert queue.ask("c", one).granted == ways_of(one)[0]


def test_a_dead_study_holds_no_cards_and_a_living_one_keeps_its_own(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue, one = CardQueue(lambda: [A40]), table(("A40", 8))
    queue.ask("dead/a", one)
    for _ in range(5):
        clock[0] += DEAD_S / 4
        queue.alive("living")
        assert (queue.ask("living/b", one) == Answer()) == (clock[0] <= 1000 + DEAD_S)
    for _ in range(5):
        clock[0] += DEAD_S / 4
        queue.alive("living")
        assert queue.ask("late/c", one) == Answer()


def test_a_new_driver_of_a_study_frees_what_the_killed_one_held_and_waited_for():
    queue, one = CardQueue(lambda: [A40]), table(("A40", 4))
    assert all(queue.ask(key, one).granted for key in ("s/trials/held", "other/trials/held"))
    assert queue.ask("s/trials/waits", table(("A40", 8))) == Answer()
    assert queue.ask("other/trials/waits", one) == Answer()  # behind
    queue.begin("s/trials")
    assert list(queue.held) == ["other/trials/held"]
    assert queue.ask("other/trials/waits", one).granted
    assert queue.ask("s/trials/new", one) == Answer()  # who did not end keeps its cards


def test_a_trial_is_never_given_a_way_that_its_placement_no_longer_lists(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue, old, new = CardQueue(lambda: [A40, H100]), table(("A40", 8)), table(("H100", 1))
    assert queue.ask("s/a", old).granted == ways_of(old)[0]
    assert queue.ask("s/a", new).granted == ways_of(new)[0]
    assert queue.ask("s/b", old).granted  # the first one's cards are free
    assert queue.ask("s/c", old) == Answer()
    assert queue.ask("s/c", new).granted == ways_of(new)[0]  # nor does it wait for an old one

    clock[0] += QUIET_S
    queue.release("s/b")
    clock[0] += QUIET_S
    assert queue.ask_last("s/base", table(("A40", 1))) == ways_of(table(("A40", 1)))[0]
    clock[0] += QUIET_S
    assert queue.ask_last("s/base", new) is None  # given back just now
    clock[0] += QUIET_S
    assert queue.ask_last("s/base", new) == ways_of(new)[0]


def test_who_waits_where_nodes_may_come_asks_for_one_way_after_the_other(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue, two = CardQueue(lambda: [Node("CPU", 0, 0, managed=True)]), table(("H100", 8), ("A40", 8))
    asked = []
    for _ in range(31):
        asked += [(answer := queue.ask("a", two)).demanded]
        assert answer.granted is None
        clock[0] += DEMAND_S / 10
    first, second = ways_of(two)
    assert asked == [first] * 10 + [second] * 10 + [first] * 10 + [second]


def test_small_sizes_take_the_small_cards_and_large_sizes_the_large_ones_whoever_comes_first():
    small, large = (load_config(find_space(name)).placement for name in ("llamagen_b", "llamagen_xxl"))
    nodes = [HEAD, H100, A40]
    for keys in (("small/1", "large/1"), ("large/1", "small/1")):
        queue = CardQueue(lambda: nodes)
        granted = {key: queue.ask(key, small if "small" in key else large).granted for key in keys}
        assert {key: accelerator_of(way) for key, way in granted.items() if way} == {
            "small/1": "A40",
            "large/1": "H100",
        }


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A head that trains nothing, one H100, one A100 and two A40: labels and counts, no cards."""
    with apart():
        cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "dashboard_port": 0})
        for name, cards in (("H100", 1), ("A100", 1), ("A40", 2)):
            cluster.add_node(num_cpus=cards, num_gpus=cards, labels={"ray.io/accelerator-type": name})
        yield cluster
        cluster.shutdown()


def tune(folder: Path, address: str, *settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "cca_ray.tune", "tiny.yaml", "--name", "study"]
    words = [word for setting in settings for word in ("--set", setting)]
    environment, pipe = {**os.environ, "RAY_ADDRESS": address}, subprocess.PIPE
    return begin([*command, *words], cwd=folder, env=environment, text=True, stdout=pipe, stderr=pipe)


def space(folder: Path, files: BaseFiles, accelerators: list[dict[str, Any]]) -> None:
    path = write_space(folder, files, epochs=30)
    content = yaml.safe_load(path.read_text())
    # The cards are pretended, so the workers speak by gloo.
    content["placement"] = {"accelerators": accelerators, "checkpoint_minutes": 0.005, "backend": "gloo"}
    content["placement"]["precision"] = "float32"  # as without cards
    content["search"] |= {"trials": 1, "first_points": [{"lambda": 2.0, "learning_rate": 1e-3}]}
    path.write_text(yaml.safe_dump(content))


def saved_on(node: str, folder: Path) -> str:
    """Wait until a trial on this node has a checkpoint; its key."""
    end = time.monotonic() + 150
    while time.monotonic() < end:
        for life in folder.glob("*/alive-0"):
            with suppress(ValueError):  # it is being written
                if json.loads(life.read_text())["node"] == node and (life.parent / "checkpoint.pt").exists():
                    return life.parent.name
        time.sleep(0.02)
    raise TimeoutError("no trial has written a checkpoint on this node")


def trials(folder: Path) -> dict[str, optuna.trial.FrozenTrial]:
    """By key."""
    storage = f"sqlite:///{folder / 'runs' / 'study' / 'study.db'}"
    studies = [optuna.load_study(study_name=f"study/tiny/{arm}", storage=storage) for arm in ("control", "search")]
    return {trial.user_attrs["key"]: trial for study in studies for trial in study.trials}


def losses(folder: Path, key: str) -> dict[int, float]:
    """By step, as the trial reported them."""
    path = folder / "runs" / "study" / "trials" / key / "checkpoint.pt"
    reports = torch.load(path, weights_only=True)["reports"]
    return {int(row[0]): row[1] for report in reports for row in report["history"]}


def test_what_the_cluster_can_never_hold_is_refused_at_once(cluster: Cluster, base_files: BaseFiles, tmp_path: Path):
    space(tmp_path, base_files, [{"type": "H100", "workers": 2}, {"type": "A100", "workers": 2}])
    process = tune(tmp_path, cluster.address)
    _, error = process.communicate(timeout=250)  # 12 s of a quiet machine; 120 beside four other programs
    assert process.returncode == 2
    assert "tiny: placement asks for 2 × 1 H100 or 2 × 1 A100, the cluster has 1 A100, 2 A40, 0 CPU, 1 H100" in error
    assert not (tmp_path / "runs" / "study" / "study.db").exists()


@pytest.mark.nightly  # test_uri_study.py loses a machine in every run
@pytest.mark.timeout(900)
def test_a_trial_that_loses_its_node_ends_on_other_cards_with_the_same_result(
    cluster: Cluster, base_files: BaseFiles, tmp_path: Path
):
    """Two trials at a time, on two types of cards; the H100's node goes, and its trial ends on two A40.

    Of the third type, which their table does not list, they take nothing.
    """
    (tmp_path / "alone").mkdir()
    (tmp_path / "mixed").mkdir()
    space(tmp_path / "alone", base_files, [])
    alone = tune(tmp_path / "alone", "local", "search.max_concurrent=1")
    _, error = alone.communicate(timeout=300)
    assert alone.returncode == 0, error

    space(
        tmp_path / "mixed",
        base_files,
        [{"type": "H100", "workers": 1, "micro_batch": 12}, {"type": "A40", "workers": 2}],
    )
    process = tune(tmp_path / "mixed", cluster.address)
    h100 = next(node for node in cluster.worker_nodes if "H100" in node._ray_params.labels.values())
    moving = saved_on(h100.node_id, tmp_path / "mixed" / "runs" / "study" / "trials")
    cluster.remove_node(h100, allow_graceful=False)
    out, error = process.communicate(timeout=500)
    assert process.returncode == 0, error

    mine, theirs = trials(tmp_path / "mixed"), trials(tmp_path / "alone")
    used = {key: set(trial.user_attrs["device_seconds"]) for key, trial in mine.items()}
    assert used == {key: {"H100", "A40"} if key == moving else {"A40"} for key in theirs}
    assert "moved: now 2 × A40, micro-batch 12" in out
    for key, trial in mine.items():
        assert (trial.state, trial.params) == (theirs[key].state, theirs[key].params)
        # Two workers part from one in the last digit of a sum, which CCA at this rate doubles every dozen steps.
        assert trial.intermediate_values[150] == pytest.approx(theirs[key].intermediate_values[150], rel=1e-3)
        before, after = (losses(tmp_path / side, key) for side in ("alone", "mixed"))
        assert list(after) == list(before) == list(range(1, 301))
        assert [after[step] for step in range(1, 151)] == pytest.approx([before[s] for s in range(1, 151)], rel=1e-3)
    (size,) = json.loads((tmp_path / "mixed" / "runs" / "study" / "summary.json").read_text())["sizes"]
    assert set(size["device_hours_by_type"]) == {"H100", "A40"}
