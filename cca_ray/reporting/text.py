"""What the report says of a study in words: who won, by how much, at what cost, under which protocol, what failed.

Plain text; escaping is the page's.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from cca_ray.registry import FAMILIES
from cca_ray.reporting.results import SizeResults, StudyResults
from cca_ray.reporting.style import number, score
from cca_ray.search.records import readable

METRICS = {"fid": "FID", "inception_score": "inception score", "both": "the front of FID and inception score"}
NAMED = 8  # trials that ended for the same reason, at most


def compared(row: dict[str, Any], other: str) -> int:
    """CCA beside another model of the final comparison: 1 if better, -1 if worse, 0 if within their spread."""
    gain = row[f"fid_{other}"] - row["fid_cca"]
    return 0 if abs(gain) <= math.hypot(row["std_cca"], row[f"std_{other}"]) else int(math.copysign(1, gain))


def lede(study: StudyResults) -> str:
    """The outcome of a whole study in a sentence or two."""
    rows, left = [size.row for size in study.sizes if size.summary], [s for s in study.sizes if not s.summary]
    if not rows:
        return f"{study.name} has not finished: what follows is what there is so far, on interim scores."
    if len(rows) == 1:
        text = f"{study.name}: {verdict_of(rows[0])}."
    else:
        text = (
            f"{study.name}: after CCA, sampling without guidance {tally(rows, 'guided', 'the guided base')}, at half "
            f"its cost; it {tally(rows, 'control', 'plain fine-tuning with the same budget')}."
        )
    return text + (f" {len(left)} of its sizes not finished." if left else "")


def tally(rows: Sequence[dict[str, Any]], other: str, name: str) -> str:
    """`beats NAME in 2 of 3 sizes and equals it in 1`."""
    verbs, counts = {1: "beats", 0: "equals", -1: "falls short of"}, Counter(compared(row, other) for row in rows)
    said = [f"{verbs[sign]} {{}} in {counts[sign]}" for sign in verbs if counts[sign]]
    return " and ".join([said[0].format(name) + f" of {len(rows)} sizes", *(part.format("it") for part in said[1:])])


def verdict_of(row: dict[str, Any]) -> str:
    """Of one finished size."""
    words = {1: "better than", 0: "as good as", -1: "worse than"}
    return (
        f"after CCA, {row['size']} samples without guidance at FID {row['fid_cca']:.2f} ± {row['std_cca']:.2f}: "
        f"{words[compared(row, 'guided')]} the guided base ({row['fid_guided']:.2f}), at half its sampling cost, and "
        f"{words[compared(row, 'control')]} plain fine-tuning with the same budget ({row['fid_control']:.2f})"
    )


def closing(row: dict[str, Any]) -> str:
    """A finished size, for who reads nothing else: what won, by how much, at what cost."""
    names = {"guided": "the guided base", "control": "plain fine-tuning"}
    guided, control = (
        f"{row['fid_cca'] / row[f'fid_{other}']:.2f} × {name} ({row[f'fid_{other}']:.2f}"
        + (", equal within their spread)" if compared(row, other) == 0 else ")")
        for other, name in names.items()
    )
    return (
        f"{row['size']}: {readable(row['winner'])} won: FID {row['fid_cca']:.2f} ± {row['std_cca']:.2f} without "
        f"guidance, {guided} at half its sampling cost, and {control}. It took {row['trials']} trials, "
        f"{row['seconds'] / 60:.1f} minutes and {device_hours(row)}."
    )


def tile(size: SizeResults) -> tuple[str, list[str]]:
    """A size in a large number and a few lines."""
    best = size.best
    if not size.summary:
        so_far = f"{METRICS[size.metric]} {score(best.last(size.metric))} so far" if best else "no score yet"
        return so_far, [f"Not finished: {progress(size)}.", interim(size)]
    row = size.row
    times = {other: row["fid_cca"] / row[f"fid_{other}"] for other in ("guided", "control", "base")}
    tie = {other: ": equal, within their spread" if compared(row, other) == 0 else "" for other in times}
    return f"FID {row['fid_cca']:.2f} ± {row['std_cca']:.2f}", [
        f"{times['guided']:.2f} × the guided base ({row['fid_guided']:.2f}) at half its cost{tie['guided']}",
        f"{times['control']:.2f} × the control ({row['fid_control']:.2f}){tie['control']}",
        f"{times['base']:.2f} × the base without guidance ({row['fid_base']:.2f}){tie['base']}",
        f"{readable(row['winner'])}; {hours(size)}",
    ]


def progress(size: SizeResults) -> str:
    planned = Counter(t.state for t in size.of("search"))
    names = {"COMPLETE": "completed", "PRUNED": "stopped at a rung", "FAIL": "failed", "RUNNING": "not finished",
             "WAITING": "planned"}  # fmt: skip
    return ", ".join(f"{planned[state]} {name}" for state, name in names.items() if planned[state]) or "no trial yet"


def interim(size: SizeResults) -> str:
    """Of the best so far; and what its score is not."""
    if size.best is None:
        return "No trial has reached its last rung."
    return (
        f"Best so far: {readable(size.best.params)}, {METRICS[size.metric]} {size.best.last(size.metric):.2f} on the "
        f"{size.best.rungs[-1]['samples']:,} images of the last rung, not on fresh noise."
    )


def story(size: SizeResults) -> str:
    """A size in a paragraph."""
    space = ", ".join(f"{readable({k: v['low']})} to {number(v['high'])}" for k, v in size.space.items())
    searched = f"Searched by {METRICS[size.settings['search']['metric']]}: {space}; {progress(size)}."
    if not size.summary:
        return f"Not finished. {interim(size)} {searched}"
    row = size.row
    ties = [f for f in row["finalists"] if f["tied"] and f["trial"] != row["trial"]]
    text = verdict_of(row)
    text = text[0].upper() + text[1:] + f". The winner is trial {row['trial']}, {readable(row['winner'])}"
    text += f", tied with {len(ties)} other finalist{'s' * (len(ties) > 1)}. " if ties else ". "
    if "fid_cca_guided" in row:
        text += f"With guidance too it comes to {row['fid_cca_guided']:.2f} ± {row['std_cca_guided']:.2f}. "
    return text + searched


def hours(size: SizeResults) -> str:
    """Device time of the trials, by type of card where there are several."""
    if not size.summary or "device_hours" not in size.row:
        return f"{size.trial_seconds / 3600:.2g} hours of trials"
    return device_hours(size.row)


def device_hours(row: dict[str, Any]) -> str:
    """The same of a finished size."""
    by = row.get("device_hours_by_type", {})
    shares = ", ".join(f"{card} {by[card]:.2g}" for card in sorted(by, key=lambda card: -by[card]))
    text = f"{row['device_hours']:.2g} {row.get('device', 'device')}-hours"
    return f"{text} ({shares})" if set(by) - {"CPU"} else text


def cost(size: SizeResults) -> list[str]:
    """Of sampling and of the search."""
    known = size.family in FAMILIES.names()
    passes = FAMILIES.get(size.family).passes if known else "one forward pass a step"
    sampling = (
        f"Sampling: without guidance, as after CCA, an image takes {passes}; with guidance it takes two, one of them "
        "without the condition. Counted in passes: no times were measured."
    )
    used = f"Search: {hours(size)}, the control included"
    return [sampling, used + (f"; {size.row['seconds'] / 60:.1f} minutes in all." if size.summary else " so far.")]


def failures(size: SizeResults) -> list[str]:
    """Reasons, of all arms, with how many trials each ended."""
    kinds = {"FAIL": "failed", "PRUNED": "stopped", "RUNNING": "not finished"}
    found: dict[tuple[str, str], list[str]] = {}
    for state in kinds:
        for t in size.trials:
            if t.state == state:
                found.setdefault((state, t.reason or "interrupted, or at work"), []).append(f"{t.arm} {t.number}")
    return [
        f"{len(which)} {kinds[state]}: {reason} ({', '.join(which[:NAMED])}{', …' if len(which) > NAMED else ''})"
        for (state, reason), which in found.items()
    ]


def protocol(size: SizeResults) -> list[str]:
    """How scores were made, from the study's settings."""
    scoring, train, search = size.settings["score"], size.settings["train"], size.settings["search"]
    cuts = [
        f"top-k {scoring['top_k']}" * bool(scoring["top_k"]),
        f"top-p {scoring['top_p']:g}" * (scoring["top_p"] < 1),
    ]
    cut = ", ".join(c for c in cuts if c) or "no truncation"
    sized = f", resized to {scoring['image_size']} pixels" if scoring["image_size"] else ""

    def keeps(rung: dict[str, Any]) -> str:
        share = search["keep"] if rung["keep"] is None else rung["keep"]
        return f", the best {100 * share:g} % go on" if rung["at"] < 1 and share < 1 else ""

    rungs = ", ".join(
        f"{100 * r['at']:g} % of the steps ({r['samples']:,} images{keeps(r)})" for r in size.settings["rungs"]
    )
    blocks, scales = scoring["blocks"], ", ".join(f"{s:g}" for s in scoring["guidance_scales"])
    chosen = f"; s = {size.row['guidance_scale']:g} was chosen" if size.summary else ""
    many = any(f["models"] > 1 for f in finalists(size))
    spread = "models of several training seeds" if many else "one block, by the jackknife"
    beta = f"β {train['beta']:g}, " if "beta" in train else ""
    rates = ", ".join(number(rate) for rate in size.settings["control"]["learning_rates"])
    labels = "class-balanced" if scoring["labels"] == "balanced" else "random"
    return [
        f"Protocol {size.protocol}: FID and inception score of {scoring['samples']:,} images a block of noise, "
        f"{labels} labels, temperature {scoring['temperature']:g}, {cut}{sized}. Scores are means over {blocks} fresh "
        f"block{'s' * (blocks > 1)}, which chose nothing; as many others chose the guidance scale, the control and the "
        f"winner. ± is the spread of {spread}.",
        f"The search scored its trials at {rungs}, all on the same labels and noise. What two standard errors "
        f"cannot tell from those that go on goes on too, and the first {search['grace_trials']} trials always do.",
        f"Guidance scales tried on the base: {scales}{chosen}. The control is plain fine-tuning with the same steps, "
        f"data order and EMA, and the best of the learning rates {rates}. Where the search did not set them: objective "
        f"{train['objective']}, {beta}{train['global_batch']} images a step, {train['epochs']} "
        f"epoch{'s' * (train['epochs'] > 1)}, EMA {train['ema_decay']:g}.",
    ]


def finalists(size: SizeResults) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = size.row["finalists"] if size.summary else []
    return found


def warnings(studies: Sequence[StudyResults]) -> list[str]:
    """What a reader must know before comparing numbers."""
    sizes = [(study, size) for study in studies for size in study.sizes]
    lines = [f"{study.name}, {size.name}: not finished; {progress(size)}." for study, size in sizes if not size.summary]
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
