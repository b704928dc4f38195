"""The table of the embedded default over bases: spreads of a known truth, rows that are kept, promises counted."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks.default import VALUES, Row, Spread, main, promises, read_rows, table, write_rows
from cca_ray.cluster.machine import machine_here
from cca_ray.reporting.summary import write_summary
from tests.studies import summary_of

ROW = Row(
    size="digits_s", parameters=16640, arithmetic="avx2", base=0, seed=0, fid_base=50.0, fid_guided=30.0,
    fid_control=48.0, fid_cca=31.0, guidance_scale=1.5, lambda_=8.25, learning_rate=0.005, control_learning_rate=1e-3,
    seconds=61.5, processor="a processor, with a comma", commit="0123456789ab",
)  # fmt: skip


def rows_of(between: float, within: float, bases: int, studies: int, seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    truth = 50 + between * rng.standard_normal(bases)
    return [
        replace(ROW, base=base, seed=study, fid_base=truth[base] + within * rng.standard_normal())
        for base in range(bases)
        for study in range(studies)
    ]


@pytest.mark.parametrize(("between", "within"), [(6.0, 1.0), (1.0, 3.0), (0.0, 2.0)])
def test_spreads_between_bases_and_between_studies_are_told_apart(between: float, within: float):
    found = [Spread.of(rows_of(between, within, 20, 3, seed), VALUES["without guidance"]) for seed in range(200)]
    assert np.mean([s.mean for s in found]) == pytest.approx(50, abs=0.4)
    assert np.sqrt(np.mean([s.between_studies**2 for s in found])) == pytest.approx(within, rel=0.03)
    if between:
        assert np.sqrt(np.mean([s.between_bases**2 for s in found])) == pytest.approx(between, rel=0.06)
    else:  # scatter of studies alone is not taken for that of bases
        assert np.median([s.between_bases for s in found]) < 0.3 * within


def test_bases_of_unequal_numbers_of_studies_are_weighed_as_they_should():
    values = {0: [1.0, 3.0], 1: [5.0]}
    rows = [replace(ROW, base=base, seed=i, fid_base=x) for base, of in values.items() for i, x in enumerate(of)]
    found = Spread.of(rows, VALUES["without guidance"])
    # By hand: mean 3; within (1 + 1) / 1; between (2 * 1 + 1 * 4) / 1; studies a base (3 - 5 / 3) / 1.
    assert found.mean == 3
    assert found.between_studies == pytest.approx(2**0.5)
    assert found.between_bases == pytest.approx(((6 - 2) / (4 / 3)) ** 0.5)


def test_what_one_base_or_one_study_cannot_tell_is_not_told():
    assert "| 50.0 |" in table([replace(ROW, fid_base=50.0)])
    assert "| 50.0 ± ? ± 1.4 |" in table([replace(ROW, fid_base=x, seed=i) for i, x in enumerate((49.0, 51.0))])
    assert "| 50.0 ± 1.4 |" in table([replace(ROW, fid_base=x, base=i) for i, x in enumerate((49.0, 51.0))])
    assert promises([ROW]).splitlines()[-1].endswith("| 0 of 0 |")


def test_rows_are_read_back_as_they_were_written(tmp_path: Path):
    rows = [ROW, replace(ROW, size="digits_var", base=3, fid_cca=1 / 3)]
    write_rows(tmp_path / "results" / "rows.csv", rows)
    assert read_rows(tmp_path / "results" / "rows.csv") == rows
    assert read_rows(tmp_path / "none.csv") == []


def test_a_promise_that_one_study_breaks_is_counted():
    rows = [ROW, replace(ROW, seed=1, fid_cca=40.0), replace(ROW, base=1, fid_guided=45.0, fid_cca=35.0)]
    lines = promises(rows).splitlines()
    assert "| guidance takes at least 20 % off | 2 of 3 |" in lines
    assert "| CCA ≤ 0.8 × control | 2 of 3 |" in lines  # 40 / 48 is more
    assert "| CCA ≤ 1.2 × guided | 2 of 3 |" in lines  # and so is 40 / 30
    assert "| CCA ≤ 1.1 × guided at the median | 1 of 1 |" in lines
    assert "1.03, at most 1.33" in table(rows)


def test_the_rows_of_a_finished_study_are_those_of_its_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    here, raw = machine_here(), tmp_path / "rows.csv"
    write_summary(tmp_path, [summary_of(control_learning_rate=1e-3, machine=here)])
    main(["--finished", str(tmp_path), "--raw", str(raw)])
    (row,) = read_rows(raw)
    assert (row.arithmetic, row.base, row.seed) == (here.arithmetic.lower(), 0, 0)
    assert (row.fid_base, row.fid_guided, row.fid_control, row.fid_cca) == (24.4, 18.0, 23.7, 17.1)
    assert table([row]) in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["--finished", str(tmp_path)])
    assert "give --raw, too" in capsys.readouterr().err
