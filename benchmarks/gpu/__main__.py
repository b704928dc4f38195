"""One table of what a card does: training, sampling, encoding, scoring, memory, rounding, each with its goal.

    python -m benchmarks.gpu                          at most half an hour; run again, it goes on
    python -m benchmarks.gpu --peer PEERS             and the official code: checkouts PEERS/LlamaGen and PEERS/VAR
    python -m benchmarks.gpu --only step sampling     only the cases whose names begin so
    python -m benchmarks.gpu --dry                    every case on the CPU, at tiny shapes: the figures mean nothing

Models are the official shapes with random weights, which change neither speed nor memory. What was measured is in a
JSON file from then on, and is not measured again. A case that the card is too small for is skipped. Exit code 1:
something failed, or there was no time for it.
"""

import re
import sys
import time
import traceback
from pathlib import Path

import torch

from benchmarks.common import Raw, options
from benchmarks.gpu.cases import Case, cases, lines, named
from benchmarks.gpu.made import Here
from benchmarks.gpu.table import Store, below, table
from benchmarks.gpu.training import TooSmall
from cca_ray.cluster.device import card_is_lost, free_memory, no_card
from cca_ray.errors import first_line

RESULTS = Path(__file__).parent.parent / "results"


def file_of(here: Here) -> Path:
    return RESULTS / f"gpu-{re.sub(r'[^a-z0-9]+', '-', here.name.lower())}.json"


def measure(every: list[Case], here: Here, store: Store, raw: Raw, minutes: float) -> dict[str, str]:
    """What of them is still to be had; why not, by name, of those that were not."""
    began, missing = time.monotonic(), dict[str, str]()
    for number, case in enumerate(every):
        if case.name in store:
            continue
        if time.monotonic() - began > 60 * minutes:
            missing[case.name] = "no time was left"
            continue
        print(f"{number + 1} of {len(every)}: {case.name}", file=sys.stderr, flush=True)
        started = time.monotonic()
        try:
            figures = case.run(here)
        except TooSmall as error:  # nothing failed, and another run would not do better
            print(f"skipped: {case.name}: {error}", file=sys.stderr)
        except Exception as error:  # of one case: the others are wanted all the same
            traceback.print_exc()
            missing[case.name] = f"{type(error).__name__}: {first_line(error)}"
            if card_is_lost():
                return missing | {"the rest": "CUDA refuses all further work of this process; run again"}
        else:
            store.add(case.name, figures, time.monotonic() - started)
            for name, value in figures.items():
                raw.add(case.name, name, value)
        torch.compiler.reset()
        free_memory(here.device)
    return missing


def main(words: list[str] | None = None) -> None:
    parser = options(__doc__)
    parser.add_argument("--dry", dest="smoke", action="store_true", help="the same")
    parser.add_argument("--peer", type=Path)
    parser.add_argument("--json", type=Path, help="what was measured; by default benchmarks/results/gpu-CARD.json")
    parser.add_argument("--minutes", type=float, default=30, help="after which no further case begins")
    parser.add_argument("--only", nargs="+", default=[], metavar="CASE")
    arguments = parser.parse_args(words)
    if not arguments.smoke and not torch.cuda.is_available():
        parser.error(no_card().partition("; install")[0] + "; --dry runs every case on the CPU, at tiny shapes")
    device = torch.device("cpu") if arguments.smoke else torch.device("cuda:0")
    here = Here(device, arguments.smoke, arguments.peer.resolve() if arguments.peer else None)
    try:
        store = Store(arguments.json or (None if here.dry else file_of(here)), here.name)
    except ValueError as error:  # the file is of another card, or damaged
        parser.error(str(error))
    if arguments.smoke:
        torch.set_num_threads(1)  # so small, a second one is only waited for
    raw = Raw(arguments.raw, "case", "figure", "value")
    every = named(cases(here.peer is not None), arguments.only)
    if not every:
        parser.error(f"--only {' '.join(arguments.only)}: no case begins so")
    missing = measure(every, here, store, raw, arguments.minutes)
    print(table(lines(here.peer is not None, here.type == "H100"), store))
    print(f"\n{below(store)}")
    for name, why in missing.items():
        print(f"not measured: {name}: {why}", file=sys.stderr)
    if missing:
        sys.exit(1)


if __name__ == "__main__":
    main()
