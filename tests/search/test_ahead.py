"""The base is scored beside trials only where they leave room, and its scores are the same wherever that was."""

import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from cca_ray.cluster.placement import accelerator_of, ways
from cca_ray.cluster.queue import QUIET_S, CardQueue, Node
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.contracts import FID
from cca_ray.placement_config import Placement
from cca_ray.search import ahead
from cca_ray.search.ahead import Ahead, BaseStandings, BesideTrials, LastInQueue
from cca_ray.search.fresh_scores import Block, Nowhere, Scores
from cca_ray.search.ledger import Ledger
from cca_ray.search.standings import Contender
from tests.cluster.placements import table
from tests.conftest import MakeStudy

BASE = Contender("tiny-base")


@pytest.fixture
def config(make_study: MakeStudy) -> ResolvedStudy:
    score = {"blocks": 1, "guidance_scales": [1.25, 1.5], "widen_guidance": 0}
    found: ResolvedStudy = make_study(score=score, search={"max_concurrent": 2})
    return found


def values(found: BaseStandings) -> list[Any]:
    return [found.scales, *(s.values["fid"].tolist() + s.without["fid"].tolist() for s in (found.alone, found.guided))]


def test_scores_beside_trials_are_bit_equal_to_those_after_them(
    config: ResolvedStudy, tmp_path: Path, ray_here: None, monkeypatch: pytest.MonkeyPatch
):
    idle, busy = Ledger(config, []), Ledger(config, [])
    idle.all_begun = True
    monkeypatch.setattr(ahead, "nodes_now", lambda: [Node("CPU", 2, 0)])
    with Ahead(config, [FID], tmp_path / "early", Stop(), "id") as early:
        with early.beside(idle):
            beside = values(early.result())
        assert not early.scores.running
    with Ahead(config, [FID], tmp_path / "late", Stop(), "id") as late:
        with late.beside(busy):  # its two trials take both cores
            time.sleep(1.2)
            assert not late.scores.running
            assert not (tmp_path / "late" / "scores").exists()
        late.open()
        assert values(late.result()) == beside


def test_trials_that_run_or_may_begin_leave_their_room_free(monkeypatch: pytest.MonkeyPatch):
    trials, free = [3], [True]
    monkeypatch.setattr(ahead, "nodes_now", lambda: [Node("CPU", 8, 0)])
    monkeypatch.setattr(ahead, "free_now", lambda placement: free[0])
    room = BesideTrials(Placement(cpus=1, workers=2), lambda: trials[0])
    assert [room.take(name) is not None for name in "abc"] == [True, True, False]
    room.give_back("a")
    free[0] = False  # others are on this cluster
    assert room.take("c") is None
    free[0] = True
    trials[0] = 4
    assert room.take("c") is None
    trials[0] = 3
    assert room.take("c") is not None


def test_what_is_no_trial_comes_behind_all_trials_once_they_are_quiet(monkeypatch: pytest.MonkeyPatch):
    clock = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    queue = CardQueue(lambda: [Node("A40", cpus=16, gpus=8), Node("H100", cpus=16, gpus=8, managed=True)])
    one, large = table(("H100", 1), ("A40", 1)), table(("A40", 8))
    assert queue.ask("s/first", large).granted
    assert queue.ask_last("s/base", one) is None  # a trial has just come: others may be on their way
    assert queue.ask("s/second", large).demanded
    clock[0] += QUIET_S
    assert queue.ask_last("s/base", table(("A40", 1))) is None  # it is kept for the second trial
    assert queue.ask_last("s/base", one) == ways(one)[0]
    assert queue.ask_last("s/base", one) == ways(one)[0]  # asked again
    assert queue.ask("s/second", large).demanded
    queue.release("s/first")
    clock[0] += QUIET_S
    assert queue.ask_last("s/other", table(("A40", 1))) is None  # this made the second trial start
    assert queue.ask("s/second", large).granted
    queue.forget("s/base")
    clock[0] += QUIET_S
    assert queue.ask_last("s/other", one) == ways(one)[0]


def test_no_card_is_asked_for_before_the_last_trial_has_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    begun, asked = [False], list[str]()

    def ask(key: str, placement: Placement) -> Placement:
        asked.append(key)
        return ways(placement)[0]

    monkeypatch.setattr(ahead.ray, "get", lambda answer: answer)
    placer = SimpleNamespace(ask_last=SimpleNamespace(remote=ask))
    room = LastInQueue(placer, table(("H100", 4), ("A40", 8)), tmp_path, lambda: begun[0])
    assert room.take("base-1.5") is None
    assert not asked
    begun[0] = True
    way = room.take("base-1.5")
    assert way is not None
    assert (accelerator_of(way), way.workers) == ("H100", 1)
    assert asked == [str(tmp_path / "trials" / "base-1.5")]


class OneSeat(Nowhere):
    """Room for one at a time."""

    taken: str = ""

    def take(self, name: str) -> Any:
        if self.taken:
            return None
        object.__setattr__(self, "taken", name)
        return Placement()

    def give_back(self, name: str) -> None:
        assert self.taken == name
        object.__setattr__(self, "taken", "")


class Tasks(Scores):
    """Instead of a score, this."""

    task: Callable[[int], Any]

    def begin(self, block: Block, placement: Placement) -> ray.ObjectRef:
        return self.task(block.number)


def tasks_of(config: ResolvedStudy, folder: Path, task: Callable[[int], Any]) -> Tasks:
    scores = Tasks(config, folder, Stop(), "id", OneSeat())
    scores.task = task
    return scores


def test_every_seat_is_given_back_also_after_a_failure(config: ResolvedStudy, tmp_path: Path, ray_here: None):
    scores = tasks_of(config, tmp_path, ray.put)
    wanted = [Block(BASE, number, 80) for number in (1, 2, 3)]
    assert scores.made(list(wanted)) == {block: block.number for block in wanted}
    assert not scores.room.taken  # type: ignore[attr-defined]

    @ray.remote(num_cpus=0)
    def fails(number: int) -> None:
        raise ValueError("no such weights")

    scores = tasks_of(config, tmp_path, fails.remote)
    with pytest.raises(ValueError, match="no such weights"):
        scores.make(wanted)
    assert not scores.running
    assert not scores.room.taken  # type: ignore[attr-defined]
