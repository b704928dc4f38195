"""Marks over the trials of a figure lie where the trials are drawn."""

import re
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from cca_ray.reporting.page import SEARCH
from cca_ray.reporting.places import in_landscape
from cca_ray.reporting.results import SizeResults
from cca_ray.reporting.spots import Spot, with_spots
from cca_ray.reporting.style import as_svg, canvas, save
from tests.studies import EVIL, SPACES, the_size


def marks_of(size: SizeResults, name: str) -> tuple[str, dict[str, tuple[float, float]]]:
    """A figure of the search, and where its trials can be pointed at."""
    _, draw, where, _ = SEARCH[name]
    figure = draw(size)
    assert isinstance(figure, Figure)
    drawn = as_svg(figure, name)
    spots = [Spot(t.name, t.name, path) for t in size.of("search") if (path := where(size, t))]
    found = re.findall(r'data-trial="(\S+)".*<circle cx="(\S+)" cy="(\S+)"', with_spots(drawn, figure, spots))
    return drawn, {trial: (float(x), float(y)) for trial, x, y in found}


def middles(svg: str) -> np.ndarray:
    """Of all shapes: matplotlib draws several of a kind as uses of one, and one as a path where it lies."""
    uses = [(float(x), float(y)) for x, y in re.findall(r'<use [^>]*\bx="(\S+)" y="(\S+)"', svg)]
    paths = [np.array(re.findall(r"-?[\d.]+", d), float).reshape(-1, 2) for d in re.findall(r'<path d="([^"]*)"', svg)]
    return np.array(uses + [(path.min(axis=0) + path.max(axis=0)) / 2 for path in paths])


@pytest.mark.parametrize("settings", [SPACES["λ and learning rate"], SPACES["learning rate alone"]])
def test_each_mark_lies_on_what_is_drawn_of_its_trial(settings: list[str], tmp_path: Path):
    size = the_size(tmp_path, settings=settings)
    for name, marks in (("landscape", 12), ("history", 13), ("rungs", 12), ("trade_off", 10)):
        drawn, at = marks_of(size, name)
        points = middles(drawn)
        unfinished = name == "landscape" and len(size.space) > 1
        assert len(at) == marks + unfinished
        for x, y in at.values():
            assert np.hypot(*(points - (x, y)).T).min() < 0.2


def test_a_trial_without_all_its_settings_is_not_in_the_landscape(tmp_path: Path):
    size = the_size(tmp_path)
    (failed,) = size.of("search", "FAIL")
    assert in_landscape(size, failed)
    del failed.params["lambda"]
    assert in_landscape(size, failed) == []


def test_what_is_told_is_escaped_also_in_the_file(tmp_path: Path):
    figure, axes = canvas()
    axes.plot([1, 2], [1, 2])
    svg = save(figure, tmp_path / "figure", "a line", [Spot('"><script>', EVIL, [(1, 1), (2, 2)])])
    assert svg.count("<title>") == 1
    for text in (svg, (tmp_path / "figure.svg").read_text()):
        assert "<script>" not in text
        assert "&lt;script&gt;alert" in text
    assert 'role="group"' in svg
    assert 'role="img" aria-label' in save(figure, tmp_path / "figure", "a line")
