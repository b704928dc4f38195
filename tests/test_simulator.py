"""Simulated studies: their truth, their noise, and what they cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from benchmarks import contest
from benchmarks.contest import WAYS, run
from benchmarks.landscape import Row, read_rows, write_rows
from benchmarks.simulator import FAMILIES, Analytic, Noise, Scorer, Tabulated, Task, Trial, best_observed, simulate
from cca_ray.evaluation.jackknife import jackknife_error

NARROW = FAMILIES["narrow"][0]


@dataclass
class Fixed:
    """Tries the same settings for ever; goes on at rungs or not."""

    params: Mapping[str, float]
    rungs: tuple[float, ...]
    on: bool = True

    def propose(self, trials: Sequence[Trial]) -> Mapping[str, float]:
        return self.params

    def goes_on(self, trials: Sequence[Trial], trial: Trial) -> bool:
        return self.on

    def ended(self, trial: Trial) -> None:
        self.last = trial

    def incumbent(self, trials: Sequence[Trial]) -> Trial | None:
        return best_observed(trials)


def at_best(landscape: Analytic) -> dict[str, float]:
    return {"lambda": 10 ** landscape.best[0], "learning_rate": 10 ** landscape.best[1]}


@pytest.mark.parametrize("landscape", [one for sizes in FAMILIES.values() for one in sizes], ids=lambda one: one.name)
def test_the_best_settings_of_every_window_are_in_it(landscape: Analytic):
    for seed in range(5):
        task = Task.of(landscape, seed)
        assert task.best == pytest.approx(landscape.floor, rel=0.01)
        assert task.regret(at_best(landscape)) == pytest.approx(0, abs=0.01)
        assert (task.low >= landscape.bounds[:, 0] - 1e-9).all()
        assert (task.high <= landscape.bounds[:, 1] + 1e-9).all()


def test_scores_have_the_noise_that_their_jackknife_tells():
    task = Task.of(replace(NARROW, noise=Noise(0.05, 0.0, 0.4)), 0)
    scorer = Scorer(task)
    trials = [Trial(number, at_best(NARROW), []) for number in range(400)]
    scores = [scorer.score(trial, 2, 1.0) for trial in trials]
    values = np.array([value for value, _ in scores])
    # What all trials of a study have in common moves them alike.
    assert values.std() == pytest.approx(0.05 * 0.6**0.5 * NARROW.floor, rel=0.15)
    assert np.mean([jackknife_error(without) for _, without in scores]) == pytest.approx(0.05 * NARROW.floor, rel=0.15)
    assert scorer.score(trials[7], 2, 1.0)[0] == scores[7][0]


def test_a_trial_s_luck_stays_with_it():
    task = Task.of(replace(NARROW, noise=Noise(0.0, 0.05, 0.0)), 0)
    scorer = Scorer(task)
    pairs = [[scorer.score(Trial(number, at_best(NARROW), []), 0, at)[0] for at in (0.5, 1.0)] for number in range(300)]
    assert np.corrcoef(np.array(pairs).T)[0, 1] == pytest.approx(0.75, abs=0.1)


@pytest.mark.parametrize("at_once", [1, 4])
def test_a_trial_costs_the_part_of_it_that_ran(at_once: int):
    task, rungs = Task.of(NARROW, 0), (0.25, 1.0)
    whole = list(simulate(task, Fixed(at_best(NARROW), rungs), at_once, 8.0))
    stopped = list(simulate(task, Fixed(at_best(NARROW), rungs, on=False), at_once, 8.0))
    assert (len(whole), len(stopped)) == (16, 32)
    assert whole[-1][0] == stopped[-1][0] == 8.0
    assert whole[-1][1] == pytest.approx(0, abs=0.01)
    assert stopped[-1][1] == np.inf  # nothing was completed


def test_every_eighth_trial_fails_if_it_is_to():
    way = Fixed(at_best(NARROW), (1.0,))
    states = []
    for _ in simulate(Task.of(NARROW, 0, fails=True), way, 1, 16.0):
        states.append(way.last.state)
    assert states == 2 * [*(["complete"] * 7), "failed"]


def test_a_table_gives_back_what_it_was_made_from(tmp_path: Path):
    rng, noise, rows = np.random.default_rng(0), Noise(0.03, 0.02, 0.0), list[Row]()
    low, high = NARROW.bounds.T
    for a in np.linspace(low[0], high[0], 14):
        for b in np.linspace(low[1], high[1], 12):
            luck = noise.training * rng.normal()
            for at in (0.5, 1.0):
                moves = rng.normal(size=10)
                true = float(NARROW.fid(np.array([[a, b]]), at)[0])
                fid = true * (1 + luck + noise.sampling * moves.sum() / 10**0.5)
                without = fid - true * noise.sampling * 10**0.5 * (moves - moves.mean()) / 9
                error = jackknife_error(without)
                settings = (float(10**a), float(10**b), 0.1, 0.1)
                rows.append(Row("made", "f", "S", "d", "p", 9, settings, 0, at, 9, 9, fid, error, tuple(without), 1, 1))
    write_rows(tmp_path / "table.parquet", rows)
    read = read_rows(tmp_path / "table.parquet")
    assert [row.settings for row in read] == [row.settings for row in rows]
    of_another_beta = replace(read[0], settings=(*read[0].settings[:2], 0.2, 0.1), fid=99.0)
    table = Tabulated.of([of_another_beta, *read], smallest=9)
    assert (table.name, table.family, table.rows, table.doublings) == ("made", "f", tuple(read), 0.0)
    near = np.array(NARROW.best) + rng.uniform(-0.4, 0.4, (50, 2))
    for at in (0.5, 1.0):
        assert np.abs(np.log(table.fid(near, at) / NARROW.fid(near, at))).mean() < 0.05
    assert table.noise.sampling == pytest.approx(0.03, rel=0.2)
    assert table.noise.common == pytest.approx(0.0, abs=0.05)
    assert run("random", Task.of(table, 0), 1, "none", 0, 16.0).regrets[2] < 0.2
    # What diverged counts as twice the worst.
    edge = 0.5 * 10 ** high[1]
    lost = [replace(row, fid=np.inf, error=np.inf, without=()) if row.settings[1] > edge else row for row in read]
    worst = max(row.fid for row in lost if row.at == 1 and row.fid < np.inf)
    corner = np.array([[row.settings[:2] for row in lost if row.fid == np.inf]])[0]
    assert np.median(Tabulated.of(lost, smallest=9).fid(np.log10(corner), 1.0)) == pytest.approx(2 * worst, rel=0.3)


def test_a_contest_that_was_cut_short_goes_on_and_keeps_what_it_has(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    raw = tmp_path / "contest.csv"
    words = ["--raw", str(raw), "--ways", "random", "TPE", "--landscapes", "wide-1", "narrow-2", "--at-once", "1"]
    first = [*words, "--budget", "4", "--studies", "1"]
    contest.main(first)
    lines = raw.read_text().splitlines()
    assert len(lines) == 2 + 2 * (3 + 4)  # wide-1 has no smaller size
    raw.write_text("\n".join(["# commit of before, on another day", *lines[1:-3]]) + "\n")
    contest.main(first)
    again = raw.read_text().splitlines()
    assert again[0] == "# commit of before, on another day"
    assert [line.split(",")[:8] for line in again[1:]] == [line.split(",")[:8] for line in lines[1:]]
    capsys.readouterr()
    contest.main([*words, "--budget", "4", "--studies", "0"])
    assert raw.read_text().splitlines() == again
    shown = capsys.readouterr().out
    assert shown.count("\n") == 2 + 2 * 4
    contest.main([*words, "--budget", "2", "--studies", "1", "--hardships", "none"])
    assert len(raw.read_text().splitlines()) == len(again) + 4
    assert capsys.readouterr().out.count("\n") == 2 + 2  # what had another budget is not mixed with it


def test_a_smoke_writes_over_no_results(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = tmp_path / "kept.csv"
    monkeypatch.setattr(contest, "RESULTS", results)
    contest.main(["--smoke"])
    assert not results.exists()


def test_the_next_smaller_size_of_a_family_is_known():
    known = {one.name: one for sizes in FAMILIES.values() for one in sizes}
    names = {name: smaller.name if (smaller := contest.smaller_of(known, name)) else None for name in known}
    assert names["wide-3"] == "wide-2"
    assert names["noisy-2"] == "noisy-1"
    assert names["narrow-1"] is None


def test_a_study_is_the_same_whenever_it_is_simulated():
    task = Task.of(NARROW, 3, fails=True)
    for way in WAYS:
        if way in ("random", "TPE", "gp"):
            first, again = (replace(run(way, task, 4, "failures", 3, 4.0), proposal=0.0) for _ in range(2))
            assert first == again
