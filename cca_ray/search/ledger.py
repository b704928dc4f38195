"""The memory of a study of one size: what to run next, whether a trial goes on at a rung, in which state it ended.

Every decision goes through `Ledger`, which writes it to Optuna's durable storage and tells its listeners.
Running the same study again keeps the trials that have ended and takes up the interrupted ones.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import optuna
from optuna.trial import FrozenTrial, TrialState

from cca_ray.cluster.placement import devices, ways
from cca_ray.config import CONTROL_OBJECTIVE, StudyConfig
from cca_ray.contracts import Attempt, RungScore, TrialReport
from cca_ray.search import budget
from cca_ray.search.arms import Arm, trials_of
from cca_ray.search.budget import Limits, Used
from cca_ray.search.cleaning import best_trials
from cca_ray.search.gp_sampler import worth_going_on
from cca_ray.search.listener import Listener, Place, RungOutcome, TrialEnd, TrialInfo
from cca_ray.search.records import (
    ATTEMPTS,
    DECISION,
    ENDED,
    KEEP_S,
    RULE,
    RUNG,
    STORAGE_ERRORS,
    Decision,
    added,
    attempts_of,
    decision_at_last_rung,
    device_seconds_of,
    end_of,
    rung_scores,
    seconds_of,
    used_device_seconds,
    with_score,
)
from cca_ray.search.rungs import Mark, best_value, goes_on, share_kept
from cca_ray.training.reports import TrialFailure

Say = Callable[[str], None]
FIRST_LINE = 300  # characters of a reason


@dataclass
class Running:
    """A trial in Tune's hands."""

    info: TrialInfo
    arm: Arm
    trial: optuna.Trial
    rungs: set[int]  # steps of those it has passed
    attempts: dict[str, Attempt]  # all at it, by id, as far as they have told
    attempt: str = ""  # the id of the one at work
    kept: float = field(default_factory=time.monotonic)  # when they were last written down
    report: TrialReport | None = None  # the last one
    reported: float = field(default_factory=time.time)  # when it came
    images_per_second: float = 0.0  # when it last trained
    score: RungScore | None = None  # at the last rung that it has passed
    costs: list[float] | None = None  # at the last rung of all
    pruned: bool = False
    error: str = ""  # why the trial failed
    loss: str = ""  # how its process was last lost
    never_ran: bool = False  # whether Ray could not start that process

    @property
    def seconds(self) -> float:
        """Over all attempts, as the next."""
        return sum(attempt.seconds for attempt in self.attempts.values())

    @property
    def device_seconds(self) -> dict[str, float]:
        """By type of card."""
        return added(attempt.device_seconds for attempt in self.attempts.values())

    @property
    def place(self) -> Place | None:
        return Place.of(self.report) if self.report else None

    def take(self, report: TrialReport) -> None:
        self.report, self.reported = report, time.time()
        self.count(report.attempt or Attempt(id="", seconds=report.seconds, device_seconds=report.device_seconds))
        self.images_per_second = report.images_per_second or self.images_per_second
        self.score = report.score or self.score

    def count(self, attempt: Attempt) -> None:
        """Take what an attempt tells of itself. After a resume earlier ones come again, as they were then."""
        self.attempt, before = attempt.id, self.attempts.get(attempt.id)
        if before is None or before.seconds < attempt.seconds:
            self.attempts[attempt.id] = attempt

    def count_silence(self) -> None:
        """The attempt at work was lost: it held its cards since its last report, too."""
        if self.report and self.attempt in self.attempts:
            silence = max(0.0, time.time() - self.reported)
            self.attempts[self.attempt] = self.attempts[self.attempt].longer(silence)
            self.reported += silence

    def keep_attempts(self) -> None:
        """In Optuna's storage."""
        self.kept = time.monotonic()
        self.trial.set_user_attr(ATTEMPTS, [attempt.model_dump() for attempt in self.attempts.values()])
        self.trial.set_user_attr("seconds", self.seconds)
        self.trial.set_user_attr("device_seconds", self.device_seconds)


class Ledger:
    """The state of the study of one size in Optuna, as it happens. `listeners` are told, in this order.

    `limits`: with all replicates that are asked for; `again`: the settings, and seeds, of those that have ended.
    """

    def __init__(
        self,
        config: StudyConfig,
        arms: Sequence[Arm],
        listeners: Sequence[Listener] = (),
        limits: Limits | None = None,
        keep_s: float = KEEP_S,
        again: Sequence[Mapping[str, float]] = (),
    ):
        self.config, self.arms, self.listeners, self.limits = config, arms, [*listeners], limits or Limits()
        self.keep_s, self.again = keep_s, again
        self.running: dict[str, Running] = {}  # by Tune's ids
        self.interrupted = {arm.name: [t.number for t in arm.ended(TrialState.RUNNING)] for arm in arms}
        self.halted_at = math.inf  # since when nothing more is begun, by the monotonic clock
        self.stuck = ""  # why, if it is no one's wish
        self.used_up = False  # the budget
        self.enough = False  # by `search.stop_when`
        self.doubted_at = -1  # how many had ended when it was last to end by that, had none run
        self.all_begun = False  # no trial more begins, as far as is known

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Tune pickles what it is given, for a restore that is never asked for: Optuna's storage is the memory."""
        return type(None), ()

    @contextmanager
    def writing(self) -> Iterator[None]:
        """A storage that cannot be written stops the study; what was not written is done again by the next run."""
        try:
            yield
            for listener in self.listeners:
                listener.on_write()
        except STORAGE_ERRORS as error:
            self.halt(stuck=reason_of(error))

    @property
    def halted(self) -> bool:
        return self.halted_at < math.inf

    def halt(self, stuck: str = "") -> None:
        """Begin nothing more, and let the running trials are writing their checkpoints."""
        self.stuck = self.stuck or stuck
        if not self.halted:
            self.halted_at = time.monotonic()
            for listener in self.listeners:
                listener.on_halt(self.config.name, len(self.running))

    def propose(self, trial_id: str) -> TrialInfo | None:
        """The next fine-tuning; None when all arms are done, the budget is used up or the study is stopping."""
        self.settle()
        self.all_begun = False
        with self.writing():
            if self.hopeless and not self.halted:
                self.halt()
            for arm in self.arms:
                if self.halted:
                    break
                if not (self.interrupted[arm.name] or self.worthwhile(arm)):
                    continue
                trial = arm.propose(self.interrupted[arm.name])
                if trial is not None:
                    return self.begin(trial_id, arm, trial)
        self.all_begun = not self.undecided()
        return None

    def worthwhile(self, arm: Arm) -> bool:
        """Whether a new trial of it may begin: budget and prospect bound the search, the budget a wider control."""
        if arm.begun() < arm.trials:
            return arm.name != "search" or (self.affordable(arm) and self.promising(arm))
        return arm.beyond() is not None and self.affordable(arm)

    @property
    def search_over(self) -> bool:
        """Whether no trial of the search begins any more, though there are fewer than planned."""
        return self.used_up or self.enough

    @property
    def hopeless(self) -> str:
        """Why the study can never end, whatever the search finds; empty if it can."""
        return next(filter(None, (arm.hopeless() for arm in self.arms)), "")

    def at_once(self) -> int:
        """How many trials run or may begin now."""
        running = len(self.running)
        return running if self.all_begun else max(running, self.config.search.max_concurrent)

    def settle(self) -> None:
        """End the interrupted trials that had come to their end, whose driver was killed before it wrote that down."""
        with self.writing():
            for arm in self.arms:
                trials, waiting = arm.study.get_trials(deepcopy=False), self.interrupted[arm.name]
                for number in [n for n in waiting if decision_at_last_rung(trials[n]) in ("stops", "ends")]:
                    waiting.remove(number)
                    self.begin(id := f"{arm.name} {number}", arm, arm.taken_up(number))
                    self.finish(id)

    def undecided(self) -> bool:
        """Whether a trial at work may yet show that its arm needs another: then "none for now" is not the end."""
        return not self.halted and any(r.arm.widen or self.in_doubt(r.arm) for r in self.running.values())

    def in_doubt(self, arm: Arm) -> bool:
        """Whether `search.stop_when` decides about it when its running trials have ended, as the next run would."""
        limited = arm.name == "search" and self.config.search.stop_when is not None
        return limited and not self.search_over and arm.begun() < arm.trials

    def begin(self, trial_id: str, arm: Arm, trial: optuna.Trial) -> TrialInfo:
        values = dict(trial.params)
        if arm.name == "control":
            values["objective"] = CONTROL_OBJECTIVE
        key, train = f"{self.config.name}-{arm.name}-{trial.number:04d}", self.config.train_with(values)
        info = TrialInfo(self.config.name, arm.name, trial.number, arm.planned(), key, trial.params, train)
        frozen = arm.study.get_trials(deepcopy=False)[trial.number]
        trial.set_user_attr("key", key)
        if end_of(frozen)[1]:  # its driver was killed before the state that this was the reason for
            trial.set_user_attr("reason", "")
        scores, decision = rung_scores(frozen), decision_at_last_rung(frozen)
        running = Running(info, arm, trial, {score.step for score in scores}, attempts_of(frozen))
        running.pruned = decision == "stops"
        running.costs = Mark.of(scores[-1], arm.metrics).costs.tolist() if decision == "ends" else None
        self.running[trial_id] = running
        for listener in self.listeners:
            listener.on_trial_start(info)
        return info

    def record(self, trial_id: str, report: TrialReport | TrialFailure) -> bool:
        """Take a report; False stops the trial. A report that was seen before, as after a resume, changes nothing."""
        running = self.running[trial_id]
        running.error = report.reason if isinstance(report, TrialFailure) and not report.stuck else ""
        if isinstance(report, TrialFailure):
            if report.attempt:
                running.count(report.attempt)
            if report.stuck:
                self.halt(stuck=report.reason)
            return True
        before, now = running.place, Place.of(report)
        running.take(report)
        with self.writing():
            for listener in self.listeners:
                if now != before:
                    listener.on_trial_move(running.info, before, now)
                listener.on_trial_result(running.info, report)
            if time.monotonic() - running.kept > self.keep_s:
                running.keep_attempts()
            if report.stopped:
                return False
            return report.score is None or self.at_rung(running, report.score, report.total_steps)
        return True

    def at_rung(self, running: Running, score: RungScore, total_steps: int) -> bool:
        """Decide once; at the last rung there is nothing to decide."""
        if score.step not in running.rungs:
            self.decide(running, score, total_steps)
        if score.step >= total_steps:
            running.costs = Mark.of(score, running.arm.metrics).costs.tolist()
        return not running.pruned

    def decide(self, running: Running, score: RungScore, total_steps: int) -> None:
        """Whether it goes on from this rung; and keep that, and the score."""
        arm, last = running.arm, score.step >= total_steps
        # By the rung's number, not its step: trials may differ in length, but at a rung all have as many samples.
        rung = sum(before < score.step for before in running.rungs)
        trials = arm.study.get_trials(deepcopy=False)
        stops = not last and arm.name == "search" and not self.goes_on(running, rung, score, trials)
        self.keep_score(running, rung, score, "ends" if last else "stops" if stops else "goes on")
        running.rungs.add(score.step)
        running.pruned = stops
        metric = "fid" if "fid" in score.values else arm.metrics[0]
        others = [t for t in trials if t.number != running.info.number]
        best = best_value(metric, [score, *last_scores(others)]) if last else None
        for listener in self.listeners:
            listener.on_rung(running.info, RungOutcome(score, total_steps, not stops, metric, best))

    def goes_on(self, running: Running, rung: int, score: RungScore, trials: Sequence[FrozenTrial]) -> bool:
        """By the rule of `search.rungs`; of several metrics there is one alone. `score`: of the trial at the rung."""
        search, arm, number = self.config.search, running.arm, running.info.number
        if search.rungs == "posterior" and len(arm.metrics) == 1:
            running.trial.set_user_attr(RULE, search.rungs)
            return worth_going_on(arm.question(with_score(trials, number, rung, score), number), rung)
        passed = [rung_scores(t) for t in trials if t.number != number]
        others = [Mark.of(scores[rung], arm.metrics) for scores in passed if len(scores) > rung]
        return goes_on(Mark.of(score, arm.metrics), others, share_kept(self.config, rung), search.grace_trials)

    def keep_score(self, running: Running, rung: int, score: RungScore, decision: Decision) -> None:
        """In Optuna's storage. The score itself comes last: what has it has all, whenever the driver is killed."""
        trial, costs = running.trial, Mark.of(score, running.arm.metrics).costs
        running.keep_attempts()  # of a trial that has come to its end no more may be heard
        trial.set_user_attr(f"{DECISION}{rung}", decision)
        kept = running.arm.study.get_trials(deepcopy=False)[running.info.number].intermediate_values
        if len(costs) == 1 and score.step not in kept:  # Optuna has none of several metrics
            trial.report(costs[0], score.step)
        trial.set_user_attr("protocol", score.protocol)
        for name, value in score.values.items():  # columns by which optuna-dashboard can sort
            trial.set_user_attr(name, value)
        trial.set_user_attr(f"{RUNG}{rung}", score.model_dump())

    def lose(self, trial_id: str, loss: str, never_ran: bool) -> None:
        """Its process was lost; Tune may start it again."""
        running = self.running[trial_id]
        running.loss, running.never_ran = loss, never_ran
        running.count_silence()

    def finish(self, trial_id: str, lost: bool = False) -> None:
        """Write the true final state; Optuna's open trials are taken up by the next run.

        `lost`: its process died more often than it may.

        A trial that neither failed nor was stopped at a rung nor reached its last one was interrupted from outside:
        it stays open in Optuna.
        """
        running = self.running.pop(trial_id, None)
        if running is None:
            return
        if lost and running.never_ran:  # the cluster is going down: the next would fare no better
            self.halt(stuck=f"Ray cannot start a trial: {running.loss}")
        error = running.error or (lost and not self.stuck and (running.loss or "lost its process")) or ""
        with self.writing():
            trial, study, info = running.trial, running.arm.study, running.info
            for listener in self.listeners:
                for name, value in listener.attributes(info).items():
                    trial.set_user_attr(name, value)
            running.keep_attempts()
            if error:
                trial.set_user_attr("reason", error)
                study.tell(info.number, state=TrialState.FAIL)
            elif running.pruned:
                trial.set_user_attr("reason", "not among the best at a rung")
                study.tell(info.number, state=TrialState.PRUNED)
            elif running.costs is not None:
                study.tell(info.number, running.costs)
            end = TrialEnd(*end_of(study.get_trials(deepcopy=False)[info.number]))
            for listener in self.listeners:
                listener.on_trial_complete(info, end)

    def close(self) -> None:
        """Leave no trial running, whatever ended the study."""
        for trial_id in list(self.running):
            self.finish(trial_id)

    def done(self) -> bool:
        """Whether every planned trial has ended, or the search is over before and nothing was left half done."""
        if all(len(arm.ended()) >= arm.planned() for arm in self.arms):
            return True
        open_trials = any(arm.ended(TrialState.RUNNING) for arm in self.arms)
        return self.search_over and not open_trials and not any(map(self.lacks_trials, self.arms))

    def lacks_trials(self, arm: Arm) -> bool:
        """Whether one is left, though the search is over; the given rates of a control are tried whatever they cost."""
        if arm.name == "search":
            return False
        return len(arm.ended()) < (arm.trials if self.used_up else arm.planned())

    def found(self) -> str:
        """What an earlier run left, in a line; empty if nothing."""
        counts = {state: sum(len(arm.ended(state)) for arm in self.arms) for state in (*ENDED, TrialState.RUNNING)}
        if not any(counts.values()):
            return ""
        ended = ", ".join(f"{counts[state]} {state.name.lower()}" for state in ENDED if counts[state])
        open_trials = counts[TrialState.RUNNING]
        return (
            f"found {sum(counts[state] for state in ENDED)} of {sum(arm.planned() for arm in self.arms)} trials ended"
            f"{f' ({ended})' if ended else ''}, {open_trials} interrupted{' and resumed' if open_trials else ''}"
        )

    def affordable(self, arm: Arm) -> bool:
        """Whether the budget allows a trial more; the first of an arm it always does."""
        if not arm.ended() or not self.limits.bound:
            return True
        used, wide = self.used(), devices(ways(self.config.placement)[0])  # placed as they prefer
        limits = replace(self.limits, replicates=self.replicates_left())
        kept = budget.kept_back(limits, used, self.final_seconds(), wide, self.config.search.max_concurrent)
        if budget.affordable(self.limits, time.monotonic(), used, kept):
            return True
        if not self.used_up:
            self.used_up = True
            for listener in self.listeners:
                listener.on_budget_end(self.config.name, kept[0])
        return False

    def replicates_left(self) -> int:
        """Those that ended count as far as their settings are finalists': another trial may have pushed them out."""
        search = [t for arm in self.arms if arm.name == "search" for t in arm.ended(TrialState.COMPLETE)]
        best = [{**t.params, "seed": 0} for t in best_trials(search, self.config.score.finalists)]
        return max(0, self.limits.replicates - sum({**params, "seed": 0} in best for params in self.again))

    def promising(self, arm: Arm) -> bool:
        """Whether another trial is worth it, by `search.stop_when`; as many as the grace at a rung always are.

        While trials run, "no" is only for now: what they come to may say otherwise, now or when the study is continued.
        """
        limit = self.config.search.stop_when
        if limit is None or len(arm.ended(TrialState.COMPLETE)) < self.config.search.grace_trials:
            return True
        running, ended = any(r.arm is arm for r in self.running.values()), len(arm.ended())
        if running and ended == self.doubted_at:  # Tune asks many times a second
            return False
        found = arm.prospect()
        if found is None or found.expected_gain >= limit.expected_gain:
            return True
        if running:
            self.doubted_at = ended
        elif not self.enough:
            self.enough = True
            for listener in self.listeners:
                listener.on_enough(self.config.name, found)
        return False

    def used(self) -> Used:
        """By what Optuna keeps, and the trials that run tell."""
        completed = [t for arm in self.arms for t in arm.ended(TrialState.COMPLETE)]
        running = {(running.arm.name, running.info.number) for running in self.running.values()}
        others = [t for arm in self.arms for t in trials_of([arm]) if (arm.name, t.number) not in running]
        return Used(
            device_seconds=sum(used_device_seconds(others).values()),
            running=tuple(sum(running.device_seconds.values()) for running in self.running.values()),
            completed=tuple((seconds_of(t), sum(device_seconds_of(t).values())) for t in completed),
        )

    def final_seconds(self) -> float:
        """What the final comparison should take."""
        scores = [score for arm in self.arms for trial in arm.ended() for score in rung_scores(trial)]
        return budget.final_seconds(self.config, scores)


def last_scores(trials: Sequence[FrozenTrial]) -> list[RungScore]:
    """Of the completed ones."""
    return [rung_scores(t)[-1] for t in trials if t.state == TrialState.COMPLETE]


def reason_of(error: BaseException) -> str:
    """What the database or the system itself said, in a line; Optuna and SQLAlchemy say it at length."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(getattr(error, "orig", None) or error).splitlines()
    return (lines[0] if lines else type(error).__name__)[:FIRST_LINE]
