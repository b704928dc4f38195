"""Studies as the search leaves them, made by hand in a moment: real Optuna storage, no Ray."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from optuna.distributions import IntDistribution
from optuna.trial import TrialState, create_trial
from PIL import Image

from cca_ray.config import Range
from cca_ray.contracts import Finalist, ModelScore, SizeSummary
from cca_ray.inputs import find_space
from cca_ray.reporting.results import SizeResults, read_study
from cca_ray.reporting.summary import write_summary
from cca_ray.search.arms import Arm, distribution, memory_of, open_arm
from cca_ray.search.records import ArmName
from cca_ray.search.size_study import open_storage
from cca_ray.space_file import load_config

EVIL = "<script>alert('λ')</script> & \"quotes\""
# What may be searched, as `settings` of `make_study`.
SPACES = {
    "λ and learning rate": [],
    "learning rate alone": [
        "train={objective: unlearning, global_batch: 128, epochs: 8, ema_decay: 0.95}",
        "search.space={learning_rate: {low: 0.001, high: 0.02}}", "search.first_points=[]",
    ],
    "four settings, one whole and one not on a log scale": [
        "search.space={beta: {low: 0.02, high: 0.3, log: false}, epochs: {low: 2, high: 9}, "
        "learning_rate: {low: 0.001, high: 0.02}, lambda: {low: 0.5, high: 20}}",
        "search.first_points=[]",
    ],
    "one that may be 0": [
        "search.space={dropout: {low: 0, high: 0.3, log: false}, beta: {low: 0.02, high: 0.3}}",
        "search.first_points=[]",
    ],
    "by inception score": ["search.metric=inception_score"],
    "by both": ["search.metric=both"],
}  # fmt: skip


def rung(step: int, fid: float, samples: int = 1800) -> dict[str, Any]:
    without = [[fid + 0.1 * g, 8 + 0.01 * g] for g in range(10)]
    mark = {"step": step, "fid": fid, "inception_score": 9 - fid / 20, "without": without}
    return {**mark, "scoring_seconds": 0.5, "samples": samples}


def point(space: Mapping[str, Range], at: float) -> dict[str, float]:
    """The settings at this share of the way, in turn from below and from above."""
    shares = [at if i % 2 == 0 else 1 - at for i in range(len(space))]
    return {
        name: b.low * (b.high / b.low) ** share if b.log else b.low + (b.high - b.low) * share
        for share, (name, b) in zip(shares, space.items(), strict=True)
    }


def add(arm: Arm, state: TrialState, fids: list[float], reason: str = "", **params: float) -> None:
    """A trial with a score at each of its rungs."""
    kept = {f"rung {i}": rung(56 * (i + 1), fid, 900 * (i + 1)) for i, fid in enumerate(fids)}
    key = "-".join([*arm.study.study_name.split("/")[-2:], f"{len(arm.study.trials):04d}"])
    attrs = {**kept, "seconds": 4.0, "key": key, **({"reason": reason} if reason else {})}
    values = [fids[-1]] * len(arm.study.directions) if state == TrialState.COMPLETE else None
    whole = {
        name: round(value) if isinstance(arm.space[name], IntDistribution) else value for name, value in params.items()
    }
    arm.study.add_trial(
        create_trial(state=state, params=whole, distributions=arm.space, values=values, user_attrs=attrs)
    )


def make_study(
    folder: Path,
    size: str = "digits_s",
    completed: int = 10,
    finished: bool = True,
    protocol: str = "0123456789",
    settings: Sequence[str] = (),
) -> Path:
    """In `folder`: `completed` trials, one stopped at a rung, one failed, one interrupted; a control; a summary."""
    folder.mkdir(parents=True, exist_ok=True)
    config = load_config(find_space(size), settings)
    digests = {"base": "b", "tokens": "t", "protocol": protocol}
    storage, memory = open_storage(folder / "study.db"), memory_of(config, digests)

    def arm(name: ArmName, space: dict[str, Range]) -> Arm:
        within = {key: distribution(config.train, key, bounds) for key, bounds in space.items()}
        metrics = config.search.metrics if name == "search" else ("fid",)
        study = open_arm(storage, f"{folder.name}/{size}", name, within, [], memory, metrics)
        return Arm(name, study, storage, within, completed + 3, metrics)

    search = arm("search", config.search.space)
    control = arm("control", {"learning_rate": Range(low=3e-4, high=3e-3)})
    add(control, TrialState.COMPLETE, [25, 23.5], learning_rate=1e-3)
    fids = 16 + 10 * np.random.default_rng(0).random(completed)
    within = config.search.space
    for fid, at in zip(fids, np.linspace(0, 1, completed), strict=True):
        add(search, TrialState.COMPLETE, [fid + 3, fid], **point(within, at))
    add(search, TrialState.PRUNED, [40], "not among the best at a rung", **point(within, 0.9))
    add(search, TrialState.FAIL, [], EVIL, **point(within, 1))
    add(search, TrialState.RUNNING, [30], **point(within, 0.3))
    if finished:
        write_outcome(folder, size, int(np.argmin(fids)), search, protocol)
    return folder


def the_size(folder: Path, **keywords: object) -> SizeResults:
    """Of a study that `make_study` has made, as a report reads it."""
    make_study(folder / "study", **keywords)  # type: ignore[arg-type]
    return read_study(folder, "study").sizes[0]


def scored(fid: float, std: float, guidance_scale: float = 1.0) -> ModelScore:
    values = {"fid": fid, "inception_score": 9 - fid / 20}
    return ModelScore(values=values, std={"fid": std, "inception_score": 0.01}, guidance_scale=guidance_scale)


def summary_of(
    size: str = "digits_s",
    fid: float = 17.1,
    winner: int = 3,
    params: Mapping[str, float] | None = None,
    folder: Path = Path("runs/hand"),
    std: float = 0.21,
    **changes: Any,
) -> SizeSummary:
    """A row of summary.json. `fid`, `std`: of the winner."""
    params, score = dict(params or {"lambda": 4.54, "learning_rate": 0.0098}), scored(fid, std)
    won = Finalist(trial=winner, params=params, score=score, tied=True)
    other = won.model_copy(update={"trial": winner + 1, "score": scored(fid + 0.1, std)})
    summary = SizeSummary(
        size=size,
        family="llamagen",
        parameters=16640,
        models={
            "base": scored(24.4, 0.5),
            "guided": scored(18.0, 0.4, 1.5),
            "control": scored(23.7, 0.3),
            "tuned": score,
        },
        winner=won,
        checkpoint=str(folder / size / "winner.pt"),
        settings=params,
        finalists=(won, other),
        trials=12,
        seconds=90.0,
        protocol="0123456789",
        device="GPU",
        device_hours=0.05,
        device_hours_by_type={"H100": 0.01, "A40": 0.04},
    )
    return summary.model_copy(update=changes)


def write_outcome(folder: Path, size: str, winner: int, search: Arm, protocol: str) -> None:
    """What the final comparison writes."""
    best = search.study.trials[winner]
    size_summary = summary_of(size, best.values[0], winner, best.params, folder, 0.2, protocol=protocol)
    write_summary(folder, [size_summary])
    (folder / size).mkdir(exist_ok=True)
    Image.new("RGB", (80, 20), "grey").save(folder / size / "samples.png")
