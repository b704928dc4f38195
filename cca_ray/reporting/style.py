"""How our figures look: one style, colours that a page can turn dark, axes that people can read.

A figure is drawn once, in the colours of the light theme; in its SVG each of these is a CSS variable.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from functools import wraps
from html import escape
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from cca_ray.reporting.numbers import number
from cca_ray.reporting.spots import Spot, with_spots

P = ParamSpec("P")
R = TypeVar("R")

# name of the CSS variable -> colour in the light theme, and in the dark one
THEME = {
    "ink": ("#1b1e23", "#e4e7eb"),
    "muted": ("#656d78", "#9aa3af"),
    "line": ("#d8dce2", "#363c46"),
    "paper": ("#fffffe", "#15181d"),
    "base": ("#69717b", "#a4acb7"),
    "guided": ("#c0500c", "#f29a56"),
    "control": ("#0b7a5a", "#4fc3a0"),
    "tuned": ("#0a68ad", "#62b1ee"),
    "bad": ("#b3261e", "#ff8a80"),  # worse, or failed
    "lit": ("#e8edf5", "#2a3140"),  # behind a row that is pointed at
}
# Steps of a scale of scores, after viridis. The best is violet in either theme, and stands out most from the paper; the
# worst is yellow. Dark: the same hues in OKLCH, the lightness the other way round.
STEPS = ("#440154", "#462f7c", "#38578c", "#2b788e", "#1f998a", "#40ba72", "#94d741", "#f4e61e")
DARK_STEPS = ("#eebbfe", "#c0affe", "#76a9fe", "#04a6ca", "#059788", "#028748", "#446c03", "#554f02")
# Of a scale of settings, of which none is better: greys, the largest farthest from the paper.
GREYS = ("#e2e8f2", "#c0c6d0", "#a0a5af", "#80868f", "#626770", "#454a52", "#2b2f37", "#12161d")
DARK_GREYS = ("#2e333b", "#464b54", "#60656e", "#7b8089", "#969ca5", "#b3b9c3", "#d1d7e1", "#f0f5fe")
THEME |= {f"step{i}": pair for i, pair in enumerate(zip(STEPS, DARK_STEPS, strict=True))}
THEME |= {f"grey{i}": pair for i, pair in enumerate(zip(GREYS, DARK_GREYS, strict=True))}
LIGHT = {name: light for name, (light, _) in THEME.items()}
INK, MUTED, LINE, PAPER = (LIGHT[name] for name in ("ink", "muted", "line", "paper"))
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: it is found, read aloud, and takes the page's font
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "legend.handletextpad": 0.4,
    "lines.linewidth": 1.2,
    "lines.color": INK,
}
WIDTH, HEIGHT = 5.2, 3.6  # inches: at its own size on a phone, two beside each other on a desk
STEEP = 4.0  # a log axis where the largest is so many times the smallest
DPI = 160
LOG_TICKS = {8: (1, 1.5, 2, 3, 5, 7), 200: (1, 2, 5), math.inf: (1,)}  # up to this ratio of the ends


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """In our style, whatever else the process draws."""

    @wraps(draw)
    def within(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return within


def canvas(height: float = HEIGHT) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.subplots()


def dark_style() -> str:
    """For an SVG file that stands alone."""
    colours = "".join(f"--{name}:{dark};" for name, (_, dark) in THEME.items())
    font = "svg{font-family:system-ui,sans-serif;background:var(--paper,#fff)}"
    return f"<style>{font}@media(prefers-color-scheme:dark){{svg{{{colours}}}}}</style>"


@styled
def as_svg(figure: Figure, title: str) -> str:
    """An `svg` element that takes its colours and its font from where it stands; `title` is read aloud."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": title}):  # the same figure, the same bytes
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # several figures share a page
    text = re.sub(r" ?font-family: [^;\"]*;?", "", text)
    for name, light in LIGHT.items():
        text = text.replace(light, f"var(--{name}, {light})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)


def save(figure: Figure, path: Path, title: str, spots: Sequence[Spot] = ()) -> str:
    """Write `path` as .svg, which follows the theme, and as .png on white; the element that goes into a page."""
    svg = with_spots(as_svg(figure, title), figure, spots)
    figure.set_layout_engine("none")  # it is laid out: not a second time
    opening = svg.index(">") + 1
    path.with_suffix(".svg").write_text(svg[:opening] + dark_style() + svg[opening:], encoding="utf-8")
    figure.savefig(path.with_suffix(".png"), dpi=DPI, facecolor="white")
    return svg


def is_x(axis: Axis) -> bool:
    return axis is axis.axes.xaxis


def log_axis(axis: Axis, low: float, high: float) -> None:
    """Few ticks, at round numbers, and no minor ones."""
    (axis.axes.set_xscale if is_x(axis) else axis.axes.set_yscale)("log")
    subs = next(subs for most, subs in LOG_TICKS.items() if high / low < most)
    ticks = LogLocator(subs=subs).tick_values(low, high)
    axis.set_major_locator(FixedLocator([t for t in ticks if low / 1.2 <= t <= high * 1.2]))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))


def score_axis(axis: Axis, values: Sequence[float]) -> None:
    """A log axis if the scores span much, as with trials that diverge."""
    finite = [v for v in values if math.isfinite(v)]
    if finite and min(finite) > 0 and max(finite) > STEEP * min(finite):
        log_axis(axis, min(finite), max(finite))
    else:
        axis.set_major_locator(MaxNLocator(6))


def at_least_above(low: float, high: float) -> float:
    """The upper end of a scale that begins at `low`, also where all scores are the same: by 1 %, or above 0."""
    return max(high, low + 0.01 * (abs(low) or 1.0))


def steps_of_colour(values: Sequence[float], high_is_best: bool = False) -> tuple[ListedColormap, BoundaryNorm]:
    """A scale of scores in a few steps, the best first, for the eye tells no more.

    The last one is open, so that what diverged takes no room.
    """
    finite = np.array([v for v in values if math.isfinite(v)])
    low, high = float(finite.min()), float(finite.max())
    low, high = (float(np.quantile(finite, 0.2)), high) if high_is_best else (low, float(np.quantile(finite, 0.8)))
    bounds = [float(t) for t in MaxNLocator(6, min_n_ticks=3).tick_values(low, at_least_above(low, high))]
    colours = steps(STEPS, len(bounds))
    extend: Any = "min" if high_is_best else "max"
    return ListedColormap(colours[::-1] if high_is_best else colours), BoundaryNorm(bounds, len(bounds), extend=extend)


def steps_of_setting(values: Sequence[float]) -> tuple[ListedColormap, BoundaryNorm]:
    """The same for a setting, at round numbers; on a log scale if it can be."""
    low, high = min(values), max(values)
    if low <= 0 or high < 1.2 * low:
        bounds = [float(t) for t in MaxNLocator(6).tick_values(low, max(high, low + 0.01))]
    else:
        ticks = LogLocator(subs=(1, 2, 5) if high / low < 100 else (1,)).tick_values(low, high)
        bounds = [low, *(float(t) for t in ticks if low * 1.1 < t < high / 1.1), high]
    return ListedColormap(steps(GREYS, len(bounds) - 1)), BoundaryNorm(bounds, len(bounds) - 1)


def steps(scale: Sequence[str], count: int) -> list[str]:
    """So many of the scale, as far apart as they can be."""
    return [scale[round(i * (len(scale) - 1) / max(count - 1, 1))] for i in range(count)]


def end_labels(axes: Axes, ends: Sequence[tuple[float, str, str]], gap: float = 0.075) -> None:
    """Names at the right edge, beside the ends of their lines, apart enough to be read: (y, text, colour)."""
    to_axes = axes.transData + axes.transAxes.inverted()
    x = axes.get_xlim()[0]
    wanted = sorted((float(to_axes.transform((x, y))[1]), text, colour) for y, text, colour in ends)
    places = spread([y for y, _, _ in wanted], gap)
    for (_, text, colour), place in zip(wanted, places, strict=True):
        axes.text(1.02, place, text, color=colour, transform=axes.transAxes, va="center", fontsize=9)


MARK = 4.0  # pixels from a mark's middle to its edge
AROUND = ((0, 8), (0, -15), (9, -3), (-9, -3), (0, 16), (0, -23))  # of a point, in points: where its label may be


def apart_labels(
    figure: Figure,
    axes: Axes,
    labels: Sequence[tuple[Sequence[float], str]],
    points: Sequence[Sequence[float]],
) -> None:
    """A label at each of these places, in this order, where it covers no other and no point; none without room."""
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # it is laid out, and stays as the labels are placed
    inside, marks = axes.get_window_extent(), axes.transData.transform(np.asarray(points))
    taken = [Bbox.from_extents(x - MARK, y - MARK, x + MARK, y + MARK) for x, y in marks]
    for place, text in labels:
        for dx, dy in AROUND:
            side: Any = "center" if dx == 0 else "left" if dx > 0 else "right"
            label = axes.annotate(text, (place[0], place[1]), (dx, dy), textcoords="offset points", ha=side, fontsize=8)
            box = label.get_window_extent().padded(1)
            if inside.contains(*box.min) and inside.contains(*box.max) and not any(box.overlaps(b) for b in taken):
                taken.append(box)
                break
            label.remove()


def spread(places: Sequence[float], gap: float) -> list[float]:
    """The same ascending places, moved as little as it takes to be `gap` apart."""
    clusters: list[list[float]] = []  # each: places that touch, laid out around their mean
    for place in places:
        clusters.append([place])
        while len(clusters) > 1 and first(clusters[-1], gap) - last(clusters[-2], gap) < gap:
            clusters[-2:] = [clusters[-2] + clusters[-1]]
    return [first(cluster, gap) + i * gap for cluster in clusters for i in range(len(cluster))]


def first(cluster: Sequence[float], gap: float) -> float:
    return float(np.mean(cluster)) - gap * (len(cluster) - 1) / 2


def last(cluster: Sequence[float], gap: float) -> float:
    return float(np.mean(cluster)) + gap * (len(cluster) - 1) / 2


def coloured(figure: Figure, axes: Axes, mapped: Any, label: str) -> None:
    """A colour bar, thin."""
    bar = figure.colorbar(mapped, ax=axes, fraction=0.04, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0)
    bar.minorticks_off()
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
    bar.set_label(label)
