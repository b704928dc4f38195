"""Without a terminal, too, something moves: a line says what is being done, less and less often."""

import io
import threading
import time

import pytest

from cca_ray.terminal.console import Console
from cca_ray.terminal.patience import Silence


def lines_at(phases: dict[float, str], until: int, spoken: tuple[float, ...] = ()) -> list[float]:
    """When lines are due, if `phases` begin and somebody else speaks at these times."""
    silence, said, due = Silence(), 0.0, []
    for now in map(float, range(1, until)):
        phase = next(phase for start, phase in reversed(phases.items()) if start <= now)
        said = now if now in spoken else said
        if silence.due(now, said, phase):
            said = now
            due.append(now)
    return due


def test_lines_come_after_five_seconds_and_then_more_and_more_rarely():
    assert lines_at({0: "starting"}, 300) == [5, 15, 35, 75, 135, 195, 255]


def test_a_new_phase_begins_anew():
    assert lines_at({0: "starting", 40: "search"}, 60) == [5, 15, 35, 40, 50]


def test_as_long_as_others_speak_nothing_is_said():
    assert lines_at({0: "search"}, 60, tuple(range(0, 60, 4))) == []


def test_what_is_waited_for_is_said_until_it_is_done():
    stream = io.StringIO()
    console = Console(stream)
    console.waiting("starting Ray")
    console.said -= 10
    deadline = time.monotonic() + 10
    while not stream.getvalue() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert "still starting Ray, " in stream.getvalue()
    assert console.patience is not None
    thread: threading.Thread = console.patience.thread
    console.clear()
    thread.join(10)
    assert not thread.is_alive()


def test_what_fails_is_waited_for_no_longer():
    console = Console(io.StringIO())

    def fail() -> None:
        with console.during("scoring"):
            assert console.patience is not None
            raise ValueError("no such file")

    with pytest.raises(ValueError, match="no such file"):
        fail()
    assert console.patience is None
