"""What the report says of a study in words: who won, by how much, at what cost, under which protocol, what failed.

The verdict itself is `verdict`'s. Plain text; escaping is the page's.
"""

from collections import Counter
from collections.abc import Collection, Sequence

from cca_ray.contracts import Finalist, MetricInfo, Role, SizeSummary
from cca_ray.registry import FAMILIES
from cca_ray.reporting.numbers import number, score
from cca_ray.reporting.results import SizeResults, StudyResults
from cca_ray.reporting.settings import Rung, Search
from cca_ray.search.records import RULE, readable
from cca_ray.verdict import (
    JUDGED,
    LENGTH,
    against,
    control_in_words,
    ended_early,
    headline,
    noise,
    of_other,
    scored,
    ties,
    told,
    verdict_in_words,
    versus,
    why_another,
    with_spread,
)

CONTINUED = "continued after it had finished, and not finished again; its results are from before that"
NAMED = 8  # trials that ended for the same reason, at most


def lede(study: StudyResults) -> str:
    """The outcome of a whole study in a sentence or two."""
    done = study.summaries
    if not done:
        return f"{study.name} has not finished: the following is based on interim scores."
    if len(done) == 1:
        text = f"{study.name}: {verdict_in_words(done[0])}."
    else:
        text = (
            f"{study.name}: after {tuning(done)} the models sample without guidance, at half the cost. {headline(done)}"
        )
    left = [*(size.name for size in study.sizes if not size.summary), *study.not_begun]
    have = "have" if len(left) > 1 else "has"
    return text + (f" {len(left)} of its sizes {have} not finished: {', '.join(left)}." if left else "")


def tuning(sizes: Sequence[SizeSummary]) -> str:
    """What was done to the models, if it was the same to all."""
    labels = {size.objective_label for size in sizes}
    return labels.pop() if len(labels) == 1 else "tuning"


def closing(size: SizeSummary) -> str:
    """A finished size, for who reads nothing else: what won, by how much, at what cost, and what lies at an end."""
    judged = "; ".join(f"{versus(size, other)} ({against(size, other)})" for other in JUDGED)
    edges, early = "".join(f" {sentence(told(edge))}" for edge in size.edges), ended_early(size)
    return (
        f"{size.size}: {judged}. {readable(size.winner.params)} won, trial {size.winner.trial}: {size.headline.label} "
        f"{scored(size, 'tuned')} without guidance, at half the sampling cost. It took {size.trials} trials, "
        f"{size.seconds / 60:.1f} minutes and {device_hours(size)}.{edges}{f' {early}' if early else ''}"
    )


def sentence(text: str) -> str:
    """With a capital, unless it begins with a symbol, and a full stop."""
    return f"{text[0].upper() if text[0].isascii() else text[0]}{text[1:]}."


def tile(size: SizeResults) -> tuple[str, list[str]]:
    """A size in a large number and a few lines."""
    best, done = size.best, size.summary
    if not done:
        so_far = f"{size.metric.label} {score(best.last(size.metric))} so far" if best else "no score yet"
        return so_far, [f"Not finished: {progress(size)}.", interim(size)]
    names: dict[Role, str] = {**JUDGED, "base": "the base without guidance"}
    return f"{done.headline.label} {scored(done, 'tuned')}", [
        *(f"{versus(done, other, name)} ({of_other(done, other)})" for other, name in names.items()),
        f"trial {done.winner.trial}, {readable(done.winner.params)}; {hours(size)}",
        *([sentence(f"{done.prospect}")] if done.prospect else []),
        *([early] if (early := ended_early(done)) else []),
        *["± is sampling noise only: one training seed; --replicates 2 adds training noise"]
        * (done.winner.models == 1),
        *[sentence(CONTINUED)] * (not size.finished),
    ]


def progress(size: SizeResults) -> str:
    planned = Counter(t.state for t in size.of("search"))
    names = {"COMPLETE": "completed", "PRUNED": "stopped at a rung", "FAIL": "failed", "RUNNING": "not finished",
             "WAITING": "planned"}  # fmt: skip
    return ", ".join(f"{planned[state]} {name}" for state, name in names.items() if planned[state]) or "no trial yet"


def interim(size: SizeResults) -> str:
    """Of the best so far; and what its score is not."""
    if size.best is None:
        return "No trial of the search has been completed."
    return (
        f"Best so far: {readable(size.best.params)}, {size.metric.label} {size.best.last(size.metric):.2f} on the "
        f"{size.best.rungs[-1].samples:,} images of the last rung, not on fresh noise."
    )


def labels(metrics: Sequence[MetricInfo]) -> str:
    """`FID`, `the front of FID and inception score`."""
    return "the front of " * (len(metrics) > 1) + " and ".join(metric.label for metric in metrics)


def story(size: SizeResults) -> str:
    """A size in a paragraph."""
    space = ", ".join(f"{readable({k: b.low})} to {number(b.high)}" for k, b in size.space.items())
    searched = f"Searched by {labels(size.searched)}: {space}; {progress(size)}."
    done = size.summary
    if not done:
        return f"Not finished. {interim(size)} {searched}"
    tied, text = len(ties(done)), verdict_in_words(done)
    text = text[0].upper() + text[1:] + f". The winner is trial {done.winner.trial}, {readable(done.winner.params)}"
    text += f", tied with {tied} other finalist{'s' * (tied > 1)}. " if tied else ". "
    text += f"{other} " if (other := why_another(done)) else ""
    if "tuned_guided" in done.models:
        text += f"With guidance, it reaches {scored(done, 'tuned_guided')}. "
    return text + searched


def hours(size: SizeResults) -> str:
    """Device time of the trials, by type of card where there are several."""
    if not size.summary or not size.finished or size.summary.device_hours is None:
        return f"{size.trial_seconds / 3600:.2g} hours of trials"
    return device_hours(size.summary)


def device_hours(size: SizeSummary) -> str:
    """The same of a finished size."""
    by = size.device_hours_by_type
    shares = ", ".join(f"{card} {by[card]:.2g}" for card in sorted(by, key=lambda card: -by[card]))
    text = f"{size.device_hours or 0:.2g} {size.device or 'device'}-hours"
    return f"{text} ({shares})" if set(by) - {"CPU"} else text


def cost(size: SizeResults) -> list[str]:
    """Of sampling and of the search."""
    known = size.family in FAMILIES.names()
    passes = FAMILIES.get(size.family).passes if known else "one forward pass per step"
    sampling = (
        f"Sampling: without guidance, as after {size.objective}, an image takes {passes}; with guidance two, "
        "one of them without the condition. Counted in passes: no times were measured."
    )
    used = f"Search: {hours(size)}, including the control"
    done = size.summary if size.finished else None
    seconds = done.seconds if done else size.seconds
    return [sampling, f"{used}; {seconds / 60:.1f} minutes {'in all' if done else 'so far'}, over all runs."]


def failures(size: SizeResults) -> list[str]:
    """Reasons, of all arms, with how many trials each ended."""
    kinds = {"FAIL": "failed", "PRUNED": "stopped", "RUNNING": "not finished"}
    found: dict[tuple[str, str], list[str]] = {}
    for state in kinds:
        for t in size.trials:
            if t.state == state:
                found.setdefault((state, t.reason or "interrupted, or at work"), []).append(f"{t.arm} #{t.number}")
    return [
        f"{len(which)} {kinds[state]}: {reason} ({', '.join(which[:NAMED])}{', …' if len(which) > NAMED else ''})"
        for (state, reason), which in found.items()
    ]


def conditions_of(size: SizeResults) -> tuple[str, str]:
    """What the images of a score are of, at length and in a word."""
    balanced = size.settings.score.labels == "balanced"
    if size.family in FAMILIES.names() and FAMILIES.get(size.family).text_positions:
        often = "as often as images have them" if balanced else "of images drawn at random"
        return f"captions of the token set, {often}", "captions"
    return f"{'class-balanced' if balanced else 'random'} labels", "labels"


USUAL = "surely_worse"  # the rule at rungs of a trial that keeps no other


def at_rungs(rules: Collection[str], search: Search) -> str:
    """Which trials continued."""
    usual = (
        "A trial that is within two standard errors of those that continue also continues, and so do the first "
        f"{search.grace_trials} trials."
    )
    posterior = (
        "{} continued if the Gaussian process of all scores expected of the rest of its training at least 0.7 of what "
        "as much of the best new trial would bring; until one was completed, all continued."
    )
    if USUAL not in rules:
        return posterior.format("A trial")
    return usual if len(rules) == 1 else f"{usual} {posterior.format('Other trials')}"


def protocol(size: SizeResults) -> list[str]:
    """How scores were made, from the study's settings."""
    scoring, train, search = size.settings.score, size.settings.train, size.settings.search
    cuts = [f"top-k {scoring.top_k}" * bool(scoring.top_k), f"top-p {scoring.top_p:g}" * (scoring.top_p < 1)]
    cut = ", ".join(c for c in cuts if c) or "no truncation"
    warmth = f"temperature {scoring.temperature:g}"
    if scoring.last_temperature is not None:
        warmth += f" to {scoring.last_temperature:g} over the steps"
    power = f" (growing over the steps, power {scoring.guidance_power:g})" * (scoring.guidance_power > 0)
    sized = f", resized to {scoring.image_size} pixels" if scoring.image_size else ""

    rules = {t.frozen.user_attrs.get(RULE, USUAL) for t in size.of("search") if t.rungs} or {USUAL}

    def keeps(rung: Rung) -> str:
        share = search.keep if rung.keep is None else rung.keep
        return f", the best {100 * share:g} % continue" if USUAL in rules and rung.at < 1 and share < 1 else ""

    rungs = ", ".join(f"{100 * r.at:g} % of the steps ({r.samples:,} images{keeps(r)})" for r in size.settings.rungs)
    on_base = (size.summary and size.summary.guidance_scales) or scoring.guidance_scales
    blocks, scales = scoring.blocks, ", ".join(f"{s:g}" for s in on_base)
    chosen = f"; s = {size.summary.models['guided'].guidance_scale:g} was chosen" if size.summary else ""
    covers = f"{noise([size.summary])}." if size.summary else ""
    tried = {t.params["learning_rate"] for t in size.of("control") if "learning_rate" in t.params}
    rates = ", ".join(map(number, sorted(tried.union(size.settings.control.learning_rates))))
    conditions, short = conditions_of(size)
    *most, last = (metric.label for metric in size.metrics)
    scores = f"{', '.join(most)} and {last}" if most else last
    control = "plain fine-tuning with the same steps, data order and EMA"
    if {*LENGTH} & search.space.keys():
        control = f"{control_in_words(search.space)}, in the same data order"
    beta = "" if train.beta is None else f" β {train.beta:g},"
    return [
        f"Protocol {size.protocol}: {scores} of {scoring.samples:,} images per block of noise, "
        f"{conditions}, {warmth}, {cut}{sized}. Scores are means over {blocks} fresh "
        f"block{'s' * (blocks > 1)} not used for any choice; as many other blocks selected the guidance scale, the "
        f"control and the winner. {covers}",
        f"The search scored its trials at {rungs}, all on the same {short} and noise. {at_rungs(rules, search)}",
        f"Guidance scales tried on the base{power}: {scales}{chosen}. The control is {control}, and the best of the "
        f"learning rates {rates}. Where the search did not set them: "
        f"objective {train.objective},{beta} {train.global_batch} images per step, {train.epochs} "
        f"epoch{'s' * (train.epochs > 1)}, EMA {train.ema_decay:g}.",
    ]


def finalists(size: SizeResults) -> tuple[Finalist, ...]:
    return size.summary.finalists if size.summary else ()


def finalist_scored(finalist: Finalist, metric: MetricInfo) -> str:
    """`16.17 ± 0.20`; empty where version 0.1.0 kept no score of this metric."""
    value = finalist.score.values.get(metric.name)
    return "" if value is None else with_spread(value, finalist.score.std.get(metric.name))


def warnings(studies: Sequence[StudyResults]) -> list[str]:
    """What a reader must know before comparing numbers."""
    sizes = [(study, size) for study in studies for size in study.sizes]
    lines = [f"{study.name}, {size.name}: not finished; {progress(size)}." for study, size in sizes if not size.summary]
    lines += [f"{study.name}, {size.name}: {CONTINUED}." for study, size in sizes if size.summary and not size.finished]
    lines += [f"{study.name}, {name}: not begun." for study in studies for name in study.not_begun]
    lines += [
        f"{study.name}, {done.size}: {told(edge)}."
        for study in studies
        for done in study.summaries
        for edge in done.edges
    ]
    for family in dict.fromkeys(size.family for _, size in sizes):
        by: dict[str, list[str]] = {}
        for study, size in sizes:
            if size.family == family:
                by.setdefault(size.protocol, []).append(size.name if len(studies) == 1 else f"{study.name}/{size.name}")
        if len(by) > 1:
            groups = "; ".join(f"{protocol}: {', '.join(names)}" for protocol, names in by.items())
            lines.append(
                f"{family}: scores of different protocols are not compared, here or anywhere; compare within a "
                f"protocol only. {groups}."
            )
    return lines
