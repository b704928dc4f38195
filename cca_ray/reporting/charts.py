"""The report's figures: pure functions from a study's results to matplotlib figures.

What a colour says, a mark, a dash or a word says too.  Only what was scored alike is joined by a line.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import optuna
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, NullLocator

from cca_ray.reporting.results import SizeResults, TrialRow
from cca_ray.reporting.style import (
    HEIGHT,
    INK,
    LIGHT,
    LINE,
    MUTED,
    PAPER,
    STEEP,
    WIDTH,
    canvas,
    coloured,
    end_labels,
    is_x,
    log_axis,
    number,
    score,
    score_axis,
    steps_of_colour,
    steps_of_setting,
    styled,
)  # fmt: skip
from cca_ray.search.final_comparison import front

MODELS: dict[str, tuple[str, str, Any]] = {  # of the final comparison: what they are called, mark, dash
    "base": ("without guidance", "o", (0, (1, 1.5))),
    "guided": ("with guidance, 2× cost", "s", (0, (5, 2))),
    "control": ("control", "^", (0, (3, 1.5, 1, 1.5))),
    "cca": ("CCA, no guidance", "D", "-"),
}
AXIS = {"fid": "FID", "inception_score": "inception score", "lambda": "λ", "learning_rate": "learning rate"}
FEWEST = 8  # completed trials from which importances are told
LABELLED = 20  # points that carry their values, at most


def named(name: str) -> str:
    return AXIS.get(name, name.replace("_", " "))


@styled
def by_size(sizes: Sequence[SizeResults], metrics: Sequence[str] = ("fid",)) -> Figure:
    """The paper's figure: scores of finished sizes against their parameters; a row a family, a column a metric."""
    families = list(dict.fromkeys(size.family for size in sizes))
    shape = (len(families), len(metrics))
    figure = Figure(figsize=(WIDTH * shape[1], HEIGHT * shape[0]), layout="constrained")
    for row, family in zip(figure.subplots(*shape, squeeze=False), families, strict=True):
        for axes, metric in zip(row, metrics, strict=True):
            draw_by_size(axes, [size for size in sizes if size.family == family], metric)
            if len(families) * len(metrics) > 1:
                axes.set_title(f"{family}: {named(metric)} by size", fontsize=10, loc="left")
    return figure


def draw_by_size(axes: Axes, sizes: Sequence[SizeResults], metric: str) -> None:
    sizes = sorted(sizes, key=lambda size: size.row["params"])
    x = [size.row["params"] for size in sizes]
    one_protocol = len({size.protocol for size in sizes}) == 1
    for model, (_, mark, dash) in MODELS.items():
        y = [size.row[f"{metric}_{model}"] for size in sizes]
        spread = [size.row[f"std_{model}"] for size in sizes] if metric == "fid" else None
        line = dash if one_protocol else "none"
        style: dict[str, Any] = {"color": LIGHT[model], "marker": mark, "markersize": 5, "linestyle": line}
        axes.errorbar(x, y, spread, elinewidth=0.9, capsize=2, linewidth=1.8 if model == "cca" else 1.2, **style)
    log_axis(axes.xaxis, min(x), max(x))
    axes.xaxis.set_major_locator(FixedLocator(x))
    axes.set_xlim(min(x) / 1.35, max(x) * 1.2)
    if metric == "fid":
        axes.set_ylim(bottom=0)
    axes.set_xlabel("parameters")
    axes.set_ylabel(named(metric))
    axes.yaxis.grid(visible=True, color=LINE, linewidth=0.5)
    axes.set_axisbelow(True)
    ends = [(sizes[-1].row[f"{metric}_{model}"], MODELS[model][0], LIGHT[model]) for model in MODELS]
    end_labels(axes, ends)


@styled
def landscape(size: SizeResults) -> Figure:
    """Score over the first two of what was searched, λ and learning rate; or over the one. All trials of the search."""
    figure, axes = canvas()
    names, done = list(size.space), scored(size)
    other = names[1] if len(names) > 1 else None

    def place(trials: Sequence[TrialRow]) -> tuple[list[float], list[float]]:
        whole = [t for t in trials if set(names) <= set(t.params)]  # one may have been killed before it had all
        return [t.params[names[0]] for t in whole], [t.params[other] if other else t.last(size.metric) for t in whole]

    if done:
        values = [t.last(size.metric) for t in done]
        colours, norm = steps_of_colour(values, size.high_is_best)
        mapped = axes.scatter(*place(done), c=values, cmap=colours, norm=norm, s=46, edgecolor=INK, linewidth=0.6)
        if other:
            coloured(figure, axes, mapped, named(size.metric))
        if other and len(done) <= LABELLED:
            for x, y, value in zip(*place(done), values, strict=True):
                axes.annotate(score(value), (x, y), (0, 6), textcoords="offset points", ha="center", fontsize=8)
    stopped = [t for t in size.of("search", "PRUNED") if t.rungs]
    axes.scatter(*place(stopped), s=34, facecolor="none", edgecolor=MUTED, linewidth=1)
    if other:
        axes.scatter(*place(size.of("search", "FAIL")), s=34, marker="x", color=LIGHT["guided"], linewidth=1.4)
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
    axes.set_xlabel(named(names[0]))
    axes.set_ylabel(named(other or size.metric))
    key(axes, size)
    return figure


def span(axis: Any, bounds: dict[str, Any]) -> None:
    """The whole of what was searched."""
    low, high, log = bounds["low"], bounds["high"], bounds["log"]
    room = (high / low) ** 0.06 if log else 0.06 * (high - low)
    if log:
        log_axis(axis, low, high)
    (axis.axes.set_xlim if is_x(axis) else axis.axes.set_ylim)(
        (low / room, high * room) if log else (low - room, high + room)
    )


def key(axes: Axes, size: SizeResults) -> None:
    """What the marks mean, of those that are there, above the figure."""
    looks: dict[str, dict[str, Any]] = {
        "COMPLETE": {"label": "completed", "marker": "o", "markerfacecolor": LINE, "markeredgecolor": INK},
        "PRUNED": {"label": "stopped at a rung", "marker": "o", "markerfacecolor": "none", "markeredgecolor": MUTED},
        "FAIL": {"label": "failed", "marker": "x", "markeredgecolor": LIGHT["guided"], "markeredgewidth": 1.4},
        "RUNNING": {"label": "not finished", "marker": "+", "markeredgecolor": MUTED},
    }
    handles = [Line2D([], [], linestyle="", markersize=6, **look) for s, look in looks.items() if size.of("search", s)]
    if size.best:
        what = "winner" if size.summary else "best so far"
        ring: dict[str, Any] = {"markeredgecolor": LIGHT["cca"], "markeredgewidth": 1.8, "markersize": 9}
        handles.append(Line2D([], [], linestyle="", marker="o", label=what, markerfacecolor="none", **ring))
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(0, 1), ncols=4, borderaxespad=0.2, columnspacing=1.2)


def circled(axes: Axes, x: Sequence[float], y: Sequence[float]) -> None:
    """The winner."""
    axes.scatter(x, y, s=130, facecolor="none", edgecolor=LIGHT["cca"], linewidth=1.8, zorder=4)


def crossed(axes: Axes, x: Sequence[float]) -> None:
    """Trials that failed, and so have no score: at the upper edge."""
    edge: dict[str, Any] = {"transform": axes.get_xaxis_transform(), "clip_on": False}
    axes.scatter(x, [1.0] * len(x), **edge, marker="x", color=LIGHT["guided"], linewidth=1.4, s=30)


def scored(size: SizeResults) -> list[TrialRow]:
    return [t for t in size.of("search", "COMPLETE") if math.isfinite(t.last(size.metric))]


@styled
def history(size: SizeResults) -> Figure:
    """Score by trial, in the order of the search: from the first rung to the last, with the best so far."""
    figure, axes = canvas()
    trials = [t for t in size.of("search") if t.rungs]
    for t in trials:
        values = [rung[size.metric] for rung in t.rungs]
        axes.plot([t.number] * len(values), values, color=LINE, linewidth=1.2, marker="_", markersize=5, zorder=1)
    done, stopped = scored(size), [t for t in trials if t.state == "PRUNED"]
    if done:
        x, y = [t.number for t in done], [t.last(size.metric) for t in done]
        error = [2 * t.error for t in done] if size.metric == "fid" else None
        axes.errorbar(x, y, error, linestyle="none", marker="o", markersize=5.5, color=INK, elinewidth=0.7)
        best = np.maximum.accumulate(y) if size.high_is_best else np.minimum.accumulate(y)
        last = max(t.number for t in size.of("search"))
        axes.step([*x, last], [*best, best[-1]], where="post", color=LIGHT["cca"], linewidth=1.4, zorder=2)
        axes.annotate("best\nso far", (last, best[-1]), (7, 0), textcoords="offset points", color=LIGHT["cca"],
                      va="center", fontsize=9, annotation_clip=False)  # fmt: skip
    hollow: dict[str, Any] = {"s": 30, "facecolor": PAPER, "edgecolor": MUTED, "linewidth": 1, "zorder": 3}
    axes.scatter([t.number for t in stopped], [t.last(size.metric) for t in stopped], **hollow)
    if size.best:
        circled(axes, [size.best.number], [size.best.last(size.metric)])
    score_axis(axes.yaxis, [rung[size.metric] for t in trials for rung in t.rungs])
    crossed(axes, [t.number for t in size.of("search", "FAIL")])
    axes.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
    axes.set_xlabel("trial")
    axes.set_ylabel(named(size.metric))
    key(axes, size)
    return figure


@styled
def rungs(size: SizeResults) -> Figure:
    """Score by optimizer step: who went on at each rung, and who was stopped."""
    figure, axes = canvas()
    trials = [t for t in size.of("search") if t.rungs]
    for t in trials:
        steps, values = [rung["step"] for rung in t.rungs], [rung[size.metric] for rung in t.rungs]
        wins = size.best is not None and t.number == size.best.number
        colour, width = (LIGHT["cca"], 2.0) if wins else (MUTED, 0.7)
        axes.plot(steps, values, color=colour, linewidth=width, zorder=3 if wins else 1, alpha=1 if wins else 0.7)
        hollow = t.state == "PRUNED"
        axes.plot(steps[-1:], values[-1:], "o", markersize=5, markeredgecolor=MUTED if hollow else INK,
                  markerfacecolor=PAPER if hollow else (LIGHT["cca"] if wins else LINE), zorder=4)  # fmt: skip
        if wins:
            text = f"{'winner' if size.summary else 'best so far'} {score(values[-1])}"
            place: dict[str, Any] = {"xytext": (6, 0), "textcoords": "offset points", "va": "center"}
            axes.annotate(text, (steps[-1], values[-1]), **place, color=colour, fontsize=9)
    at = sorted({rung["step"] for t in trials for rung in t.rungs})
    axes.xaxis.set_major_locator(FixedLocator(at[:: max(1, len(at) // 6)]))
    axes.set_xlim(at[0] - 0.15 * (at[-1] - at[0] or 1), at[-1] + 0.3 * (at[-1] - at[0] or 1))
    score_axis(axes.yaxis, [rung[size.metric] for t in trials for rung in t.rungs])
    axes.set_xlabel("optimizer step")
    axes.set_ylabel(named(size.metric))
    axes.set_title("every line a trial, from rung to rung", fontsize=9, loc="left")
    return figure


@styled
def importances(size: SizeResults) -> Figure | None:
    """Shares of the score's variance over the completed trials, by fANOVA; None of too few trials or settings."""
    done = scored(size)
    if len(done) < FEWEST or len(size.space) < 2 or len({t.last(size.metric) for t in done}) < 2:
        return None
    study = optuna.create_study()
    study.add_trials([
        optuna.trial.create_trial(params=t.params, distributions=t.frozen.distributions, value=t.last(size.metric))
        for t in done
    ])  # fmt: skip
    shares = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    figure, axes = canvas(0.9 + 0.35 * len(shares))
    names = list(shares)[::-1]
    bars = axes.barh([named(name) for name in names], [shares[name] for name in names], height=0.55, color=LIGHT["cca"])
    axes.bar_label(bars, [f"{100 * shares[name]:.0f} %" for name in names], padding=4)
    axes.set_xlim(0, 1.12)
    axes.xaxis.set_major_locator(NullLocator())
    axes.spines["bottom"].set_visible(False)
    axes.tick_params(axis="y", length=0)
    return figure


@styled
def parallel(size: SizeResults) -> Figure:
    """Every completed trial a line over all that was searched, to its score: better is higher."""
    figure, axes = canvas()
    done, names = scored(size), [*size.space, size.metric]
    scores = [t.last(size.metric) for t in done]
    low, high = min(scores), max(scores)
    low, high = (float(np.quantile(scores, 0.1)), high) if size.high_is_best else (low, float(np.quantile(scores, 0.9)))
    bounds = {**size.space, size.metric: {"low": low, "high": max(high, low * 1.01), "log": high > STEEP * low}}

    def height(name: str, value: float) -> float:
        b = bounds[name]
        at = [math.log(v) if b["log"] else v for v in (value, b["low"], b["high"])]
        share = min(max((at[0] - at[1]) / (at[2] - at[1]), 0.0), 1.0)
        return 1 - share if name == size.metric and not size.high_is_best else share

    colours, norm = steps_of_colour(scores, size.high_is_best)
    for t in sorted(done, key=lambda t: t is size.best):
        y = [height(name, t.params[name]) for name in size.space] + [height(size.metric, t.last(size.metric))]
        wins = t is size.best
        axes.plot(range(len(names)), y, color=LIGHT["cca"] if wins else colours(norm(t.last(size.metric))),
                  linewidth=2.6 if wins else 1, alpha=1 if wins else 0.85)  # fmt: skip
    for i, name in enumerate(names):
        axes.axvline(i, color=MUTED, linewidth=0.6, zorder=0)
        b = bounds[name]
        middle = math.sqrt(b["low"] * b["high"]) if b["log"] else (b["low"] + b["high"]) / 2
        say = score if name == size.metric else number
        for value in (b["low"], middle, b["high"]):
            worst = b["low"] if size.high_is_best else b["high"]  # what is worse yet is drawn there
            more = ("≤ " if size.high_is_best else "≥ ") if name == size.metric and value == worst else ""
            box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5, "alpha": 0.8}
            place: dict[str, Any] = {"xytext": (4, 0), "textcoords": "offset points", "va": "center", "bbox": box}
            axes.annotate(more + say(value), (i, height(name, value)), **place, fontsize=8)
    axes.set_xlim(-0.1, len(names) - 1 + 0.25)
    axes.set_xticks(range(len(names)), [named(name) for name in names])
    axes.yaxis.set_major_locator(NullLocator())
    axes.tick_params(axis="x", length=0)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    return figure


@styled
def trade_off(size: SizeResults) -> Figure:
    """FID against inception score of every completed trial; the front, which no trial beats in both, is joined."""
    figure, axes = canvas()
    done, name = scored(size), next(iter(size.space))
    points = np.array([[t.last("fid"), t.last("inception_score")] for t in done])
    best = front(points * [1, -1])
    values = [t.params[name] for t in done]
    colours, norm = steps_of_setting(values)
    order = np.argsort(points[best][:, 0])
    axes.plot(*points[best][order].T, color=MUTED, linewidth=0.8, zorder=1)
    x, y = points.T.tolist()
    mapped = axes.scatter(x, y, c=values, cmap=colours, norm=norm, s=42, edgecolor=INK, linewidth=0.6, zorder=2)
    for (x, y), value in zip(points[best], np.array(values)[best], strict=True):
        axes.annotate(f"{named(name)} {number(value)}", (x, y), (7, 5), textcoords="offset points", fontsize=8)
    if size.best:
        circled(axes, [size.best.last("fid")], [size.best.last("inception_score")])
    score_axis(axes.xaxis, points[:, 0].tolist())
    axes.set_xlabel("FID (better to the left)")
    axes.set_ylabel("inception score (better above)")
    coloured(figure, axes, mapped, named(name))
    return figure
