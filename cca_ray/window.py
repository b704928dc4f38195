"""What a study shows of itself in MLflow besides its trials: experiment, notes, filters, data set, models.

Also the outcome in a table and in a sentence, which the terminal shows too.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cca_ray.champion import settings_of
from cca_ray.config import StudyConfig
from cca_ray.finals import Outcome
from cca_ray.ledger import readable
from cca_ray.scoring import required
from cca_ray.tokens import TokenMeta, TokenSet
from cca_ray.tracking import KEY, DataSet, Tracker

CHAMPION = "champion"  # alias of the winner among the versions of its registered model
COLUMNS = {
    "size": "{size}",
    "parameters": "{params:,}",
    "without guidance": "{fid_base:.2f} ± {std_base:.2f}",
    "with guidance": "{fid_guided:.2f} ± {std_guided:.2f} (s = {guidance_scale:g})",
    "control": "{fid_control:.2f} ± {std_control:.2f}",
    "after CCA": "{fid_cca:.2f} ± {std_cca:.2f}",
    "CCA and guidance": "{fid_cca_guided:.2f} ± {std_cca_guided:.2f}",
    "λ": "{lambda:.3g}",
    "lr": "{learning_rate:.2g}",
    "trials": "{trials}",
    "minutes": "{minutes:.1f}",
}


def table(sizes: list[dict[str, Any]]) -> str:
    """FID by size, as a Markdown table that also reads well on a terminal; ± is the spread of one block of noise."""
    columns = dict(COLUMNS)
    if not all("fid_cca_guided" in size for size in sizes):
        del columns["CCA and guidance"]
    rows = [[form.format(**size, minutes=size["seconds"] / 60) for form in columns.values()] for size in sizes]
    cells = [list(columns), *rows]
    widths = [max(len(row[i]) for row in cells) for i in range(len(columns))]

    def line(row: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(cells[0]), rule, *(line(row) for row in rows)])


def verdict(size: Mapping[str, Any]) -> str:
    """The outcome in one sentence."""
    guided, control = size["fid_cca"] / size["fid_guided"], size["fid_cca"] / size["fid_control"]
    return (
        f"{size['size']}: FID {size['fid_cca']:.2f} after CCA, without guidance: "
        f"{guided:.2f} × the guided base, at half its cost, and {control:.2f} × the control"
    )


def data_set_name(config: StudyConfig) -> str:
    """That of the embedded images, or of the token set's folder."""
    return config.base.embedded or Path(required(config.data.tokens, "data.tokens")).name


def experiment_name(family: str, data_set: str) -> str:
    return f"cca_ray {family} {data_set}"


def experiment_of(config: StudyConfig) -> str:
    """The experiment that a study of this size belongs to."""
    return experiment_name(config.base.family, data_set_name(config))


def registered_name(config: StudyConfig) -> str:
    """The registered model whose versions are winners of this size."""
    return re.sub(r"[^\w.-]", "_", f"cca_ray-{config.base.family}-{data_set_name(config)}-{config.name}")


def trials_filter(parent: str) -> str:
    """For MLflow's search box: all children of the size's run with this key, and nothing else."""
    return f"tags.`{KEY}` LIKE '{parent}/%'"


def ended_filter(parent: str) -> str:
    """The same: trials of the search that were trained to their end."""
    study, size, _ = parent.split("/")
    return f"tags.study = '{study}' and tags.size = '{size}' and tags.arm = 'search' and attributes.status = 'FINISHED'"


def experiment_tags(config: StudyConfig) -> dict[str, str]:
    """The description, and the metric that MLflow charts first."""
    text = f"""\
Condition Contrastive Alignment of {config.base.family} on {data_set_name(config)}: models that sample without guidance.

**Primary metric: `fid`**, lower is better: of images sampled without guidance, on the same noise for all trials. Scores
compare only under one `protocol` (a tag).

A run is a search for one model size: its note has the verdict and a filter for its trials, its artifacts the report.
Below it is a run for every fine-tuning, by the tag `arm`: `search`, `control` (plain fine-tuning with the same budget)
and `replicate` (a finalist with another seed). Steps are optimizer steps. Finalists are models; their `fid_final` and
`is_final` are on fresh noise. The winner is registered, alias `{CHAMPION}`.
"""
    return {
        "mlflow.note.content": text,
        "mlflow.experiment.primaryMetric.name": "fid",
        "mlflow.experiment.primaryMetric.greaterIsBetter": "False",
    }


def data_set_of(config: StudyConfig, data: TokenSet) -> DataSet:
    """The token set as an input of a run."""

    def tensor(name: str, dtype: str, shape: Sequence[int]) -> str:
        return json.dumps([{"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}])

    meta = data.meta
    columns = {
        "features": tensor("tokens", "uint16", [meta.crops, meta.length]),
        "targets": tensor("label", "int64", []),
    }
    profile = {
        "images": len(data.labels),
        "classes": len(meta.class_names),
        "crops": meta.crops,
        "tokens": meta.length,
        "codebook_size": meta.codebook_size,
        "image_size": meta.image_size,
    }
    source = required(config.data.tokens, "data.tokens")
    schema = json.dumps({"mlflow_tensorspec": columns})
    return DataSet(data_set_name(config), data.digest, source, schema, json.dumps(profile))


def note_of_trials(parent: str) -> str:
    return (
        "Its trials that ended, for the search box; sorted by `fid`, the best is on top:\n\n"
        f"    {ended_filter(parent)}\n\nAll its runs, also control, stopped and failed ones:\n\n"
        f"    {trials_filter(parent)}\n"
    )


def show_unfinished(tracker: Tracker, parent: str, how: str) -> None:
    """`how`: running, or how it stopped."""
    tracker.note(parent, f"**{how}**; the verdict comes at the end.\n\n{note_of_trials(parent)}")


def show_outcome(
    tracker: Tracker,
    parent: str,
    config: StudyConfig,
    meta: TokenMeta,
    data_set: DataSet,
    outcome: Outcome,
    summary: dict[str, Any],
    steps: int,
) -> None:
    """On the size's MLflow run, and of its finalists as models."""
    figures = {key.replace("inception_score_", "is_"): value for key, value in summary.items()}
    shown = ("fid_", "std_", "is_", "guidance_scale")
    tracker.metrics(parent, {steps: {k: v for k, v in figures.items() if k.startswith(shown)}})
    tracker.tags(parent, {"protocol": summary["protocol"], "winner": readable(summary["winner"])})
    for standing in outcome.finalists:
        run, checkpoint = f"{parent}/{standing.contender.key}", required(standing.contender.checkpoint, "checkpoint")
        own = {"fid_final": float(standing.fids[0].mean()), "is_final": float(standing.inception_scores[0].mean())}
        tracker.scores(run, own, data_set)
        files = {"model": checkpoint, "tokenizer": required(config.base.tokenizer, "base.tokenizer")}
        tracker.pack(run, parent, files, settings_of(config, meta))
    name, winner = registered_name(config), outcome.standings["cca"].contender
    study, size, _ = parent.split("/")
    tags = {KEY: parent, "study": study, "size": size, "protocol": summary["protocol"], "trial": winner.key}
    tags |= {**summary["winner"], "fid": summary["fid_cca"], "std": summary["std_cca"]}
    text = (
        f"{verdict(summary)}. {readable(summary['winner'])}, trial {winner.number} of study {study}.{ties_of(summary)}"
    )
    tracker.register(f"{parent}/{winner.key}", name, CHAMPION, text, tags)
    tracker.note(parent, final_note(parent, summary, name))


def ties_of(summary: Mapping[str, Any]) -> str:
    """The finalists that cannot be told from the winner, in a sentence; empty if there are none."""
    others = [f for f in summary["finalists"] if f["tied"] and f["trial"] != summary["trial"]]
    named = [readable({key: f[key] for key in summary["winner"]}) for f in others]
    return f" Tied with it: {'; '.join(named)}." if named else ""


def final_note(parent: str, summary: dict[str, Any], registered: str) -> str:
    return (
        f"**{verdict(summary)}.**\n\n{table([summary])}\n\n"
        f"Winner: {readable(summary['winner'])}, trial {summary['trial']}.{ties_of(summary)}\n\n"
        f'    mlflow.pyfunc.load_model("models:/{registered}@{CHAMPION}").predict({{"label": [0, 1]}})\n\n'
        f"{note_of_trials(parent)}"
    )
