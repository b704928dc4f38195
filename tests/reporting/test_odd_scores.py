"""A report of scores that FID never has: 0, as recall may be, below it, as KID may be, or all the same."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cca_ray.contracts import MetricInfo, ModelScore, Score, SizeSummary
from cca_ray.reporting.page import write_report
from cca_ray.reporting.results import SizeResults, TrialRow, read_study
from cca_ray.reporting.summary import table
from cca_ray.reporting.text import closing
from tests.studies import make_study

KID = MetricInfo(name="kid", label="KID", lower_is_better=True)
RECALL = MetricInfo(name="recall", label="recall", lower_is_better=False)
Of = Callable[[float], float]  # a score of an FID from 16 to 43
ODD: dict[str, tuple[MetricInfo, Of]] = {
    "KID about 0": (KID, lambda fid: (fid - 20) / 100),
    "KID below 0": (KID, lambda fid: (fid - 50) / 100),
    "recall that is 0 at times": (RECALL, lambda fid: max(0.0, (24 - fid) / 10)),
    "recall that is 0 of the worst alone": (RECALL, lambda fid: max(0.0, 25.2 - fid) ** 2),
    "all below 0 and the same": (KID, lambda fid: -0.1),
    "all 0": (RECALL, lambda fid: 0.0),
}


def changed(score: Score, metric: MetricInfo, of: Of) -> dict[str, object]:
    values, spread = {metric.name: of(score.values["fid"])}, {metric.name: 0.01}
    return {"values": values, **({"std": spread} if isinstance(score, ModelScore) else {"without": {}})}


def summary_by(size: SizeSummary, metric: MetricInfo, of: Of) -> SizeSummary:
    def by(score: ModelScore) -> ModelScore:
        return score.model_copy(update=changed(score, metric, of))

    finalists = tuple(f.model_copy(update={"score": by(f.score)}) for f in size.finalists)
    winner, models = size.winner.model_copy(update={"score": by(size.winner.score)}), size.models
    return size.model_copy(
        update={
            "metrics": (metric,), "searched": (metric.name,), "finalists": finalists, "winner": winner,
            "models": {role: by(score) for role, score in models.items()},
        }
    )  # fmt: skip


def by_metric(size: SizeResults, metric: MetricInfo, of: Of) -> SizeResults:
    """The same study, searched and scored by another metric."""

    def by(t: TrialRow) -> TrialRow:
        return replace(t, rungs=tuple(r.model_copy(update=changed(r, metric, of)) for r in t.rungs))

    search = size.settings.search.model_copy(update={"metric": (metric.name,)})
    return replace(
        size,
        metrics=(metric,),
        settings=size.settings.model_copy(update={"search": search}),
        trials=tuple(map(by, size.trials)),
        summary=size.summary and summary_by(size.summary, metric, of),
    )


@pytest.mark.parametrize(("metric", "of"), ODD.values(), ids=ODD)
def test_it_is_told_and_drawn(metric: MetricInfo, of: Of, tmp_path: Path):
    make_study(tmp_path / "hand")
    study = read_study(tmp_path, "hand")
    size = by_metric(study.sizes[0], metric, of)
    page = write_report([replace(study, sizes=(size,))], tmp_path / "out").read_text()
    assert metric.label in page
    assert size.summary is not None
    for text in (page, closing(size.summary), table([size.summary])):
        assert not re.search(r"(-\S+|nan|inf|\b0\.00) ×", text)
    drawn = [path.read_text() for path in (tmp_path / "out").rglob("*.svg")]
    assert len(drawn) == 6
    assert not any(re.search(r"\bnan\b|\binf\b", text, re.IGNORECASE) for text in drawn)


def test_a_ratio_is_told_only_of_values_above_0(tmp_path: Path):
    make_study(tmp_path / "hand")
    (size,) = read_study(tmp_path, "hand").summaries
    assert "0.90 × 18.00" in closing(size)
    assert "✓ better, 0.90 ×" in table([size])
    below = summary_by(size, KID, lambda fid: (fid - 17) / 100)
    assert "×" not in closing(below)
    assert "×" not in table([below])
    assert "better than the guided base (-0.01 beside 0.01)" in closing(below)
