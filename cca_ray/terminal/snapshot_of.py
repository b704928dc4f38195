"""How the study of one size stands at this moment, by its ledger."""

import time
from collections import Counter
from collections.abc import Sequence

from optuna.trial import FrozenTrial, TrialState

from cca_ray.search.arms import trials_of
from cca_ray.search.ledger import Ledger, Running
from cca_ray.search.records import ENDED, readable, rung_scores, seconds_of
from cca_ray.search.rungs import cost
from cca_ray.terminal.snapshot import COMPARING, AtWork, Best, Standing

PHASES = {"control": "search", "search": "search", "replicate": "replicates"}


def standing_of(ledger: Ledger, before: Standing | None = None) -> Standing:
    """Of a study at this moment. `before`: how it stood since which no trial began or ended; spares the storage."""
    at_work = tuple(at_work_of(running) for running in ledger.running.values())
    if before is not None:
        return before.model_copy(update={"at_work": at_work})
    trials, search = trials_of(ledger.arms), ledger.arms[-1]
    states = Counter(trial.state for trial in trials)
    planned, ended = sum(arm.trials for arm in ledger.arms), sum(states[state] for state in ENDED)
    comparing = not at_work and (ended >= planned or (ledger.used_up and not states[TrialState.RUNNING]))
    return Standing(
        size=ledger.config.name,
        phase=COMPARING if comparing else PHASES[search.name],
        planned=planned,
        ended={state.name: states[state] for state in ENDED if states[state]},
        at_work=at_work,
        best=best_of(search.ended(TrialState.COMPLETE), search.metrics[0]),
        seconds_left=None if comparing else seconds_left(ledger, trials, at_work),
        at=time.time(),
    )


def at_work_of(running: Running) -> AtWork:
    info, report, place = running.info, running.report, running.place
    step, total = (report.step, report.total_steps) if report else (0, 0)
    pace = running.seconds / step if step else None  # a step, what scoring takes included
    return AtWork(
        arm=info.arm,
        number=info.number,
        trials=info.planned,
        settings=readable(info.params),
        step=step,
        total=total,
        images_per_second=running.images_per_second,
        fid=running.score.values.get("fid") if running.score else None,
        accelerator=place.accelerator if place else "",
        workers=place.workers if place else 0,
        seconds_left=None if pace is None else pace * (total - step),
        reported=running.reported,
    )


def best_of(completed: Sequence[FrozenTrial], metric: str) -> Best | None:
    """Of trials that are complete, by the score of the last rung."""
    if not completed:
        return None
    scored = [(rung_scores(trial)[-1].values, trial) for trial in completed]
    values, trial = min(scored, key=lambda pair: (cost(metric, pair[0][metric]), pair[1].number))
    return Best(
        number=trial.number,
        settings=readable(trial.params),
        fid=values["fid"],
        inception_score=values.get("inception_score"),
    )


def seconds_left(ledger: Ledger, trials: Sequence[FrozenTrial], at_work: Sequence[AtWork]) -> float | None:
    """Until the size is done, if trials take as long as those that have ended; None as long as there are none."""
    took = [seconds_of(trial) for trial in trials if trial.state in ENDED]
    if not any(took):
        return None
    mean = sum(took) / len(took)
    waiting = 0 if ledger.used_up else sum(arm.trials for arm in ledger.arms) - len(trials)
    busy = sum(mean if trial.seconds_left is None else trial.seconds_left for trial in at_work)
    left = (busy + mean * max(0, waiting)) / max(1, len(at_work)) + ledger.final_seconds()
    limit = ledger.limits.seconds - (time.monotonic() - ledger.limits.started)
    return max(0.0, min(left, limit))
