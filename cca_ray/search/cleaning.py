"""Which of a trial's files no later run of its study needs: pure functions of what Optuna keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from cca_ray.search.records import ENDED
from cca_ray.verdict import front

WEIGHTS, CHECKPOINT = "model.pt", "checkpoint.pt"
PARTIAL = "*.partial-*"  # what a writer left that was killed


@dataclass(frozen=True)
class Progress:
    """How far a size is. `finalists`: how many are compared; `finished`: whether all that was begun is."""

    finalists: int
    finished: bool
    winner: int | None = None  # the trial whose weights are also in the size's own folder


def best_trials(completed: Sequence[FrozenTrial], most: int | None = None) -> list[FrozenTrial]:
    """The best ones, best first; with several metrics those of the front, lowest first metric first."""
    if not completed:
        return []
    values = np.array([t.values for t in completed])
    chosen = [t for t, on_front in zip(completed, front(values), strict=True) if on_front or values.shape[1] == 1]
    return sorted(chosen, key=lambda t: (t.values[0], t.number))[:most]


def needed_weights(arm: str, trials: Sequence[FrozenTrial], size: Progress) -> set[int]:
    """Numbers of the ended trials whose weights a later run may need.

    Further trials only push finalists out, so who is none now never becomes one; but on a front of several metrics
    others may move up. Scores of a finished comparison are kept, so that control and replicates are not scored again.
    """
    completed = [t for t in trials if t.state == TrialState.COMPLETE]
    if arm != "search":
        return set() if size.finished else {t.number for t in completed}
    alone = all(len(t.values) == 1 for t in completed)
    best = {t.number for t in best_trials(completed, size.finalists if alone else None)}
    return best - {size.winner} if size.finished else best


def unneeded(trial: FrozenTrial, file: PurePath, needed: set[int]) -> bool:
    """Whether no later run needs this file of the trial; pictures are small, and stay."""
    if trial.state not in ENDED:
        return False
    if file.name == WEIGHTS:
        return trial.number not in needed
    return file.name == CHECKPOINT or file.match(PARTIAL)
