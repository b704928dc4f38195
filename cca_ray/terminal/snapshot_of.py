"""A ledger -> how its study stands at this moment."""

import time
from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from cca_ray.contracts import FID, INCEPTION_SCORE, MetricInfo
from cca_ray.search.ledger import Ledger, Running
from cca_ray.search.records import ENDED, readable, rung_scores
from cca_ray.terminal.snapshot import COMPARING, AtWork, Best, SizeSnapshot
from cca_ray.verdict import best_of

PHASES = {"control": "search", "search": "search", "replicate": "replicates"}


def snapshot_of(ledger: Ledger, before: SizeSnapshot | None = None) -> SizeSnapshot:
    """Of a study at this moment. `before`: how it stood since which no trial began or ended; spares the storage."""
    at_work = tuple(at_work_of(running) for running in ledger.running.values())
    if before is not None:
        return before.model_copy(update={"at_work": at_work})
    trials = [arm.ended(*ENDED, TrialState.RUNNING) for arm in ledger.arms]
    states = Counter(trial.state for of_arm in trials for trial in of_arm)
    planned, ended = sum(arm.trials for arm in ledger.arms), sum(states[state] for state in ENDED)
    comparing = not at_work and (ended >= planned or (ledger.used_up and not states[TrialState.RUNNING]))
    metric = metric_of(ledger)
    return SizeSnapshot(
        size=ledger.config.name,
        phase=COMPARING if comparing else PHASES[ledger.arms[-1].name],
        planned=planned,
        ended={state.name: states[state] for state in ENDED if states[state]},
        at_work=at_work,
        metric=metric,
        best=best_trial(trials[-1], metric),
        seconds_left=None if comparing else seconds_left(ledger, [t for of_arm in trials for t in of_arm], at_work),
        at=time.time(),
    )


def at_work_of(running: Running) -> AtWork:
    accelerator, workers, _ = running.where or ("", 0, 0)
    pace = running.seconds / running.step if running.step else None  # a step, what scoring takes included
    return AtWork(
        arm=running.arm.name,
        number=running.trial.number,
        trials=running.arm.trials,
        settings=readable(running.trial.params),
        step=running.step,
        total=running.total,
        images_per_second=running.images_per_second,
        values={} if running.fid is None else {"fid": running.fid},
        accelerator=accelerator,
        workers=workers,
        seconds_left=None if pace is None else pace * (running.total - running.step),
        reported=running.reported,
    )


def metric_of(ledger: Ledger) -> MetricInfo:
    """The first that the search goes by."""
    return INCEPTION_SCORE if ledger.config.search.metric == "inception_score" else FID


def best_trial(trials: Sequence[FrozenTrial], metric: MetricInfo) -> Best | None:
    """Of those that are complete."""
    completed = {trial.number: trial for trial in trials if trial.state == TrialState.COMPLETE}
    scores = {number: rung_scores(trial)[-1] for number, trial in completed.items()}
    number = best_of(scores, metric)
    if number is None:
        return None
    return Best(number=number, settings=readable(completed[number].params), values=scores[number].values)


def seconds_left(ledger: Ledger, trials: Sequence[FrozenTrial], at_work: Sequence[AtWork]) -> float | None:
    """Until the size is done, if trials take as long as those that have ended; None as long as there are none."""
    took = [trial.user_attrs.get("seconds", 0.0) for trial in trials if trial.state in ENDED]
    if not any(took):
        return None
    mean = sum(took) / len(took)
    waiting = 0 if ledger.used_up else sum(arm.trials for arm in ledger.arms) - len(trials)
    busy = sum(mean if trial.seconds_left is None else trial.seconds_left for trial in at_work)
    left = (busy + mean * max(0, waiting)) / max(1, len(at_work)) + ledger.final_seconds()
    limit = ledger.limits.seconds - (time.monotonic() - ledger.limits.started)
    return max(0.0, min(left, limit))
