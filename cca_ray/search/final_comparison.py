"""The end of a study of one size: the best trials, the control and the base, scored again on fresh noise.

Every score is kept in a file, so that a comparison that was cut short goes on where it was.
"""

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from cca_ray.config import ResolvedStudy
from cca_ray.contracts import (
    COMPARED,
    ROLES,
    Finalist,
    Machine,
    MetricInfo,
    MlflowNames,
    Role,
    SizeSummary,
    TradeOff,
)
from cca_ray.placement_config import CPU
from cca_ray.registry import OBJECTIVES
from cca_ray.search import blocks
from cca_ray.search.ahead import Ahead
from cca_ray.search.arms import Arm
from cca_ray.search.cards import CardEffect, card_effects
from cca_ray.search.cleaning import WEIGHTS, best_trials
from cca_ray.search.fresh_scores import Chooser
from cca_ray.search.records import rung_scores
from cca_ray.search.standings import Contender, Standing, contested, difference, surely_better, winner_of
from cca_ray.search.widening import edge_of_control, edge_of_guidance, edges_of_search
from cca_ray.storage.files import atomically, fingerprint
from cca_ray.storage.mirror import exists, pull
from cca_ray.storage.uris import to_uri
from cca_ray.training.tasks import MadeOf, kept_score, scored_weights
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
        raise ValueError(arm.none_completed())
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


def keep_former_winner(trials: Sequence[FrozenTrial], storage: Path, study: str) -> None:
    """Before another takes `winner.pt`: of a study that was cleaned it may be a trial's only weights."""
    for trial in trials:
        own, there = trial_folder(storage, trial.user_attrs["key"]) / WEIGHTS, weights_of(trial, storage, study)
        if there != own:
            atomically(own, partial(shutil.copyfile, there))


def kept_blocks(key: str, storage: Path, protocols: Sequence[str], study: str) -> set[int]:
    """Which blocks, by their place among these protocols' ids, have a score of this model, whose weights are gone."""
    files = [storage / "scores" / f"{key}-{protocol}.npz" for protocol in protocols]
    of = MadeOf("", study)
    return {i for i, file in enumerate(files) if kept_score(file, of, trial_folder(storage, key) / WEIGHTS)}


def as_contender(trial: FrozenTrial, storage: Path, images: int, study: str) -> Contender:
    path = str(weights_of(trial, storage, study))
    return Contender(trial.user_attrs["key"], path, 1.0, tuple(trial.params.items()), images, trial.number)


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


def completed(
    config: ResolvedStudy, arms: Sequence[Arm], images: int, ahead: Ahead
) -> tuple[list[Contender], list[Contender]]:
    """All controls, and the finalists. ValueError if all trials of an arm failed."""

    def trained_on(trial: FrozenTrial) -> int:
        return images * round(trial.params.get("epochs", config.train.epochs))

    by_name, here = {arm.name: arm for arm in arms}, (ahead.storage, trained_on, ahead.scores.study)
    return finalists(by_name["control"], None, *here), finalists(by_name["search"], config.score.finalists, *here)


def costs_of_controls(config: ResolvedStudy, arms: Sequence[Arm], images: int, ahead: Ahead) -> dict[int, float]:
    """On the fresh noise that chooses, by trial; empty of one alone. The finalists are scored beside them."""
    controls, best = completed(config, arms, images, ahead)
    scores = ahead.open()
    scores.standings(blocks.first(config, [[finalist] for finalist in best], controls))
    costs = Chooser(scores, ahead.metrics[0]).costs_of(controls)
    return {c.number: cost for c, cost in zip(blocks.rivals(controls), costs, strict=True)}


def compare(
    config: ResolvedStudy,
    arms: Sequence[Arm],
    replicates: optuna.Study | None,
    images: int,
    ahead: Ahead,
) -> Outcome:
    """Base, guided base, control and finalists, chosen on fresh blocks of noise and scored on others.

    `images`: of the token set; `ahead`: scores the base. Raises ValueError if all trials of an arm failed.
    """
    score, storage, study, headline = config.score, ahead.storage, ahead.scores.study, ahead.metrics[0]
    controls, best = completed(config, arms, images, ahead)
    models = {c: [c, *again(c, replicates, storage, study)] for c in best}
    scores = ahead.open()
    chooser = Chooser(scores, headline)

    first = scores.standings(blocks.first(config, list(models.values()), controls))[: len(best)]
    left = [s.contender for s in contested(first, headline)]
    whole = {s.contender: s for s in scores.standings(blocks.further(config, [models[c] for c in left]))}
    winner, tied = winner_of(list(whole.values()), headline)
    if not exists(path := Path(winner.contender.checkpoint or "")):
        raise ValueError(
            f"{config.name}: {winner.contender.key} won, but its weights are gone: {to_uri(path)}; {REMEDY}"
        )
    chosen: dict[Role, Contender] = {"control": chooser.best_of(controls)}
    if score.winner_guidance_scales:
        chosen["tuned_guided"], _ = chooser.guided(winner.contender, score.winner_guidance_scales, score.widen_guidance)
    wanted = blocks.of_trials(config, list(chosen.values()), list(models.values()), winner.contender)
    standings = scores.standings(wanted)
    base, of_finalists = ahead.result(), standings[len(chosen) :]
    by_role: dict[Role, Standing] = {"base": base.alone, "guided": base.guided}
    by_role |= zip(chosen, standings, strict=False)
    by_role["tuned"] = next(s for s in of_finalists if s.contender == winner.contender)
    selection = [whole.get(s.contender, s) for s in first]
    effects = card_effects([*ahead.scores.on_cards, *scores.on_cards])
    return Outcome(ahead.metrics, by_role, of_finalists, selection, [s.contender for s in tied], base.scales, effects)


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
    beats_base = surely_better(outcome.standings["control"], outcome.standings["base"], headline)
    prospect, short = search.prospect(), len(search.ended()) < config.search.trials
    limit = config.search.stop_when.expected_gain if config.search.stop_when else None
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
            *edge_of_control(config, rate, control.rates(), control.given, beats_base=beats_base),
        ),
        trade_off=trade_off(search, outcome.metrics),
        trials=len(search.ended()),
        seconds=seconds,
        protocol=protocol,
        device="CPU" if set(device_hours) <= {CPU} else "GPU",
        device_hours=sum(device_hours.values()),
        device_hours_by_type=dict(device_hours),
        machine=machine,
        prospect=prospect,
        stopped_below=limit if limit and prospect and short and prospect.expected_gain < limit else None,
        mlflow=mlflow,
    )
