"""Which model is better, by how much, and what cannot be told apart: terminal, report and MLflow all ask here.

Of the final comparison by its headline metric; better is what the metric says is better.
"""

import math
import shlex
from collections.abc import Collection, Mapping, Sequence

import numpy as np

from cca_ray.contracts import Edge, Finalist, MetricInfo, Role, Score, SizeSummary, TradeOff

# Of `compared`.
MARKS = {1: "✓", 0: "≈", -1: "✗"}
WORDS = {1: "better", 0: "equal", -1: "WORSE"}
THAN = {1: "better than", 0: "equal within noise to", -1: "WORSE than"}
LENGTH = ("epochs", "global_batch", "ema_decay")  # of what may be searched: the control has `train`'s
JUDGED: dict[Role, str] = {"guided": "the guided base", "control": "the control"}  # by these the tuned model is judged


def compared(size: SizeSummary, other: Role) -> int:
    """The tuned model beside another: 1 if better, -1 if worse, 0 if the 95 % interval of their difference holds 0.

    Of version 0.1.0 there are no differences: then 0 if they are no further apart than their spread.
    """
    if found := size.differences.get(other):
        sign = 0 if found.low <= 0 <= found.high else int(math.copysign(1, found.value))
        return -sign if size.headline.lower_is_better else sign
    gain = size.headline.cost(size.value(other)) - size.headline.cost(size.value("tuned"))
    spread = math.hypot(size.std("tuned") or 0.0, size.std(other) or 0.0)
    return 0 if abs(gain) <= spread else int(math.copysign(1, gain))


def worst(size: SizeSummary) -> int:
    """The less good of a size's two comparisons: by it the whole size is marked."""
    return min(compared(size, other) for other in JUDGED)


def versus(size: SizeSummary, other: Role, name: str = "") -> str:
    """`✗ WORSE than the guided base`."""
    sign = compared(size, other)
    return f"{MARKS[sign]} {THAN[sign]} {name or JUDGED[other]}"


def in_short(size: SizeSummary, other: Role) -> str:
    """`✓ better, 0.90 ×`, for a table; `✓ better` without a ratio."""
    sign = compared(size, other)
    return ", ".join(filter(None, (f"{MARKS[sign]} {WORDS[sign]}", in_multiples(size, other))))


def difference(size: SizeSummary, other: Role) -> str:
    """`-2.36 (95 %: -3.10 to -1.62)`, tuned minus other; empty of version 0.1.0."""
    found = size.differences.get(other)
    return f"{found.value:+.2f} (95 %: {found.low:+.2f} to {found.high:+.2f})" if found else ""


def noise(sizes: Sequence[SizeSummary]) -> str:
    """Which sources of noise a ± and an interval cover."""
    spread, alone = "± is the spread of one block of fresh noise", of_one_seed(sizes)
    models = {size.winner.models for size in sizes} - {1}
    if not models:
        return (
            f"{spread}: sampling noise only. There is one base and one training seed per size; --replicates 2 adds "
            "training noise"
        )
    seeds = f"{min(models)} training seeds" if len(models) == 1 else "several training seeds"
    text = f"{spread}, and for the tuned model the spread between {seeds}; intervals cover both"
    if alone:
        text += f". Of {', '.join(alone)}, with one training seed, they cover sampling noise only"
    return f"{text}. There is one base per size"


def of_one_seed(sizes: Sequence[SizeSummary]) -> list[str]:
    """The sizes whose winner was trained once."""
    return [size.size for size in sizes if size.winner.models == 1]


def ratio(size: SizeSummary, other: Role, metric: MetricInfo | None = None) -> float | None:
    """The tuned model's value, in multiples of another's; None if one is not above 0, as KID's and recall's may be."""
    tuned, value = size.value("tuned", metric), size.value(other, metric)
    return tuned / value if min(tuned, value) > 0 else None


def in_multiples(size: SizeSummary, other: Role, metric: MetricInfo | None = None) -> str:
    """`0.90 ×`; empty without a ratio."""
    found = ratio(size, other, metric)
    return "" if found is None else f"{found:.2f} ×"


def of_other(size: SizeSummary, other: Role) -> str:
    """`0.90 × 18.00`; without a ratio `-0.02 beside 0.05`."""
    beside = in_multiples(size, other) or f"{size.value('tuned'):.2f} beside"
    return f"{beside} {size.value(other):.2f}"


def with_spread(value: float, std: float | None) -> str:
    """`16.17 ± 0.20`."""
    return f"{value:.2f}" if std is None else f"{value:.2f} ± {std:.2f}"


def scored(size: SizeSummary, role: Role, metric: MetricInfo | None = None) -> str:
    """How a model did, by the headline unless another metric is given."""
    return with_spread(size.value(role, metric), size.std(role, metric))


def ties(size: SizeSummary) -> tuple[Finalist, ...]:
    """The other finalists that cannot be told from the winner."""
    return tuple(f for f in size.finalists if f.tied and f.trial != size.winner.trial)


def best_of(scores: Mapping[int, Score], metric: MetricInfo) -> int | None:
    """The number of the trial with the best score, of equal ones the first; None of no trials."""
    return min(scores, key=lambda number: (metric.cost(scores[number].values[metric.name]), number), default=None)


def front(points: np.ndarray) -> np.ndarray:
    """Which of these points [N, M] no other beats in every coordinate or equals in some and beats in the rest: [N]."""
    no_worse = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    return np.logical_not((no_worse & better).any(0))


def against(size: SizeSummary, other: Role) -> str:
    """`0.90 × 18.00, -1.80 (95 %: -2.40 to -1.20)`: the numbers behind a word."""
    return ", ".join(filter(None, (of_other(size, other), difference(size, other))))


def verdict(size: SizeSummary) -> str:
    """The outcome in one sentence."""
    told = "; ".join(f"{versus(size, other)} ({against(size, other)})" for other in JUDGED)
    return (
        f"{size.size}: {told}. {size.headline.label} {size.value('tuned'):.2f} after {size.objective_label}, sampled "
        "without guidance at half the cost"
    )


def control_in_words(searched: Collection[str]) -> str:
    """What the control is, where these settings were searched: the search may have tried other numbers of steps."""
    own = " and ".join(name for name in LENGTH if name in searched)
    return f"plain fine-tuning with {f'the {own} of `train`' if own else 'the same number of steps'}"


def verdict_in_words(size: SizeSummary) -> str:
    """The same for who does not know the ratios' meaning."""
    return (
        f"after {size.objective_label}, {size.size} samples without guidance at {size.headline.label} "
        f"{scored(size, 'tuned')}: {versus(size, 'guided')} ({size.value('guided'):.2f}), at half its sampling cost, "
        f"and {versus(size, 'control', control_in_words(size.winner.params))} ({size.value('control'):.2f})"
    )


def headline(sizes: Sequence[SizeSummary]) -> str:
    """All sizes in a sentence, by name, what is worse first."""
    told = []
    for other, name in JUDGED.items():
        named = {sign: [size.size for size in sizes if compared(size, other) == sign] for sign in (-1, 0, 1)}
        parts = [f"{MARKS[sign]} {WORDS[sign]}: {', '.join(found)}" for sign, found in named.items() if found]
        told.append(f"Against {name}: {'; '.join(parts)}.")
    return " ".join(told)


EDGES = {  # what people call it, and what of it was tried
    "lambda": ("λ", "searched"),
    "learning_rate": ("the learning rate", "searched"),
    "control_learning_rate": ("the control's learning rate", "tried"),
    "guidance_scale": ("the base's guidance scale", "tried"),
}
BASELINES = ("control_learning_rate", "guidance_scale")  # of EDGES: they say nothing against the winner


def place_of(edge: Edge) -> str:
    """`the lower end of what was searched (0.5 to 20)`."""
    how = EDGES.get(edge.of, ("", "searched"))[1]
    return f"the {'lower' if edge.end == 'low' else 'upper'} end of what was {how} ({edge.low:.3g} to {edge.high:.3g})"


def name_of(edge: Edge) -> str:
    return EDGES.get(edge.of, (edge.of.replace("_", " "), ""))[0]


def options_of(edge: Edge) -> str:
    """Of the same command, which then looks further."""
    return "--fresh " * (not edge.continues) + f"--set {shlex.quote(edge.setting)}"


def told(edge: Edge) -> str:
    """An edge in a sentence, with the options that look beyond it."""
    go_on = "continue with" if edge.continues else "search again with"
    return (
        f"{name_of(edge)}, {edge.value:.3g}, lies at {place_of(edge)}, so the optimum may lie beyond it: {go_on} "
        f"{options_of(edge)}"
    )


def advice(sizes: Sequence[SizeSummary]) -> list[str]:
    """What to do next, a line each, of every size: where to look for better, what to use, what would make it surer."""
    lines = [
        f"{size.size}: {name_of(edge)} is at {place_of(edge)}: {options_of(edge)}"
        for size in sizes
        for edge in size.edges
    ]
    clear = [size for size in sizes if not looks_further(size)]
    for step in dict.fromkeys(sorted(map(next_step, clear), key=STEPS.index)):
        lines.append(f"{', '.join(size.size for size in clear if next_step(size) == step)}: {step}")
    if alone := of_one_seed(sizes):
        of = "one training seed per size" if len(alone) == len(sizes) else f"{', '.join(alone)}: one training seed"
        lines.append(f"{of}: --replicates 2 adds training noise")
    return lines


def looks_further(size: SizeSummary) -> bool:
    """Whether what to do next is to search beyond an end, and nothing else: of one that is not better than both."""
    return worst(size) < 1 and any(edge.of not in BASELINES for edge in size.edges)


def advice_in_short(sizes: Sequence[SizeSummary]) -> str:
    """The same in one sentence, of many sizes."""
    steps = {size.size: LOOK if looks_further(size) else SHORT[next_step(size)] for size in sizes}
    named = {step: [name for name, its in steps.items() if its == step] for step in (LOOK, *SHORT.values())}
    return "; ".join(f"{step}: {', '.join(names)}" for step, names in named.items() if names)


PLAIN, GUIDED, KEEP, EQUAL, ENOUGH, USE = STEPS = (  # the most urgent first
    "plain fine-tuning did better: was the base trained to its end? If so, search wider ranges",
    "worse than guidance: search on with more --trials, or keep guidance",
    "worse than guidance, and more trials would hardly help: keep guidance, or search wider ranges",
    "equal within noise: use winner.pt, or search on with more --trials",
    "equal within noise, and more trials would hardly help: use winner.pt",
    "better than both: use winner.pt",
)
HARDLY = 0.01  # of the best score: what another trial should bring at least to be advised
LOOK = "look beyond the ends, as told above"
SHORT = {
    PLAIN: "search wider ranges",
    GUIDED: "search on or keep guidance",
    KEEP: "keep guidance or search wider ranges",
    EQUAL: "use winner.pt or search on",
    ENOUGH: "use winner.pt",
    USE: "use winner.pt",
}


def next_step(size: SizeSummary) -> str:
    """Of a size whose settings lie inside what was tried, or that is better than both."""
    if compared(size, "control") < 0:
        return PLAIN
    if size.prospect is not None and size.prospect.expected_gain < HARDLY:
        return {-1: KEEP, 0: ENOUGH, 1: USE}[worst(size)]
    return {-1: GUIDED, 0: EQUAL, 1: USE}[worst(size)]


def ended_early(size: SizeSummary) -> str:
    """That `search.stop_when` ended the search, in a sentence; empty where it did not."""
    if size.stopped_below is None:
        return ""
    return (
        f"The search ended after {size.trials} trials, before its number was reached, because another trial was "
        f"expected to improve the best by less than {100 * size.stopped_below:g} % (search.stop_when)."
    )


def best_in_optuna(size: SizeSummary) -> TradeOff | None:
    """The best trial by its last rung, as Optuna names it; None of several metrics, and of version 0.1.0."""
    by_name = {metric.name: metric for metric in size.metrics}
    if len(size.searched) > 1 or size.searched[0] not in by_name or not size.trade_off:
        return None
    metric = by_name[size.searched[0]]
    return min(size.trade_off, key=lambda row: (metric.cost(row.values[metric.name]), row.trial))


def why_another(size: SizeSummary) -> str:
    """Why the winner is not the trial that Optuna calls the best, in a sentence; empty where it is."""
    best = best_in_optuna(size)
    if best is None or best.trial == size.winner.trial:
        return ""
    name = size.searched[0]
    label = next(metric.label for metric in size.metrics if metric.name == name)
    return (
        f"Trial {best.trial} is the best in Optuna, by {label} {best.values[name]:.2f} at its last rung, on the noise "
        f"that all trials share; trial {size.winner.trial} won among the finalists, on fresh noise."
    )
