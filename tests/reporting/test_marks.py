"""Better, equal, worse, and what lies at an end, in a real browser: nobody overlooks the one or misreads the other."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from cca_ray.contracts import Difference, Edge, SizeSummary
from cca_ray.report import write_report
from cca_ray.reporting.results import read_study
from cca_ray.reporting.summary import write_summary
from tests.browser import CHROMIUM, DRIVER, MISSING, chromium
from tests.reporting.screens import DESK, OUTSIDE, OVERLAPS, PHONE, Report
from tests.studies import make_study, summary_of

pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason=MISSING)

EDGES = (
    Edge(of="lambda", value=0.52, low=0.5, high=20, end="low", setting="search.space.lambda.low=0.08"),
    Edge(
        of="learning_rate", value=0.02, low=1e-3, high=0.02, end="high", setting="search.space.learning_rate.high=0.1"
    ),
    Edge(of="guidance_scale", value=3.0, low=1.5, high=3.0, end="high", setting="score.widen_guidance=6"),
    Edge(of="control_learning_rate", value=3e-4, low=3e-4, high=1e-2, end="low", setting="control.widen=6"),
)
PARAMETERS = {"digits_s": 16640, "digits_m": 16900, "digits_var": 80000}  # two of them nearly the same
SIZES = {"digits_s": -1.0, "digits_m": 0.1, "digits_var": 3.6}  # by how much the tuned model's FID is above the guided


def told_of(name: str, folder: Path) -> SizeSummary:
    def differing(value: float) -> Difference:
        return Difference(value=value, low=value - 0.3, high=value + 0.3, at_least_as_good=0.5)

    differences = {"guided": differing(SIZES[name]), "control": differing(-6.6)}
    edges = EDGES if name == "digits_s" else ()
    return summary_of(name, folder=folder, parameters=PARAMETERS[name], differences=differences, edges=edges)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Report]:
    """A size that is better, with every kind of edge; one that is equal; one that is worse."""
    study = tmp_path_factory.mktemp("runs") / "three"
    for name in SIZES:
        make_study(study, name, completed=4)
    write_summary(study, [told_of(name, study) for name in SIZES])
    page = write_report([read_study(study.parent, "three")], study / "report")
    driver = chromium(tmp_path_factory.mktemp("chromium"), "--proxy-server=127.0.0.1:9")
    yield Report(page, driver)
    driver.quit()


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("size", [DESK, PHONE])
def test_what_lies_at_an_end_stands_above_all_results_with_the_setting_that_looks_further(
    report: Report, size: tuple[int, int], theme: str
):
    report.open(size, theme)
    warnings = report.all(".warning")
    assert len(warnings) == len(EDGES)
    for warning, edge in zip(warnings, EDGES, strict=True):
        assert warning.is_displayed()
        assert f"lies at the {'lower' if edge.end == 'low' else 'upper'} end of what was" in warning.text
        assert f"--set {edge.setting}" in warning.text
    boxes = [report.box(warning) for warning in warnings]
    first = min(top for _, top, *_ in map(report.box, report.all(".tile")))
    assert all(0 <= left < right <= size[0] and 0 < top < bottom <= first for left, top, right, bottom in boxes)
    assert all(above[3] <= below[1] for above, below in pairwise(boxes))
    assert report.run(OVERLAPS) == []
    assert report.run(OUTSIDE, False) == []


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_better_equal_and_worse_are_told_by_word_and_mark_and_worse_is_the_loudest(report: Report, theme: str):
    report.open(PHONE, theme)
    lede = report.all(".lede")[0].text
    assert "Against the guided base: ✗ WORSE: digits_var; ≈ equal: digits_m; ✓ better: digits_s." in lede
    tiles = dict(zip(SIZES, report.all(".tile"), strict=True))
    for name, (standing, told) in {
        "digits_s": ("better", "✓ better than the guided base"),
        "digits_m": ("equal", "≈ equal within noise to the guided base"),
        "digits_var": ("worse", "✗ WORSE than the guided base"),
    }.items():
        assert told in tiles[name].text
        assert "✓ better than the control" in tiles[name].text
        assert standing in (tiles[name].get_attribute("class") or "").split()
    looks = {name: tile.value_of_css_property("border-top-color") for name, tile in tiles.items()}
    assert looks["digits_s"] == looks["digits_m"] != looks["digits_var"]
    loud = [line.text for line in report.all(".tile p") if int(line.value_of_css_property("font-weight")) >= 700]
    assert len(loud) == 1
    assert loud[0].startswith("✗ WORSE than the guided base")
    cells = report.run("return [...document.querySelectorAll('table')[0].rows].map((row) => row.innerText)")
    assert [word for word in ("✓ better", "≈ equal", "✗ WORSE") if not any(word in row for row in cells)] == []
    assert report.errors() == []
