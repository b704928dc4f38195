"""The terminal as a listener: lines about trials, and a view of the study that is always true."""

from collections.abc import Callable

from cca_ray.contracts import Prospect, TrialReport
from cca_ray.search.ledger import Ledger, Say
from cca_ray.search.listener import Listener, Place, RungOutcome, TrialEnd, TrialInfo

Show = Callable[[Ledger], bool]


def not_shown(ledger: Ledger) -> bool:
    """Where nothing shows how the study stands."""
    return False


class LiveView(Listener):
    """Has every change shown by `show`, which tells whether the trials' steps are seen there."""

    def __init__(self, ledger: Ledger, show: Show):
        self.ledger, self.show, self.shown = ledger, show, False

    def update(self) -> None:
        self.shown = self.show(self.ledger)

    def on_trial_start(self, trial: TrialInfo) -> None:
        self.update()

    def on_trial_result(self, trial: TrialInfo, report: TrialReport) -> None:
        self.update()

    def on_trial_complete(self, trial: TrialInfo, end: TrialEnd) -> None:
        self.update()


class Lines(Listener):
    """Says in lines what happens. `view`: which may show the trials' steps; then no lines tell of them."""

    def __init__(self, say: Say, view: LiveView | None = None):
        self.say, self.view = say, view

    def on_trial_move(self, trial: TrialInfo, before: Place | None, now: Place) -> None:
        if before is not None:
            same_cards = (before.accelerator, before.workers) == (now.accelerator, now.workers)
            why = "out of memory" if same_cards else "moved"
            where = f"now {now.workers} × {now.accelerator}, micro-batch {now.micro_batch}"
            self.say(f"{trial.label}  {why}: {where}")

    def on_trial_result(self, trial: TrialInfo, report: TrialReport) -> None:
        shown = self.view is not None and self.view.shown
        if report.score is None and not report.stopped and not shown:
            self.say(f"{trial.label}  step {report.step}/{report.total_steps}")

    def on_rung(self, trial: TrialInfo, outcome: RungOutcome) -> None:
        score, metric = outcome.score, outcome.metric
        end = "" if outcome.goes_on else "  stopped"
        if outcome.best is not None:
            end = f"  best so far {readable_score(metric, outcome.best)}"
        value = f"{metric} {readable_score(metric, score.values[metric])}"
        self.say(f"{trial.label}  step {score.step}/{outcome.total_steps}  {value} ({score.samples} samples){end}")

    def on_trial_hang(self, trial: TrialInfo, seconds: float, what: str) -> None:
        self.say(f"{trial.label}  no sign of life for {seconds:.0f} s: {what}")

    def on_trial_complete(self, trial: TrialInfo, end: TrialEnd) -> None:
        if end.state == "FAIL":
            self.say(f"{trial.label}  FAILED: {end.reason}")
        elif end.state == "INTERRUPTED":
            self.say(f"{trial.label}  interrupted")
        if self.view is not None and not self.view.shown:
            arms = self.view.ledger.arms
            counts = ", ".join(f"{arm.name} {len(arm.ended())}/{arm.planned()}" for arm in reversed(arms))
            self.say(f"{trial.size}  {counts}")

    def on_budget_end(self, size: str, kept_seconds: float) -> None:
        self.say(
            f"{size}  the budget allows no further trial; {kept_seconds:.0f} s are reserved for what follows the search"
        )

    def on_enough(self, size: str, prospect: Prospect) -> None:
        self.say(f"{size}  {prospect}: the search ends here (search.stop_when)")

    def on_halt(self, size: str, running: int) -> None:
        self.say(f"{size}  stopping: {running} running trials are writing their checkpoints")


def readable_score(metric: str, value: float) -> str:
    return f"{value:.2f}" if metric == "fid" else f"{value:.4g}"
