"""How a study stands, drawn for a terminal. Light on imports: `status` shows it too."""

import math
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cca_ray.contracts import CHANCE_OF, Prospect
from cca_ray.terminal.snapshot import COMPARING, AtWork, DriverStatus, SizeSnapshot

MOST_IN_LINE = 3  # of the same, in a line
MOST_ROWS = 12  # of running trials, of all sizes; more than a terminal holds would push the rest away
ROOM_FOR_BAR, ROOM_FOR_SPEED = 60, 50  # columns of a terminal from which on a trial's row has them
STATES = {"COMPLETE": "completed", "PRUNED": "stopped", "FAIL": "failed"}


def duration(seconds: float) -> str:
    """`0:42`, `1:03:20`."""
    minutes, rest = divmod(math.ceil(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def count(number: float) -> str:
    """A rate in four places at most."""
    return f"{number:,.0f}" if number >= 10 else f"{number:.1f}"


def headline(snapshot: SizeSnapshot, now: float) -> Text:
    """Size, phase, trials that have ended of those planned, by arm and by state, and the time left."""
    ended, left = snapshot.ended, snapshot.left(now)
    text = Text.assemble((snapshot.size, "bold"), f"  {snapshot.phase}; " * (snapshot.phase == COMPARING) or "  ")
    text.append(counts(snapshot))
    states = ", ".join(f"{ended[state]} {name}" for state, name in STATES.items() if state in ended)
    text.append(f" ({states})" * bool(states), "dim")
    return text.append("" if left is None else f"; about {duration(left)} left")


def counts(snapshot: SizeSnapshot) -> str:
    """`search 4/14, control 3/3`."""
    return ", ".join(f"{arm} {done}/{planned}" for arm, (done, planned) in snapshot.arms.items())


@dataclass(frozen=True)
class TrialsTable:
    """A row a trial, of the first ones: which, how far, images/s, score at its last rung, time left.

    On a narrow terminal, the bar goes first, then the images/s: which trial it is always stays.
    """

    snapshot: SizeSnapshot
    now: float
    most: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        shown, more = self.snapshot.at_work[: self.most], len(self.snapshot.at_work) - self.most
        table = Table.grid(padding=(0, 1, 0, 0), expand=True)
        names = [f" {trial.arm} #{trial.number}" for trial in shown]
        table.add_column(no_wrap=True, min_width=max(map(len, names), default=0))
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        bar, speed = options.max_width >= ROOM_FOR_BAR, options.max_width >= ROOM_FOR_SPEED
        if bar:
            table.add_column(width=10)
        for _ in range(3 + speed):
            table.add_column(justify="right", no_wrap=True)
        for name, trial in zip(names, shown, strict=True):
            table.add_row(
                Text(name, "cyan"),
                Text(trial.settings),
                *[ProgressBar(total=trial.total or 1, completed=trial.step)] * bar,
                *self.figures(trial, speed),
            )
        yield table
        if more > 0:
            yield Text(f" … and {more} more", "dim")

    def figures(self, trial: AtWork, speed: bool) -> list[str]:
        metric, left = self.snapshot.metric, trial.left(self.now)
        rate = f"{count(trial.images_per_second)} img/s" if trial.images_per_second else ""
        return [
            f"{trial.step}/{trial.total}" if trial.total else f"starts {duration(self.now - trial.reported)}",
            *[rate] * speed,
            f"{metric.label} {trial.values[metric.name]:.2f}" if metric.name in trial.values else "",
            "" if left is None else duration(left),
        ]


def best_line(snapshot: SizeSnapshot) -> Text:
    if snapshot.best is None:
        return Text("best     no trial of the search has been completed yet", "dim")
    best, metric = snapshot.best, snapshot.metric
    score = f"{metric.label} {best.values[metric.name]:.2f}"
    return Text.assemble("best     ", (score, "bold green"), f"  {best.settings}  ({best.arm} #{best.number})")


def next_line(prospect: Prospect | None) -> list[Text]:
    """What another trial should bring, if there is something to say."""
    if prospect is None:
        return []
    gain, chance = 100 * prospect.expected_gain, 100 * prospect.chance
    much = f"by more than {100 * CHANCE_OF:.0f} %: chance {chance:.0f} %"
    return [Text(f"next     improves the best by {gain:.1f} % on average; {much}", "dim")]


def cluster_line(driver: DriverStatus) -> Text:
    """What is in use, and by this study of each type of card."""
    parts = [f"{kind} {used:g}/{total:g} in use" for kind, (used, total) in driver.cluster.items()]
    cards: dict[str, int] = {}
    for trial in (trial for snapshot in driver.snapshots for trial in snapshot.at_work):
        if trial.accelerator:
            cards[trial.accelerator] = cards.get(trial.accelerator, 0) + trial.workers
    held = ", ".join(f"{workers} on {card}" for card, workers in sorted(cards.items()))
    parts += [f"workers: {held}"] * bool(held)
    return Text(f"cluster  {'; '.join(parts) or 'not asked yet'}", "dim")


def size_view(driver: DriverStatus, snapshot: SizeSnapshot, now: float) -> list[RenderableType]:
    """One size at work."""
    if snapshot.phase == COMPARING:
        what = "base, guided base, control and finalists on fresh noise"
        below: RenderableType = Text(f" {what}, for {duration(now - snapshot.at)}")
    else:
        below = TrialsTable(snapshot, now, max(1, MOST_ROWS // len(driver.snapshots)))
    return [headline(snapshot, now), below, best_line(snapshot), *next_line(snapshot.prospect)]


def last_lines(driver: DriverStatus) -> list[RenderableType]:
    """What all sizes share: the cluster, and what is amiss with MLflow."""
    searching = any(snapshot.phase != COMPARING for snapshot in driver.snapshots)
    lines: list[RenderableType] = [cluster_line(driver)] if searching else []
    return lines + ([Text(f"MLflow   {driver.mlflow}", "yellow")] if driver.mlflow else [])


def in_a_line(driver: DriverStatus, now: float) -> tuple[str, str]:
    """The phases of all sizes at work, and how they stand."""
    begun = {snapshot.size for snapshot in driver.snapshots}
    before = {size: doing for size, doing in driver.doing.items() if size not in begun}
    phases = [what for what, _ in before.values()] + [snapshot.phase for snapshot in driver.snapshots]
    lines = [f"{size}  still {what}, {duration(now - since)}" for size, (what, since) in before.items()]
    lines += [size_in_a_line(snapshot, now) for snapshot in driver.snapshots]
    return "; ".join(phases), "; ".join(lines)


def size_in_a_line(snapshot: SizeSnapshot, now: float) -> str:
    if snapshot.phase == COMPARING:
        return f"{snapshot.size}  still in the {COMPARING}, {duration(now - snapshot.at)}"
    at_work = [
        f"{trial.arm} #{trial.number} {f'step {trial.step}/{trial.total}' if trial.total else 'starts'}"
        for trial in snapshot.at_work[:MOST_IN_LINE]
    ]
    more = len(snapshot.at_work) - len(at_work)
    return f"{snapshot.size}  still at work: {', '.join(at_work + [f'{more} more'] * bool(more)) or 'no trial'}"


def view(driver: DriverStatus, now: float) -> RenderableType:
    """The study at work. `now`: Unix time."""
    parts = [part for snapshot in driver.snapshots for part in size_view(driver, snapshot, now)]
    begun = {snapshot.size for snapshot in driver.snapshots}
    parts += [
        Text.assemble((size, "bold"), f"  {what}, {duration(now - since)}")
        for size, (what, since) in driver.doing.items()
        if size not in begun
    ]
    return Group(*parts, *last_lines(driver)) if parts else Text("")
