"""What a study shows of itself in MLflow besides its trials: experiment, notes, filters, data set, models."""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from cca_ray.config import ResolvedStudy, StudyConfig
from cca_ray.contracts import ROLES, Role, SizeSummary
from cca_ray.data.tokens import TokenMeta, TokenSet
from cca_ray.registry import FAMILIES, metric_info
from cca_ray.search.final_comparison import Outcome
from cca_ray.search.fresh_scores import headline_of
from cca_ray.search.records import readable
from cca_ray.storage.mirror import pull
from cca_ray.storage.uris import local_path, to_uri
from cca_ray.tracking.names import evaluated, final
from cca_ray.tracking.pyfunc import Settings
from cca_ray.tracking.store import KEY, DataSet
from cca_ray.tracking.tracker import Tracker
from cca_ray.verdict import JUDGED, WORDS, compared, control_in_words, ended_early, ties, told, verdict, why_another

SHARED_VIEW = "mlflow.sharedViewState."  # begins the names of tags that hold a view of the table of runs
CHAMPION = "champion"  # alias of the winner among the versions of its registered model


def data_set_name(config: StudyConfig) -> str:
    """That of the embedded images, or of the token set's folder: the same for its URI as for its local copy."""
    return config.base.embedded or local_path(config.data.tokens or "").name


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


def experiment_tags(config: StudyConfig, measured: Sequence[str]) -> dict[str, str]:
    """The description, and the metric that MLflow charts first, of those that are measured."""
    metric = metric_info(headline_of(config, measured))
    name, way = evaluated(metric.name), "lower" if metric.lower_is_better else "higher"
    text = f"""\
{config.base.family} on {data_set_name(config)}, fine-tuned so that it samples without guidance. The tag `objective`
of a run names the objective.

**Primary metric: `{name}`** ({way} is better), measured on images sampled without guidance, with the same noise for
all trials. Compare scores only under the same `protocol` (a tag).

Each run `STUDY/SIZE` is the search for one model size. Its note contains the verdict and a filter for its trials, its
artifacts the report. It has a child run for every fine-tuning; the tag `arm` is `search`, `control`
({control_in_words(config.search.space)}) or `replicate` (a finalist with another seed).
Steps are optimizer steps. The finalists' models have scores on fresh noise, `final/…`. The tag `winner` marks
the winner, whose model is registered with the alias `{CHAMPION}`.
"""
    return {
        "mlflow.note.content": text,
        "mlflow.experimentKind": "custom_model_development",  # MLflow opens model training, not its pages for agents
        "mlflow.experiment.primaryMetric.name": name,
        "mlflow.experiment.primaryMetric.greaterIsBetter": str(not metric.lower_is_better),
    }


def data_set_of(config: ResolvedStudy, data: TokenSet) -> DataSet:
    """The token set as an input of a run."""

    def tensor(name: str, dtype: str, shape: Sequence[int]) -> str:
        return json.dumps([{"name": name, "type": "tensor", "tensor-spec": {"dtype": dtype, "shape": [-1, *shape]}}])

    meta = data.meta
    columns = {
        "features": tensor("tokens", "uint16", [meta.crops, meta.length]),
        "targets": tensor("caption" if meta.captions else "label", "int64", []),
    }
    profile = {
        "images": len(data.labels),
        "captions" if meta.captions else "classes": meta.conditions,
        "crops": meta.crops,
        "tokens": meta.length,
        "codebook_size": meta.codebook_size,
        "image_size": meta.image_size,
    }
    source = to_uri(config.data.tokens)
    schema = json.dumps({"mlflow_tensorspec": columns})
    return DataSet(data_set_name(config), data.digest, source, schema, json.dumps(profile))


def note_of_trials(parent: str) -> str:
    return (
        "Completed trials of the search (for the search box; sort by `fid` to see the best first):\n\n"
        f"    {ended_filter(parent)}\n\nAll trials, including controls and those that were stopped or failed:\n\n"
        f"    {trials_filter(parent)}\n"
    )


def name_of_view(study: str) -> str:
    return f"cca_ray-{study}"


def view_of_trials(config: StudyConfig, study: str, measured: Sequence[str]) -> dict[str, str]:
    """A tag of the experiment: the table of a study's completed trials, the best first, with settings and scores.

    It is one of those that the browser's own Share button leaves. A link alone would show no settings and no scores.
    """
    metric = metric_info(headline_of(config, measured))
    columns = {
        "tags": ["size", "winner"],
        "params": list(config.search.space),
        "metrics": [*map(evaluated, measured), final(metric.name)],
    }
    view = {
        "searchFilter": f"tags.study = '{study}' and tags.arm = 'search' and attributes.status = 'FINISHED'",
        "orderByKey": f"metrics.`{evaluated(metric.name)}`",
        "orderByAsc": metric.lower_is_better,
        "selectedColumns": [f"{kind}.`{name}`" for kind, names in columns.items() for name in names],
    }
    return {f"{SHARED_VIEW}{name_of_view(study)}": json.dumps(view)}


def link_to_trials(tracker: Tracker, study: str, *, charts: bool = False) -> str:
    """What opens that table in MLflow's browser, among the pages for model training; or charts of the same runs."""
    shared = f"viewStateShareKey={quote(name_of_view(study), safe='')}&workflowType=machine_learning"
    return f"{tracker.page}/#/experiments/{tracker.experiment_id}/runs?{shared}{'&compareRunsMode=CHART' * charts}"


def show_unfinished(tracker: Tracker, parent: str, how: str) -> None:
    """`how`: running, or how it stopped."""
    tracker.note(parent, f"**{how}**; the verdict comes at the end.\n\n{note_of_trials(parent)}")


def names_of(summary: SizeSummary) -> dict[Role, str]:
    """What the models are called in names of metrics: those of the tuned ones by the objective."""
    return {role: role.replace("tuned", summary.objective) for role in ROLES if role in summary.models}


def figures_of(summary: SizeSummary) -> dict[str, float]:
    """The final scores under MLflow's names: `final/fid_base`, …; `std_*`, `difference_*` of the headline."""
    names, figures = names_of(summary), {final("guidance_scale"): summary.models["guided"].guidance_scale}
    for role, name in names.items():
        figures |= {final(m.name, name): summary.value(role, m) for m in summary.metrics}
        if (std := summary.std(role)) is not None:
            figures[final("std", name)] = std
    for role, found in summary.differences.items():
        figures[final("difference", role)] = found.value
        figures[final("at_least_as_good_as", role)] = found.at_least_as_good
    return figures


def show_outcome(
    tracker: Tracker,
    config: ResolvedStudy,
    meta: TokenMeta,
    data_set: DataSet,
    outcome: Outcome,
    summary: SizeSummary,
    steps: int,
) -> None:
    """Figures on the size's MLflow run; its finalists as models that can be loaded."""
    parent = summary.mlflow.key
    tracker.metrics(parent, {steps: figures_of(summary)})
    tags = {"protocol": summary.protocol, "winner": readable(summary.winner.params)}
    tags |= {f"vs_{role}": WORDS[compared(summary, role)].lower() for role in JUDGED}
    tracker.tags(parent, {**tags, "edges": ", ".join(f"{edge.of} {edge.end}" for edge in summary.edges) or "none"})
    compared_again = {standing.contender.number for standing in outcome.finalists}
    for row in summary.trade_off:  # of all completed trials, for an earlier winner may be none any more
        chosen = {"finalist": row.trial in compared_again, "winner": row.trial == summary.winner.trial}
        key = f"{parent}/{config.name}-search-{row.trial:04d}"
        tracker.tags(key, {name: str(is_one).lower() for name, is_one in chosen.items()})
    for standing in outcome.finalists:
        run, checkpoint = f"{parent}/{standing.contender.key}", standing.contender.checkpoint
        assert checkpoint is not None  # only the base has none
        own = {final(metric): float(values[0].mean()) for metric, values in standing.values.items()}
        tracker.scores(run, own, data_set)
        if pull(Path(checkpoint)):  # else they were deleted after an earlier run had brought them there
            files = {"model": checkpoint, "tokenizer": config.base.tokenizer}
            tracker.pack(run, parent, files, Settings.of(config, meta))


def register_champion(tracker: Tracker, summary: SizeSummary, table: str) -> None:
    """Register the winner as champion; the verdict, and the table in Markdown, in the note of the size's run."""
    parent, name, winner = summary.mlflow.key, summary.mlflow.registered_model, summary.winner
    study, size, _ = parent.split("/")
    tags = {KEY: parent, "study": study, "size": size, "protocol": summary.protocol, "trial": str(winner.trial)}
    tags |= {setting: str(value) for setting, value in winner.params.items()}
    tags[summary.headline.name] = str(summary.value("tuned"))
    if (std := summary.std("tuned")) is not None:
        tags["std"] = str(std)
    tied = "; ".join(readable(finalist.params) for finalist in ties(summary))
    what = f"{readable(winner.params)}, trial {winner.trial} of {study}." + f" Tied with it: {tied}." * bool(tied)
    said = verdict(summary)
    tracker.register(summary.mlflow.winner_key, name, CHAMPION, f"{said}. {what}", tags)
    more = [
        *(f"**{told(edge)}**" for edge in summary.edges),
        *filter(None, [why_another(summary), ended_early(summary)]),
    ]
    load = f'    mlflow.pyfunc.load_model("models:/{name}@{CHAMPION}").predict({{"label": [0, 1]}})'
    if FAMILIES.get(summary.family).text_positions:
        load = "The model takes texts, which MLflow cannot give it: sample from it with `cca-ray sample`."
    paragraphs = [f"**{said}.**", table, f"Winner: {what}", *more, load, note_of_trials(parent)]
    tracker.note(parent, "\n\n".join(paragraphs))
