"""The end of a study of one size: the best trials, the control and the base, scored again on fresh noise.

What chooses is not what is shown: guidance scales, control and winner are chosen on some blocks of noise, the table
shows others.  Every score is kept in a file, so that a comparison that was cut short goes on where it was.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from cca_ray.cluster.queue import as_worker
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy, StudyConfig
from cca_ray.contracts import (
    COMPARED,
    FID,
    OLD_METRICS,
    ROLES,
    Finalist,
    Machine,
    MetricInfo,
    MlflowNames,
    Role,
    SizeSummary,
    TradeOff,
)
from cca_ray.evaluation.scoring import Scored
from cca_ray.placement_config import CPU
from cca_ray.registry import OBJECTIVES
from cca_ray.search.arms import Arm
from cca_ray.search.cards import CardEffect, OnCard, card_effects
from cca_ray.search.cleaning import WEIGHTS, best_trials
from cca_ray.search.records import rung_scores
from cca_ray.search.standings import Contender, Standing, contested, difference, winner_of
from cca_ray.search.widening import edge_of_control, edge_of_guidance, edges_of_search, next_scale
from cca_ray.storage.files import fingerprint
from cca_ray.storage.mirror import exists, pull
from cca_ray.storage.uris import to_uri
from cca_ray.training.job import Job
from cca_ray.training.tasks import MadeOf, kept_score, score_checkpoint, scored_weights
from cca_ray.training.trial import trial_folder
from cca_ray.verdict import front

REMEDY = "put them back, or start over with --fresh; `cca-ray report` still shows what there is"
ALWAYS_TOLD = ("lambda", "learning_rate")  # of a winner's settings, also where they were not searched


def finalists(
    arm: Arm, most: int | None, storage: Path, of_trial: Callable[[FrozenTrial], int], study: str
) -> list[Contender]:
    """The best completed trials of an arm. With two metrics, those of the front, lowest FID first.

    `of_trial`: how many images a trial trained on; `study`: the study's id. ValueError if none was completed.
    """
    trials = arm.ended(TrialState.COMPLETE)
    if not trials:
        raise ValueError(
            f"{arm.study.study_name}: no trial was completed; their reasons are above and in MLflow. "
            "Narrow the space, or raise --trials"
        )
    return [as_contender(trial, storage, of_trial(trial), study) for trial in best_trials(trials, most)]


def weights_of(trial: FrozenTrial, storage: Path, study: str) -> Path:
    """Where a completed trial's weights are: in its folder or, if they are gone there, `winner.pt` if it is these."""
    key = trial.user_attrs["key"]
    own, winner = trial_folder(storage, key) / WEIGHTS, storage / key.rsplit("-", 2)[0] / "winner.pt"
    if not exists(own) and (made_of := scored_weights(storage / "scores", key, study)):
        pull(winner)
        if fingerprint(winner) == made_of:
            return winner
    return own


def kept_blocks(key: str, storage: Path, protocols: Sequence[str], study: str) -> set[int]:
    """Which blocks, by their place among these protocols' ids, have a score of this model, whose weights are gone."""
    files = [storage / "scores" / f"{key}-{protocol}.npz" for protocol in protocols]
    of = MadeOf("", study)
    return {i for i, file in enumerate(files) if kept_score(file, of, trial_folder(storage, key) / WEIGHTS)}


def as_contender(trial: FrozenTrial, storage: Path, images: int, study: str) -> Contender:
    path = str(weights_of(trial, storage, study))
    return Contender(trial.user_attrs["key"], path, 1.0, tuple(trial.params.items()), images, trial.number)


def headline_of(config: StudyConfig) -> str:
    """The metric that chooses: the first that the search goes by; FID where that is 0.1.0's other metric."""
    searched = config.search.metrics
    return FID.name if FID.name in config.score.metrics and set(searched) <= set(OLD_METRICS) else searched[0]


def shown_blocks(config: StudyConfig) -> range:
    """Numbers of the blocks of noise that the table shows: others chose what it shows."""
    return range(config.score.blocks + 1, 2 * config.score.blocks + 1)


def at_scales(contender: Contender, scales: Sequence[float]) -> list[Contender]:
    return [replace(contender, guidance_scale=scale) for scale in scales]


class Scores:
    """Scores of contenders on blocks of fresh noise, made by all workers that the cluster holds, kept in files."""

    def __init__(self, config: ResolvedStudy, storage: Path, stop: Stop, study: str):
        """`study`: its id, which another study of the same name would not have."""
        self.config, self.storage, self.stop, self.study = config, storage, stop, study
        self.packed = Job(config, config.train, storage).packed()
        self.on_cards = list[OnCard]()  # what was scored so far, by the metric that chooses
        self.known = dict[tuple[Contender, int], Scored]()

    def of(self, wanted: Sequence[tuple[Contender, int]]) -> list[Scored]:
        """Of contenders on the block of this number, from 1; in order. KeyboardInterrupt if it was asked to stop."""
        unknown = [one for one in dict.fromkeys(wanted) if one not in self.known]
        self.known.update(zip(unknown, self.make(unknown), strict=True))
        return [self.known[one] for one in wanted]

    def make(self, wanted: Sequence[tuple[Contender, int]]) -> list[Scored]:
        task = as_worker(score_checkpoint, self.config.placement)
        samples, seed, folder = self.config.score.samples, self.config.score.seed, to_uri(self.storage / "scores")
        refs = []
        for c, block in wanted:
            weights = to_uri(c.checkpoint) if c.checkpoint else None
            noise = (c.guidance_scale, samples, seed + block)
            refs.append(task.remote(self.packed, folder, c.key, weights, *noise, self.study))
        found: list[Scored] = self.stop.get(refs)
        headline = headline_of(self.config)
        self.on_cards += [
            OnCard(f"{c.key} {c.guidance_scale:g}", block, scored.card, scored.score.values[headline])
            for (c, block), scored in zip(wanted, found, strict=True)
        ]
        return found

    def standings(self, wanted: Sequence[tuple[Sequence[Contender], Sequence[int]]]) -> list[Standing]:
        """For every setting, given as all models that were trained with it, how it did on its blocks."""
        self.of([(c, block) for models, blocks in wanted for c in models for block in blocks])
        result = []
        for models, blocks in wanted:
            rows = [self.of([(c, block) for block in blocks]) for c in models]
            result.append(Standing.of(models[0], [[s.score for s in row] for row in rows], rows[0][0].images))
        return result


@dataclass(frozen=True)
class Chooser:
    """Chooses among contenders by their scores on one block of noise; where there is no choice, nothing is scored."""

    scores: Scores
    metric: MetricInfo
    block: int

    def rivals(self, contenders: Sequence[Contender]) -> Sequence[Contender]:
        """Those among whom there is a choice."""
        return contenders if len(contenders) > 1 else ()

    def costs_of(self, contenders: Sequence[Contender]) -> list[float]:
        found = self.scores.of([(contender, self.block) for contender in contenders])
        return [self.metric.cost(scored.score.values[self.metric.name]) for scored in found]

    def best_of(self, contenders: Sequence[Contender]) -> Contender:
        if not self.rivals(contenders):
            return contenders[0]
        return min(zip(self.costs_of(contenders), contenders, strict=True), key=lambda pair: pair[0])[1]

    def guided(self, contender: Contender, given: Sequence[float], widen: int) -> tuple[Contender, tuple[float, ...]]:
        """At the best of these scales, and of at most `widen` larger ones while the largest is the best; all tried."""
        at = dict(zip(given, at_scales(contender, given), strict=True))
        if len(at) == 1:
            return at[given[0]], tuple(given)
        costs = dict(zip(at, self.costs_of(list(at.values())), strict=True))
        while (further := next_scale(costs, given, widen)) is not None:
            (at[further],) = at_scales(contender, [further])
            (costs[further],) = self.costs_of([at[further]])
        return at[min(costs, key=lambda scale: costs[scale])], tuple(costs)


@dataclass(frozen=True)
class Outcome:
    """The final comparison of one size: standings on the blocks that the table shows; who ties with the winner.

    `metrics`: that were measured; the first one chose. `selection`: the finalists on the blocks that chose. `scales`:
    that were tried on the base.
    """

    metrics: tuple[MetricInfo, ...]
    standings: dict[Role, Standing]  # tuned_guided only if it was asked for
    finalists: list[Standing]
    selection: list[Standing]
    tied: list[Contender]
    scales: tuple[float, ...]
    cards: tuple[CardEffect, ...]

    @property
    def winner(self) -> Contender:
        return self.standings["tuned"].contender


def compare(
    config: ResolvedStudy,
    measured: Sequence[MetricInfo],
    arms: Sequence[Arm],
    replicates: optuna.Study | None,
    storage: Path,
    images: int,
    stop: Stop,
    study: str,
) -> Outcome:
    """Base, guided base, control and finalists, chosen on fresh blocks of noise and scored on others.

    `images`: of the token set; `study`: the study's id. Raises ValueError if all trials of an arm failed.
    """
    by_name, score = {arm.name: arm for arm in arms}, config.score
    metrics = tuple(sorted(measured, key=lambda metric: metric.name != headline_of(config)))
    headline = metrics[0]

    def trained_on(trial: FrozenTrial) -> int:
        return images * round(trial.params.get("epochs", config.train.epochs))

    scores = Scores(config, storage, stop, study)
    choosing, shown = range(1, score.blocks + 1), shown_blocks(config)
    base = Contender(f"{config.name}-base")
    controls = finalists(by_name["control"], None, storage, trained_on, study)
    best = finalists(by_name["search"], score.finalists, storage, trained_on, study)
    models = {c: [c, *again(c, replicates, storage, study)] for c in best}
    chooser = Chooser(scores, headline, choosing[0])

    at_once = [*(m for some in models.values() for m in some), *chooser.rivals(controls),
               *chooser.rivals(at_scales(base, score.guidance_scales))]  # fmt: skip
    scores.of([(contender, choosing[0]) for contender in at_once])  # so that all workers have work
    first = scores.standings([(models[c], choosing[:1]) for c in best])
    left = [s.contender for s in contested(first, headline)]
    whole = {s.contender: s for s in scores.standings([(models[c], choosing) for c in left])}
    winner, tied = winner_of(list(whole.values()), headline)
    if not exists(path := Path(winner.contender.checkpoint or "")):
        raise ValueError(
            f"{config.name}: {winner.contender.key} won, but its weights are gone: {to_uri(path)}; {REMEDY}"
        )
    guided, scales = chooser.guided(base, score.guidance_scales, score.widen_guidance)
    chosen: dict[Role, Contender] = {"base": base, "guided": guided, "control": chooser.best_of(controls)}
    if score.winner_guidance_scales:
        chosen["tuned_guided"], _ = chooser.guided(winner.contender, score.winner_guidance_scales, score.widen_guidance)
    ties = [s.contender for s in tied]
    standings = scores.standings([
        *(([c], shown) for c in chosen.values()),
        *((models[c], shown if c in ties else shown[:1]) for c in best),
    ])  # fmt: skip
    by_role, of_finalists = dict(zip(chosen, standings, strict=False)), standings[len(chosen) :]
    by_role["tuned"] = next(s for s in of_finalists if s.contender == winner.contender)
    selection = [whole.get(s.contender, s) for s in first]
    return Outcome(metrics, by_role, of_finalists, selection, ties, scales, card_effects(scores.on_cards))


def again(contender: Contender, replicates: optuna.Study | None, storage: Path, study: str) -> list[Contender]:
    """The models that were trained with the same settings and other seeds."""
    if replicates is None:
        return []
    done = replicates.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    same = [t for t in done if {**t.params, "seed": 0} == {**dict(contender.params), "seed": 0}]
    return [as_contender(trial, storage, contender.images, study) for trial in same]


def trade_off(arm: Arm, metrics: Sequence[MetricInfo]) -> tuple[TradeOff, ...]:
    """The scores of all completed trials by λ, and whether a trial is on their front."""
    trials = arm.ended(TrialState.COMPLETE)
    scores = [rung_scores(trial)[-1].values for trial in trials]
    on_front = front(np.array([[metric.cost(values[metric.name]) for metric in metrics] for values in scores]))
    rows = [
        TradeOff(trial=t.number, params=t.params, values=values, front=bool(f))
        for t, values, f in zip(trials, scores, on_front, strict=True)
    ]
    return tuple(sorted(rows, key=lambda row: (row.params.get("lambda", 0), row.trial)))


def summarize(
    config: ResolvedStudy,
    arms: Sequence[Arm],
    outcome: Outcome,
    *,
    parameters: int,
    seconds: float,
    protocol: str,
    device_hours: Mapping[str, float],
    machine: Machine,
    mlflow: MlflowNames,
) -> SizeSummary:
    """What `summary.json` says of one size. `device_hours`: by type of card."""
    winner, train = outcome.winner, config.train.model_dump(by_alias=True)
    tuned, headline = outcome.standings["tuned"], outcome.metrics[0]
    differences = {role: difference(tuned, outcome.standings[role], headline) for role in COMPARED}
    control, search = (next(arm for arm in arms if arm.name == name) for name in ("control", "search"))
    rate = dict(outcome.standings["control"].contender.params)["learning_rate"]
    selection = {s.contender.number: s.score() for s in outcome.selection}
    by_trial = {
        s.contender.number: Finalist(
            trial=s.contender.number,
            params=dict(s.contender.params),
            score=s.score(),
            selection=selection[s.contender.number],
            models=len(s.values[outcome.metrics[0].name]),
            tied=s.contender in outcome.tied,
        )
        for s in outcome.finalists
    }
    return SizeSummary(
        size=config.name,
        family=config.base.family,
        objective=config.train.objective,
        objective_label=OBJECTIVES.get(config.train.objective).label,
        parameters=parameters,
        metrics=outcome.metrics,
        searched=config.search.metrics,
        models={role: outcome.standings[role].score() for role in ROLES if role in outcome.standings},
        differences={role: found for role, found in differences.items() if found},
        winner=by_trial[winner.number],
        checkpoint=winner.checkpoint or "",
        settings={**{name: train[name] for name in ALWAYS_TOLD if name in train}, **dict(winner.params)},
        control_learning_rate=rate,
        finalists=tuple(by_trial.values()),
        guidance_scales=outcome.scales,
        edges=(
            *edges_of_search(config, dict(winner.params)),
            *edge_of_guidance(config, outcome.standings["guided"].contender.guidance_scale, outcome.scales),
            *edge_of_control(config, rate, control.rates(), control.given),
        ),
        trade_off=trade_off(search, outcome.metrics),
        trials=len(search.ended()),
        seconds=seconds,
        protocol=protocol,
        device="CPU" if set(device_hours) <= {CPU} else "GPU",
        device_hours=sum(device_hours.values()),
        device_hours_by_type=dict(device_hours),
        machine=machine,
        prospect=search.prospect(),
        mlflow=mlflow,
    )
