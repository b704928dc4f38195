"""python -m tests.chaos --times 3: every fault so many times at random moments, and a table of what came of it."""

import tempfile
import time
from pathlib import Path
from random import SystemRandom
from typing import Annotated

import typer

from tests.chaos.faults import FAULTS, TEN_KILLS, Fault, Session, can_mount
from tests.chaos.study import Verdict, tiny_base

COLUMNS = {"lost": "lost", "repeated": "repeated", "wrong": "wrong state", "differs": "differs from undisturbed",
           "broken": "otherwise wrong"}  # fmt: skip


def row(fault: Fault, verdicts: list[Verdict], seconds: float) -> str:
    counts = [sum(len(getattr(verdict, name)) for verdict in verdicts) for name in COLUMNS]
    return f"| {fault.name} | {len(verdicts)} | {' | '.join(map(str, counts))} | {seconds / len(verdicts):.0f} |"


def main(
    times: Annotated[int, typer.Option(min=1, help="How often each fault.")] = 3,
    seed: Annotated[int | None, typer.Option(help="Of the moments; a new one if not given.")] = None,
    fault: Annotated[list[str] | None, typer.Option(help="Only faults whose name has this part; repeatable.")] = None,
    root: Annotated[
        Path | None, typer.Option(help="Folder for everything; an undisturbed study there is used again.")
    ] = None,
) -> None:
    """Every fault at random moments; exit code 1 if anything was lost, repeated, misstated or different."""
    seed = SystemRandom().randrange(10**6) if seed is None else seed
    root = root or Path(tempfile.mkdtemp(prefix="chaos-"))
    root.mkdir(parents=True, exist_ok=True)
    chosen = [f for f in [*FAULTS, TEN_KILLS] if not fault or any(part in f.name for part in fault)]
    if not can_mount(root / "mount"):
        chosen = [f for f in chosen if not f.needs_mount]
        print("no right to mount: without read-only and full storage")
    print(f"seed {seed}; everything is in {root}", flush=True)
    session, rows, good = Session(root, tiny_base(root / "bases")), list[str](), True
    try:
        print(f"undisturbed: {session.twin().summary['seconds']:.0f} s", flush=True)
        for each in chosen:
            verdicts, started = list[Verdict](), time.monotonic()
            for number in range(1 if each is TEN_KILLS else times):
                verdicts.append(session.play(each, seed, number))
                good = good and not verdicts[-1].complaints
                print(f"{each.name} {number}: {'; '.join(verdicts[-1].notes)}", flush=True)
                print("".join(f"    {line}\n" for line in verdicts[-1].complaints), end="", flush=True)
            rows.append(row(each, verdicts, time.monotonic() - started))
    finally:
        session.close()
    head = ["fault", "times", *COLUMNS.values(), "seconds a time"]
    print("\n" + "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows]))
    raise typer.Exit(0 if good else 1)


if __name__ == "__main__":
    typer.run(main)
