"""How the study of one size stands at this moment, by its ledger."""

import time
from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from cca_ray.contracts import MetricInfo, Prospect
from cca_ray.registry import metric_info
from cca_ray.search.arms import Arm, trials_of
from cca_ray.search.ledger import Ledger, Running
from cca_ray.search.records import ENDED, readable, rung_scores, seconds_of
from cca_ray.terminal.snapshot import COMPARING, AtWork, Best, SizeSnapshot
from cca_ray.verdict import best_of

PHASES = {"control": "search", "search": "search", "replicate": "replicates"}


def snapshot_of(ledger: Ledger, before: SizeSnapshot | None = None) -> SizeSnapshot:
    """Of a study at this moment. `before`: how it stood since which no trial began or ended; spares the storage."""
    at_work = tuple(at_work_of(running) for running in ledger.running.values())
    if before is not None:
        return before.model_copy(update={"at_work": at_work})
    trials, search = trials_of(ledger.arms), ledger.arms[-1]
    states = Counter(trial.state for trial in trials)
    planned, ended = sum(arm.planned() for arm in ledger.arms), sum(states[state] for state in ENDED)
    comparing = not at_work and (ended >= planned or (ledger.search_over and not states[TrialState.RUNNING]))
    metric = metric_info(search.metrics[0])
    return SizeSnapshot(
        size=ledger.config.name,
        phase=COMPARING if comparing else PHASES[search.name],
        planned=planned,
        ended={state.name: states[state] for state in ENDED if states[state]},
        arms={arm.name: (len(arm.ended()), arm.planned()) for arm in reversed(ledger.arms)},
        at_work=at_work,
        metric=metric,
        best=best_trial(search, metric),
        prospect=None if comparing else prospect_of(ledger, search),
        seconds_left=None if comparing else seconds_left(ledger, trials, at_work),
        at=time.time(),
    )


def at_work_of(running: Running) -> AtWork:
    info, report, place = running.info, running.report, running.place
    step, total = (report.step, report.total_steps) if report else (0, 0)
    pace = report.seconds / step if report and step else None  # a step, what scoring takes included
    return AtWork(
        arm=info.arm,
        number=info.number,
        trials=info.planned,
        settings=readable(info.params),
        step=step,
        total=total,
        images_per_second=running.images_per_second,
        values=running.score.values if running.score else {},
        accelerator=place.accelerator if place else "",
        workers=place.workers if place else 0,
        seconds_left=None if pace is None else pace * (total - step),
        reported=running.reported,
    )


def prospect_of(ledger: Ledger, search: Arm) -> Prospect | None:
    """What another trial should bring, from as many completed ones on as the grace at a rung."""
    if search.name != "search" or len(search.ended(TrialState.COMPLETE)) < ledger.config.search.grace_trials:
        return None
    return search.prospect()


def best_trial(arm: Arm, metric: MetricInfo) -> Best | None:
    """By the score of the last rung."""
    trials = {trial.number: trial for trial in arm.ended(TrialState.COMPLETE)}
    scores = {number: rung_scores(trial)[-1] for number, trial in trials.items()}
    number = best_of(scores, metric)
    if number is None:
        return None
    return Best(arm=arm.name, number=number, settings=readable(trials[number].params), values=scores[number].values)


def seconds_left(ledger: Ledger, trials: Sequence[FrozenTrial], at_work: Sequence[AtWork]) -> float | None:
    """Until the size is done, if trials take as long as those that have ended; None as long as there are none."""
    took = [seconds_of(trial) for trial in trials if trial.state in ENDED]
    if not any(took):
        return None
    mean = sum(took) / len(took)
    waiting = 0 if ledger.search_over else sum(arm.planned() for arm in ledger.arms) - len(trials)
    busy = sum(mean if trial.seconds_left is None else trial.seconds_left for trial in at_work)
    left = (busy + mean * max(0, waiting)) / max(1, len(at_work)) + ledger.final_seconds()
    limit = ledger.limits.seconds - (time.monotonic() - ledger.limits.started)
    return max(0.0, min(left, limit))
