"""Figures of whatever may be searched, and what they are made of."""

import re
from colorsys import rgb_to_hsv
from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure

from cca_ray.reporting import charts
from cca_ray.reporting.numbers import number, score
from cca_ray.reporting.page import SEARCH
from cca_ray.reporting.results import SizeResults
from cca_ray.reporting.style import (
    DARK_GREYS,
    DARK_STEPS,
    GREYS,
    HEIGHT,
    LIGHT,
    STEPS,
    THEME,
    WIDTH,
    apart_labels,
    as_svg,
    canvas,
    save,
    spread,
    steps_of_colour,
)
from tests.studies import SPACES, the_size


@pytest.mark.parametrize("settings", SPACES.values(), ids=SPACES)
def test_whatever_was_searched_is_drawn(settings: list[str], tmp_path: Path):
    size = the_size(tmp_path, settings=settings)
    for name, (_, draw, _, _) in SEARCH.items():
        figure = draw(size)
        assert isinstance(figure, Figure)
        assert "NaN" not in as_svg(figure, name)
        box = figure.get_tightbbox()  # in inches
        assert min(box.min) > -0.05
        assert (box.max < np.array([WIDTH, HEIGHT]) + 0.05).all()  # nothing is cut off


def test_a_landscape_has_every_trial_of_the_search_and_rings_the_winner(tmp_path: Path):
    size = the_size(tmp_path)
    (axes, _) = charts.landscape(size).axes
    completed, stopped, failed, running, winner = (c.get_offsets() for c in axes.collections)
    assert [len(points) for points in (completed, stopped, failed, running, winner)] == [10, 1, 1, 1, 1]
    assert size.best is not None
    np.testing.assert_allclose(winner, [[size.best.params["lambda"], size.best.params["learning_rate"]]])
    assert axes.get_xlim()[0] < 0.5
    assert axes.get_xlim()[1] > 20


def test_only_sizes_of_one_protocol_are_joined(tmp_path: Path):
    one = the_size(tmp_path / "a")
    other = the_size(tmp_path / "b", size="digits_m", protocol="another")
    same = the_size(tmp_path / "c", size="digits_m")

    def joined(sizes: list[SizeResults]) -> set[bool]:
        (axes,) = charts.by_size([size.summary for size in sizes if size.summary]).axes
        return {container[0].get_linestyle() != "None" for container in axes.containers}

    assert joined([one, same]) == {True}
    assert joined([one, other]) == {False}


def test_an_svg_takes_its_colours_from_the_page_and_is_the_same_each_time(tmp_path: Path):
    size = the_size(tmp_path)
    svg = as_svg(charts.landscape(size), "a <landscape>")
    assert svg == as_svg(charts.landscape(size), "a <landscape>")
    assert 'aria-label="a &lt;landscape&gt;"' in svg
    assert not re.findall(r"<image|<metadata|font-family|\bid=\"(?!\w+\")", svg)
    plain = re.sub(r"var\(--\w+, #\w{6}\)", "", svg)
    assert set(re.findall(r"#[0-9a-f]{6}\b", plain)) == set()
    assert {"ink", "tuned", "step0"} <= set(re.findall(r"var\(--(\w+)", svg))


def test_a_file_that_stands_alone_knows_the_dark(tmp_path: Path):
    figure, axes = canvas()
    axes.plot([1, 2], [1, 2], color=LIGHT["tuned"])
    save(figure, tmp_path / "figure", "a line")
    assert "prefers-color-scheme:dark" in (tmp_path / "figure.svg").read_text()
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_the_best_has_the_colour_that_stands_out_and_what_diverged_takes_no_room():
    colours, norm = steps_of_colour([15, 16, 17, 18, 19, 700])
    seen = {value: to_hex(colours(norm(value))) for value in (15, 16, 18, 700)}
    assert (seen[15], seen[700]) == (STEPS[0], STEPS[-1])
    assert seen[16] != seen[18]
    colours, norm = steps_of_colour([1, 7, 8, 8.5, 9], high_is_best=True)
    assert (to_hex(colours(norm(9))), to_hex(colours(norm(1)))) == (STEPS[0], STEPS[-1])


def test_a_colour_says_the_same_in_the_light_and_in_the_dark():
    """The same hues, and what is strongest in one theme is strongest in the other."""
    for light, dark in ((STEPS, DARK_STEPS), (GREYS, DARK_GREYS)):
        hues = [[rgb_to_hsv(*to_rgb(colour))[0] for colour in scale] for scale in (light, dark)]
        apart = np.abs(np.subtract(*hues))
        assert max(np.minimum(apart, 1 - apart)) < 10 / 360 or light is GREYS
        on_light, on_dark = (
            np.array([np.dot(to_rgb(colour), (0.3, 0.6, 0.1)) for colour in scale]) for scale in (light, dark)
        )
        order = -1 if light is GREYS else 1  # of how far they are from the paper
        assert (np.diff(order * on_light) > 0).all()
        assert (np.diff(order * on_dark) < 0).all()
    roles = [name for name in THEME if not name.startswith(("step", "grey"))]
    assert len({THEME[name] for name in roles}) == len(roles)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-5, "1e-5"),
        (0.003, "0.003"),
        (20.0, "20"),
        (1000, "1000"),
        (4153, "4153"),
        (110_888_448, "111M"),
        (3.1e9, "3.1B"),
    ],
)
def test_numbers_are_as_people_write_them(value: float, text: str):
    assert number(value) == text


def test_scores_have_three_digits():
    assert [score(value) for value in (7.4, 22.0, 101.3, 4321.0)] == ["7.40", "22.0", "101", "4321"]


def test_labels_are_apart_and_as_near_their_places_as_they_can_be():
    assert spread([0.1, 0.5, 0.9], 0.1) == pytest.approx([0.1, 0.5, 0.9])
    assert spread([0.5, 0.5, 0.52], 0.1) == pytest.approx([0.4066667, 0.5066667, 0.6066667])
    assert min(np.diff(spread([0.1, 0.12, 0.21, 0.22, 0.8], 0.1))) > 0.0999


def test_no_label_of_a_figure_covers_another(tmp_path: Path):
    """As many as there are places for: of points that lie on each other some have none."""
    figure, axes = canvas()
    rng = np.random.default_rng(0)
    points = [*rng.random((15, 2)).tolist(), [0.5, 0.5], [0.5, 0.5], [0.51, 0.5]]
    axes.scatter(*np.array(points).T)
    apart_labels(figure, axes, [(point, f"λ {i}") for i, point in enumerate(points)], points)
    boxes = [text.get_window_extent() for text in axes.texts]
    assert 10 <= len(boxes) <= len(points)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert all(axes.get_window_extent().contains(*corner) for box in boxes for corner in (box.min, box.max))


def test_the_marks_of_a_landscape_have_room_whatever_states_there_are(tmp_path: Path):
    figure = charts.landscape(the_size(tmp_path))
    assert figure.axes[0].get_position().width > 0.6
    assert any(text.get_text() == "16.2" for text in figure.axes[0].texts)  # the winner's, first of all


def test_one_point_is_no_line(tmp_path: Path):
    figure = charts.trade_off(the_size(tmp_path, completed=1))
    assert figure is not None
    assert len(figure.axes[0].lines) == 0
