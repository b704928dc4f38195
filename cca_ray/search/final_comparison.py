"""The end of a study of one size: the best trials, the control and the base, scored again on fresh noise.

What chooses is not what is shown: guidance scales, control and winner are chosen on some blocks of noise, the table
shows others.  Every score is kept in a file, so that a comparison that was cut short goes on where it was.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.trial import FrozenTrial, TrialState

from cca_ray.cluster.queue import as_worker
from cca_ray.cluster.stopping import Stop
from cca_ray.config import ResolvedStudy
from cca_ray.evaluation.jackknife import jackknife_error
from cca_ray.evaluation.scoring import Scored
from cca_ray.search.arms import Arm
from cca_ray.search.records import readable, rung_scores
from cca_ray.storage.uris import named
from cca_ray.training.job import Job
from cca_ray.training.tasks import score_checkpoint
from cca_ray.training.trial import trial_folder


@dataclass(frozen=True)
class Contender:
    """A model in the final comparison: a trial's, or the base."""

    key: str  # names the model among all of the study: the trial's, or the size's base
    checkpoint: str | None = None
    guidance_scale: float = 1.0
    params: tuple[tuple[str, float], ...] = ()
    images: int = 0  # that training took, by which settings are cheap or dear
    number: int = -1


@dataclass(frozen=True)
class Standing:
    """How a finalist did on several blocks of fresh noise, with all models that were trained with its settings.

    fids [R, B] of R models and B blocks; without [R, B, G]: the same without each group of the jackknife.
    `images`: the first of the first model on the first block.
    """

    contender: Contender
    fids: np.ndarray
    without: np.ndarray
    inception_scores: np.ndarray
    images: np.ndarray

    @property
    def mean(self) -> float:
        return float(self.fids.mean())

    @property
    def std(self) -> float:
        """Of one block's FID by the jackknife, or, where models of several training seeds were scored, of one model's.

        A few blocks' own spread would be a poor estimate of it: from three it is wrong by half as often as not.
        """
        if len(self.fids) > 1:
            return float(self.fids.mean(1).std(ddof=1))
        return float(np.sqrt(np.mean([jackknife_error(without) ** 2 for without in self.without[0]])))

    def error_beside(self, other: "Standing") -> float:
        """Standard error of the difference of the means: of training seeds where there are several, else of noise.

        All were scored on the same blocks, and the jackknife has groups enough where blocks are few.
        """
        if len(self.fids) > 1:
            difference = self.fids.mean(1) - other.fids.mean(1)
            return float(difference.std(ddof=1) / math.sqrt(len(difference)))
        errors = [jackknife_error(a - b) for a, b in zip(self.without[0], other.without[0], strict=True)]
        return float(np.sqrt(np.square(errors).sum()) / len(errors))


def winner_of(standings: Sequence[Standing]) -> tuple[Standing, list[Standing]]:
    """The winner, and all that cannot be told from the best; of these the cheapest wins, then the better mean."""
    best = min(standings, key=lambda s: (s.mean, s.contender.number))
    tied = [s for s in standings if s is best or s.mean - best.mean <= 2 * s.error_beside(best)]
    return min(tied, key=lambda s: (s.contender.images, s.mean, s.contender.number)), tied


def front(points: np.ndarray) -> np.ndarray:
    """Which of these points [N, M] no other beats in every coordinate or equals in some and beats in the rest: [N]."""
    no_worse = (points[:, None] <= points[None]).all(-1)
    better = (points[:, None] < points[None]).any(-1)
    return np.logical_not((no_worse & better).any(0))


def finalists(arm: Arm, most: int, storage: Path, of_trial: Callable[[FrozenTrial], int]) -> list[Contender]:
    """The best completed trials of an arm. With two metrics, those of the front, lowest FID first.

    `of_trial`: how many images a trial trained on. ValueError if none was completed.
    """
    trials = arm.ended(TrialState.COMPLETE)
    if not trials:
        raise ValueError(
            f"{arm.study.study_name}: no trial was completed; their reasons are above and in MLflow. "
            "Narrow the space, or raise --trials"
        )
    values = np.array([t.values for t in trials])
    chosen = [t for t, on_front in zip(trials, front(values), strict=True) if on_front or values.shape[1] == 1]
    best = sorted(chosen, key=lambda t: (t.values[0], t.number))[:most]
    return [as_contender(trial, storage, of_trial(trial)) for trial in best]


def as_contender(trial: FrozenTrial, storage: Path, images: int) -> Contender:
    key = trial.user_attrs["key"]
    path = str(trial_folder(storage, key) / "model.pt")
    return Contender(key, path, 1.0, tuple(trial.params.items()), images, trial.number)


class Scores:
    """Scores of contenders on blocks of fresh noise, made by all workers that the cluster holds, kept in files."""

    def __init__(self, config: ResolvedStudy, storage: Path, stop: Stop):
        self.config, self.storage, self.stop = config, storage, stop
        self.packed = Job(config, config.train, storage).packed()

    def of(self, wanted: Sequence[tuple[Contender, int]]) -> list[Scored]:
        """Of contenders on the block of this number, from 1; in order. KeyboardInterrupt if it was asked to stop."""
        task = as_worker(score_checkpoint, self.config.placement)
        samples, seed, folder = self.config.score.samples, self.config.score.seed, named(self.storage / "scores")
        refs = []
        for c, block in wanted:
            weights = named(c.checkpoint) if c.checkpoint else None
            refs.append(task.remote(self.packed, folder, c.key, weights, c.guidance_scale, samples, seed + block))
        return self.stop.get(refs)

    def standing(self, models: Sequence[Sequence[Contender]], blocks: Sequence[int]) -> list[Standing]:
        """For every setting, given as all models that were trained with it, how it did on these blocks."""
        wanted = [(c, block) for some in models for c in some for block in blocks]
        scored = iter(self.of(wanted))
        result = []
        for some in models:
            rows = [[next(scored) for _ in blocks] for _ in some]
            result.append(
                Standing(
                    some[0],
                    np.array([[s.score.values["fid"] for s in row] for row in rows]),
                    np.array([[s.score.without["fid"] for s in row] for row in rows]),
                    np.array([[s.score.values["inception_score"] for s in row] for row in rows]),
                    rows[0][0].images,
                )
            )
        return result


@dataclass(frozen=True)
class Outcome:
    """The final comparison of one size: standings on the blocks that the table shows; who ties with the winner."""

    standings: dict[str, Standing]  # base, guided, control, cca, and cca_guided if it was asked for
    finalists: list[Standing]
    tied: list[Contender]


def compare(
    config: ResolvedStudy, arms: Sequence[Arm], replicates: optuna.Study | None, storage: Path, images: int, stop: Stop
) -> Outcome:
    """Base, guided base, control and finalists, chosen on fresh blocks of noise and scored on others.

    `images`: of the token set. Raises ValueError if all trials of an arm failed.
    """
    by_name, score = {arm.name: arm for arm in arms}, config.score

    def trained_on(trial: FrozenTrial) -> int:
        return images * round(trial.params.get("epochs", config.train.epochs))

    scores = Scores(config, storage, stop)
    choosing, shown = range(1, score.blocks + 1), range(score.blocks + 1, 2 * score.blocks + 1)
    base = Contender(f"{config.name}-base")
    controls = finalists(by_name["control"], len(config.control.learning_rates), storage, trained_on)
    best = finalists(by_name["search"], score.finalists, storage, trained_on)
    models = [[c, *again(c, replicates, storage)] for c in best]

    def lowest(contenders: Sequence[Contender]) -> Contender:
        if len(contenders) == 1:
            return contenders[0]
        fids = scores.of([(c, choosing[0]) for c in contenders])
        return min(zip(fids, contenders, strict=True), key=lambda pair: pair[0].score.values["fid"])[1]

    def guided(contender: Contender, scales: Sequence[float]) -> Contender:
        return lowest([replace(contender, guidance_scale=scale) for scale in scales])

    winner, tied = winner_of(scores.standing(models, choosing))
    chosen = {"base": base, "guided": guided(base, score.guidance_scales), "control": lowest(controls)}
    if score.winner_guidance_scales:
        chosen["cca_guided"] = guided(winner.contender, score.winner_guidance_scales)
    standings = scores.standing([*([c] for c in chosen.values()), *models], shown)
    named = dict(zip(chosen, standings, strict=False))
    of_finalists = standings[len(chosen) :]
    named["cca"] = next(s for s in of_finalists if s.contender == winner.contender)
    return Outcome(named, of_finalists, [s.contender for s in tied])


def again(contender: Contender, replicates: optuna.Study | None, storage: Path) -> list[Contender]:
    """The models that were trained with the same settings and other seeds."""
    if replicates is None:
        return []
    done = replicates.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    same = [t for t in done if {**t.params, "seed": 0} == {**dict(contender.params), "seed": 0}]
    return [as_contender(trial, storage, contender.images) for trial in same]


def trade_off(arm: Arm) -> list[dict[str, Any]]:
    """FID and inception score of all completed trials by λ, and whether a trial is on their front."""
    trials = arm.ended(TrialState.COMPLETE)
    marks = [rung_scores(trial)[-1].values for trial in trials]
    on_front = front(np.array([[mark["fid"], -mark["inception_score"]] for mark in marks]))
    rows = [
        {"trial": t.number, **t.params, "fid": m["fid"], "inception_score": m["inception_score"], "front": bool(f)}
        for t, m, f in zip(trials, marks, on_front, strict=True)
    ]
    return sorted(rows, key=lambda row: (row.get("lambda", 0), row["trial"]))


def summarize(config: ResolvedStudy, arms: Sequence[Arm], outcome: Outcome, parameters: int) -> dict[str, Any]:
    """What `summary.json` says of one size: means over the shown blocks, `std_*` of one."""
    standings, winner = outcome.standings, outcome.standings["cca"].contender
    search = next(arm for arm in arms if arm.name == "search")
    params = dict(winner.params)
    return {
        "size": config.name,
        "family": config.base.family,
        "params": parameters,
        **{f"fid_{name}": standing.mean for name, standing in standings.items()},
        **{f"std_{name}": standing.std for name, standing in standings.items()},
        **{f"inception_score_{name}": float(s.inception_scores.mean()) for name, s in standings.items()},
        "guidance_scale": standings["guided"].contender.guidance_scale,
        "lambda": params.get("lambda", config.train.model_dump().get("lambda", 1.0)),
        "learning_rate": params.get("learning_rate", config.train.learning_rate),
        "trials": len(search.ended()),
        "winner": params,
        "trial": winner.number,
        "checkpoint": winner.checkpoint,
        "control_learning_rate": dict(standings["control"].contender.params)["learning_rate"],
        "finalists": [
            {
                "trial": s.contender.number,
                **dict(s.contender.params),
                "fid": s.mean,
                "std": s.std,
                "models": len(s.fids),
                "tied": s.contender in outcome.tied,
            }
            for s in outcome.finalists
        ],
        "trade_off": trade_off(search),
    }


def verdict_on_ties(outcome: Outcome) -> str:
    """A line on the finalists that cannot be told from the winner; empty if there are none."""
    others = [c for c in outcome.tied if c != outcome.standings["cca"].contender]
    if not others:
        return ""
    return f"tied with the winner: {'; '.join(readable(dict(c.params)) for c in others)}"
