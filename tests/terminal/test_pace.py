"""When a line of progress is due, and the time that it says is left."""

import pytest

from cca_ray.terminal.pace import Pace


def test_a_line_is_due_at_every_quarter_soon_after_the_beginning_and_once_a_minute():
    pace = Pace(1000.0, 0)
    due = [now for now in range(1001, 1401) if pace.due(now, now - 1000, 400)]
    assert due == [1005, 1015, 1035, 1075, 1100, 1160, 1200, 1260, 1300, 1360, 1400]


def test_what_was_done_before_is_no_measure_of_the_speed():
    pace = Pace(1000.0, 300)
    assert pace.left(1000.0, 300, 400) == ""
    assert pace.left(1060.0, 310, 400) == "about 9 min left"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(20, ""), (29, ""), (31, "about 1 min left"), (61, "about 2 min left"), (7100, "about 119 min left"),
     (7300, "about 2 h left"), (90_000, "about 25 h left")],
)  # fmt: skip
def test_the_time_left_is_in_words(seconds: int, said: str):
    assert Pace(0.0, 0).left(float(seconds), 1, 2) == said
