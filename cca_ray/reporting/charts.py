"""The report's figures: pure functions from a study's results to matplotlib figures.

What a colour says, a mark, a dash or a word says too.  Only what was scored alike is joined by a line.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from cca_ray.contracts import FID, MetricInfo, Role, SizeSummary
from cca_ray.reporting.numbers import number, score, setting_name
from cca_ray.reporting.places import (
    bounds_of_scores,
    height,
    in_landscape,
    in_parallel,
    in_trade_off,
    of_trade_off,
    scored,
)
from cca_ray.reporting.results import SizeResults, TrialRow
from cca_ray.reporting.settings import Bounds
from cca_ray.reporting.style import (
    HEIGHT,
    INK,
    LIGHT,
    LINE,
    MUTED,
    PAPER,
    WIDTH,
    apart_labels,
    canvas,
    coloured,
    end_labels,
    is_x,
    log_axis,
    score_axis,
    steps_of_colour,
    steps_of_setting,
    styled,
)  # fmt: skip
from cca_ray.reporting.text import tuning
from cca_ray.verdict import front

MODELS: dict[Role, tuple[str, str, Any]] = {  # of the final comparison: what they are called, mark, dash
    "base": ("without guidance", "o", (0, (1, 1.5))),
    "guided": ("with guidance, 2× cost", "s", (0, (5, 2))),
    "control": ("control", "^", (0, (3, 1.5, 1, 1.5))),
    "tuned": ("{}, no guidance", "D", "-"),
}
SIDES = {True: ("better to the left", "better below"), False: ("better to the right", "better above")}  # by low is best
LABELLED = 20  # points that carry their values, at most
Look = dict[str, Any]  # matplotlib's keywords


def labelled(values: Sequence[float]) -> list[float]:
    """Of these, in order, those that have room for a number below a logarithmic axis."""
    room, kept = 0.1 * math.log(values[-1] / values[0]), list[float]()
    for value in values:
        if not kept or math.log(value / kept[-1]) > room:
            kept.append(value)
    return kept


@styled
def by_size(sizes: Sequence[SizeSummary], metrics: Sequence[MetricInfo] = (FID,)) -> Figure:
    """The paper's figure: scores of finished sizes against their parameters; a row a family, a column a metric."""
    families = list(dict.fromkeys(size.family for size in sizes))
    shape = (len(families), len(metrics))
    figure = Figure(figsize=(WIDTH * shape[1], HEIGHT * shape[0]), layout="constrained")
    for row, family in zip(figure.subplots(*shape, squeeze=False), families, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            draw_by_size(axes, [size for size in sizes if size.family == family], metric)
            if len(families) * len(metrics) > 1:
                axes.set_title(f"{family}: {metric.label} by size", fontsize=10, loc="left")
    return figure


def draw_by_size(axes: Axes, sizes: Sequence[SizeSummary], metric: MetricInfo) -> None:
    sizes = sorted(sizes, key=lambda size: size.parameters)
    x = [size.parameters for size in sizes]
    one_protocol = len({size.protocol for size in sizes}) == 1
    lowest = min(size.value(role, metric) for size in sizes for role in MODELS)
    for role, (_, mark, dash) in MODELS.items():
        y = [size.value(role, metric) for size in sizes]
        error = [std for size in sizes if (std := size.std(role, metric)) is not None]
        line = dash if one_protocol else "none"
        looks: Look = {"color": LIGHT[role], "marker": mark, "markersize": 5, "linestyle": line}
        looks |= {"elinewidth": 0.9, "capsize": 2, "linewidth": 1.8 if role == "tuned" else 1.2}
        axes.errorbar(x, y, error if len(error) == len(y) else None, **looks)
    log_axis(axes.xaxis, min(x), max(x))
    axes.xaxis.set_major_locator(FixedLocator(labelled(x)))
    axes.set_xlim(min(x) / 1.35, max(x) * 1.2)
    if metric.lower_is_better and lowest >= 0:  # KID may be below
        axes.set_ylim(bottom=0)
    axes.set_xlabel("parameters")
    axes.set_ylabel(metric.label)
    axes.yaxis.grid(visible=True, color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    called = tuning(sizes)
    ends = [(sizes[-1].value(role, metric), MODELS[role][0].format(called), LIGHT[role]) for role in MODELS]
    end_labels(axes, ends)


@styled
def landscape(size: SizeResults) -> Figure:
    """Score over the first two of what was searched, λ and learning rate; or over the one. All trials of the search."""
    figure, axes = canvas()
    names, done = list(size.space), scored(size)
    other = names[1] if len(names) > 1 else None

    def place(trials: Sequence[TrialRow]) -> tuple[list[float], list[float]]:
        found = [at for t in trials for at in in_landscape(size, t)]
        return [x for x, _ in found], [y for _, y in found]

    if done:
        values = [t.last(size.metric) for t in done]
        colours, norm = steps_of_colour(values, not size.metric.lower_is_better)
        mapped = axes.scatter(*place(done), c=values, cmap=colours, norm=norm, s=46, edgecolor=INK, linewidth=0.6)
        if other:
            coloured(figure, axes, mapped, size.metric.label)
    axes.scatter(*place(size.of("search", "PRUNED")), s=34, facecolor="none", edgecolor=MUTED, linewidth=1)
    if other:
        axes.scatter(*place(size.of("search", "FAIL")), s=34, marker="x", color=LIGHT["bad"], linewidth=1.4)
        axes.scatter(*place(size.of("search", "RUNNING")), s=34, marker="+", color=MUTED, linewidth=1)
    else:
        crossed(axes, place(size.of("search", "FAIL"))[0])
    if size.best:
        circled(axes, *place([size.best]))
    for axis, name in ((axes.xaxis, names[0]), (axes.yaxis, other)):
        if name:
            span(axis, size.space[name])
    if not other:
        score_axis(axes.yaxis, [t.last(size.metric) for t in done])
    axes.set_xlabel(setting_name(names[0]))
    axes.set_ylabel(setting_name(other) if other else size.metric.label)
    key(axes, size)
    if other and len(done) <= LABELLED:
        best_first = sorted(done, key=lambda t: (t is not size.best, size.metric.cost(t.last(size.metric))))
        texts = [score(t.last(size.metric)) for t in best_first]
        labels = [(point, text) for *point, text in zip(*place(best_first), texts, strict=True)]
        apart_labels(figure, axes, labels, [point for point, _ in labels])
    return figure


def span(axis: Any, bounds: Bounds) -> None:
    """The whole of what was searched."""
    low, high, log = bounds.low, bounds.high, bounds.log
    room = (high / low) ** 0.06 if log else 0.06 * (high - low)
    if log:
        log_axis(axis, low, high)
    (axis.axes.set_xlim if is_x(axis) else axis.axes.set_ylim)(
        (low / room, high * room) if log else (low - room, high + room)
    )


def key(axes: Axes, size: SizeResults) -> None:
    """What the marks mean, of those that are there, above the figure."""
    looks: dict[str, Look] = {
        "COMPLETE": {"label": "completed", "marker": "o", "markerfacecolor": LINE, "markeredgecolor": INK},
        "PRUNED": {"label": "stopped at a rung", "marker": "o", "markerfacecolor": "none", "markeredgecolor": MUTED},
        "FAIL": {"label": "failed", "marker": "x", "markeredgecolor": LIGHT["bad"], "markeredgewidth": 1.4},
        "RUNNING": {"label": "not finished", "marker": "+", "markeredgecolor": MUTED},
    }
    handles = [Line2D([], [], linestyle="", markersize=6, **look) for s, look in looks.items() if size.of("search", s)]
    if size.best:
        what = "winner" if size.summary else "best so far"
        ring: Look = {"markeredgecolor": LIGHT["tuned"], "markeredgewidth": 1.8, "markersize": 9}
        handles.append(Line2D([], [], linestyle="", marker="o", label=what, markerfacecolor="none", **ring))
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(handles=handles, loc="outside upper left", ncols=3, borderaxespad=0.2, columnspacing=1.2)


def circled(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """The winner."""
    axes.scatter(x, y, s=130, facecolor="none", edgecolor=LIGHT["tuned"], linewidth=1.8, zorder=4)


def crossed(axes: Axes, x: Sequence[float]) -> None:
    """Trials that failed, and so have no score: at the upper edge."""
    edge: Look = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.scatter(x, [1.0] * len(x), **edge, marker="x", color=LIGHT["bad"], linewidth=1.4, s=30)


@styled
def history(size: SizeResults) -> Figure:
    """Score by trial, in the order of the search: from the first rung to the last, with the best so far."""
    figure, axes = canvas()
    trials = [t for t in size.of("search") if t.rungs]
    for t in trials:
        values = [rung.values[size.metric.name] for rung in t.rungs]
        axes.plot([t.number] * len(values), values, color=LINE, linewidth=1.2, marker="_", markersize=5, zorder=1)
    done, stopped = scored(size), [t for t in trials if t.state == "PRUNED"]
    if done:
        x, y = [t.number for t in done], [t.last(size.metric) for t in done]
        error = [2 * t.error(size.metric) for t in done]
        axes.errorbar(x, y, error, linestyle="none", marker="o", markersize=5.5, color=INK, elinewidth=0.7)
        best = np.minimum.accumulate(y) if size.metric.lower_is_better else np.maximum.accumulate(y)
        last = max(t.number for t in size.of("search"))
        axes.step([*x, last], [*best, best[-1]], where="post", color=LIGHT["tuned"], linewidth=1.4, zorder=2)
        axes.annotate("best\nso far", (last, best[-1]), (7, 0), textcoords="offset points", color=LIGHT["tuned"],
                      va="center", fontsize=9, annotation_clip=False)  # fmt: skip
    hollow: Look = {"s": 30, "facecolor": PAPER, "edgecolor": MUTED, "linewidth": 1, "zorder": 3}
    axes.scatter([t.number for t in stopped], [t.last(size.metric) for t in stopped], **hollow)
    if size.best:
        circled(axes, [size.best.number], [size.best.last(size.metric)])
    score_axis(axes.yaxis, [rung.values[size.metric.name] for t in trials for rung in t.rungs])
    crossed(axes, [t.number for t in size.of("search", "FAIL")])
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.set_xlabel("trial")
    axes.set_ylabel(size.metric.label)
    key(axes, size)
    return figure


@styled
def rungs(size: SizeResults) -> Figure:
    """Score by optimizer step: who went on at each rung, and who was stopped."""
    figure, axes = canvas()
    trials = [t for t in size.of("search") if t.rungs]
    for t in trials:
        steps, values = [rung.step for rung in t.rungs], [rung.values[size.metric.name] for rung in t.rungs]
        wins = size.best is not None and t.number == size.best.number
        colour, width = (LIGHT["tuned"], 2.0) if wins else (MUTED, 0.7)
        axes.plot(steps, values, color=colour, linewidth=width, zorder=3 if wins else 1, alpha=1 if wins else 0.7)
        hollow = t.state == "PRUNED"
        axes.plot(steps[-1:], values[-1:], "o", markersize=5, markeredgecolor=MUTED if hollow else INK,
                  markerfacecolor=PAPER if hollow else (LIGHT["tuned"] if wins else LINE), zorder=4)  # fmt: skip
        if wins:
            text = f"{'winner' if size.summary else 'best so far'} {score(values[-1])}"
            place: Look = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (steps[-1], values[-1]), **place, color=colour, fontsize=9)
    at = sorted({rung.step for t in trials for rung in t.rungs})
    axes.xaxis.set_major_locator(FixedLocator(at[:: max(1, len(at) // 6)]))
    axes.set_xlim(at[0] - 0.15 * (at[-1] - at[0] or 1), at[-1] + 0.3 * (at[-1] - at[0] or 1))
    score_axis(axes.yaxis, [rung.values[size.metric.name] for t in trials for rung in t.rungs])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(size.metric.label)
    axes.set_title("each line is a trial, from rung to rung", fontsize=9, loc="left")
    return figure


@styled
def parallel(size: SizeResults) -> Figure:
    """Every completed trial a line over all that was searched, to its score: better is higher."""
    figure, axes = canvas()
    done, metric = scored(size), size.metric
    of_scores = bounds_of_scores(size)
    colours, norm = steps_of_colour([t.last(metric) for t in done], not metric.lower_is_better)
    for t in sorted(done, key=lambda t: t is size.best):
        wins = t is size.best
        colour = LIGHT["tuned"] if wins else colours(norm(t.last(metric)))
        axes.plot(
            *zip(*in_parallel(size, t), strict=True),
            color=colour,
            linewidth=2.6 if wins else 1,
            alpha=1 if wins else 0.85,
        )
    for i, bounds in enumerate(size.space.values()):
        scale(axes, i, [(height(bounds, value), number(value)) for value in low_middle_high(bounds)])
    worst = of_scores.high if metric.lower_is_better else of_scores.low  # what is worse yet is drawn there
    more = "≥ " if metric.lower_is_better else "≤ "
    places = [
        (height(of_scores, value), more * (value == worst) + score(value)) for value in low_middle_high(of_scores)
    ]
    scale(axes, len(size.space), [(1 - y if metric.lower_is_better else y, text) for y, text in places])
    names = [*map(setting_name, size.space), metric.label]
    axes.set_xlim(-0.1, len(names) - 1 + 0.25)
    axes.set_xticks(range(len(names)), names)
    axes.yaxis.set_major_locator(NullLocator())
    axes.tick_params(axis="x", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


def low_middle_high(bounds: Bounds) -> tuple[float, float, float]:
    middle = math.sqrt(bounds.low * bounds.high) if bounds.log else (bounds.low + bounds.high) / 2
    return bounds.low, middle, bounds.high


def scale(axes: Axes, x: float, labels: Sequence[tuple[float, str]]) -> None:
    """An axis of parallel coordinates, with text at these heights."""
    axes.axvline(x, color=MUTED, linewidth=0.6, zorder=0)
    for y, text in labels:
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
        place: Look = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "bbox": box}
        axes.annotate(text, (x, y), **place, fontsize=8)


@styled
def trade_off(size: SizeResults) -> Figure | None:
    """Two scores of every completed trial; the front, which no trial beats in both, is joined. None of one metric."""
    if len(of_trade_off(size)) < 2:
        return None
    figure, axes = canvas()
    across, up = of_trade_off(size)
    done, name = scored(size), next(iter(size.space))
    points = np.array([in_trade_off(size, t)[0] for t in done])
    best = front(np.array([[across.cost(x), up.cost(y)] for x, y in points]))
    values = [t.params[name] for t in done]
    colours, norm = steps_of_setting(values)
    order = np.argsort(points[best][:, 0])
    if best.sum() > 1:
        axes.plot(*points[best][order].T, color=MUTED, linewidth=0.8, zorder=1)
    x, y = points.T.tolist()
    mapped = axes.scatter(x, y, c=values, cmap=colours, norm=norm, s=42, edgecolor=INK, linewidth=0.6, zorder=2)
    labels = [
        (tuple(point), f"{setting_name(name)} {number(value)}")
        for point, value in zip(points[best][order], np.array(values)[best][order], strict=True)
    ]
    if size.best:
        circled(axes, [size.best.last(across)], [size.best.last(up)])
    score_axis(axes.xaxis, points[:, 0].tolist())
    axes.set_xlabel(f"{across.label} ({SIDES[across.lower_is_better][0]})")
    axes.set_ylabel(f"{up.label} ({SIDES[up.lower_is_better][1]})")
    coloured(figure, axes, mapped, setting_name(name))
    apart_labels(figure, axes, labels, points.tolist())  # last: the layout is over then
    return figure
