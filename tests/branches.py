"""How much of every package the tests reach, lines and branches: the table of tests/README.md.

coverage run -m pytest; coverage combine; coverage json --fail-under 0 -o - | python -m tests.branches
"""

import json
import sys
from collections import Counter, defaultdict
from typing import Any

PARTS = ("num_statements", "covered_lines", "num_branches", "covered_branches")


def table(report: dict[str, Any]) -> str:
    """Of coverage.py's JSON report."""
    sums = defaultdict[str, Counter[str]](Counter)
    for file, found in report["files"].items():
        counts = {part: found["summary"][part] for part in PARTS}
        for name in (file.rpartition("/")[0], "all"):
            sums[name].update(counts)
    rows = ["| package | statements | of them reached | branches | of them taken |", "|---|---|---|---|---|"]
    for name in sorted(sums, key=lambda name: (name == "all", name)):
        lines, reached, branches, taken = (sums[name][part] for part in PARTS)
        label = "all" if name == "all" else f"`{name}`"
        rows.append(f"| {label} | {lines:,} | {share(reached, lines)} | {branches:,} | {share(taken, branches)} |")
    return "\n".join(rows)


def share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else "–"


if __name__ == "__main__":
    print(table(json.load(sys.stdin)))
