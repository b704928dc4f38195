"""Trials in a figure that can be pointed at: marks that nobody sees, laid over the SVG that matplotlib has drawn.

Without a script, a mark's `<title>` tells of its trial when it is pointed at. With `templates/linked.js`, the trial is
marked in all figures and tables of its size, and its row of the table and its samples are shown beside it. That script
is our own. A library that links figures (Plotly, Vega, Bokeh) draws them by itself: it is larger than the whole page,
shows nothing without a script, and the figures would be others than those in the PNGs and in MLflow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import numpy as np
from matplotlib.figure import Figure

RADIUS = 10  # of a mark, in points
PER_INCH = 72  # points, which are the units of the SVG


@dataclass(frozen=True)
class Spot:
    """A trial in a figure. `path`: in the figure's coordinates; its last point is the trial itself."""

    key: str
    told: str
    path: Sequence[tuple[float, float]]


def with_spots(svg: str, figure: Figure, spots: Sequence[Spot]) -> str:
    """`svg`: the figure as it has just been drawn, and so laid out."""
    if not spots:
        return svg
    marks = "".join(f"\n{mark(figure, spot)}" for spot in spots)
    svg = svg.replace('<svg role="img"', '<svg role="group"', 1)  # of an image nothing inside is read aloud
    end = svg.rindex("</svg>")
    return f'{svg[:end]}<g class="spots" fill="none" stroke="none" pointer-events="all">{marks}\n</g>\n{svg[end:]}'


def mark(figure: Figure, spot: Spot) -> str:
    points = [f"{x:.1f} {y:.1f}" for x, y in in_svg(figure, spot.path)]
    x, y = points[-1].split()
    path = f'<path d="M{"L".join(points)}" pointer-events="none"/>' if len(points) > 1 else ""
    return (
        f'<g class="spot" role="img" data-trial="{escape(spot.key)}"><title>{escape(spot.told)}</title>'
        f'{path}<circle cx="{x}" cy="{y}" r="{RADIUS}"/></g>'
    )


def in_svg(figure: Figure, path: Sequence[tuple[float, float]]) -> np.ndarray:
    """path [n, 2], of the figure's first axes -> [n, 2] in the SVG, where y points down.

    What lies beyond the axes, as what has no score, is at their edge.
    """
    axes = figure.axes[0]
    low, high = np.sort([axes.get_xlim(), axes.get_ylim()]).T
    shares = (axes.transData - figure.transFigure).transform(np.clip(path, low, high))
    width, height = figure.get_size_inches() * PER_INCH
    return np.stack([shares[:, 0] * width, (1 - shares[:, 1]) * height], axis=1)
