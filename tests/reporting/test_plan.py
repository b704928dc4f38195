"""What a dry run says that a study takes: by what its trials, or those of another study, took before."""

from pathlib import Path

import optuna
import pytest
from optuna.trial import TrialState, create_trial

from cca_ray.cluster.queue import Node
from cca_ray.inputs import find_space
from cca_ray.reporting.plan import embedded_base, plan_of, words
from cca_ray.space_file import load_config
from tests.studies import make_study

HERE = [Node("CPU", 2.0, 0.0)]
CONTROLS = "control.learning_rates=[3e-4, 1e-3, 3e-3]"


def test_a_study_that_was_begun_is_continued_and_its_trials_tell_the_time(tmp_path: Path):
    make_study(tmp_path / "mine", finished=False)
    settings = ["search.trials=30", CONTROLS, "score.guidance_scales=[1.5, 2]"]
    configs = [load_config(find_space("digits_s"), settings)]
    head, trials, rungs, cost, time, disk = plan_of(configs, tmp_path, "mine", HERE)
    assert head == f"study mine in {tmp_path / 'mine'}: continued; 13 trials have ended"
    assert trials.startswith("digits_s: 30 trials, 3 controls")
    assert rungs == "  rungs: 900 images at 50 %, 1,800 images at 100 % of a trial"
    # 20 of 33 are left. Each trains for 3 s and is scored for 1, on 2,700 images; the comparison scores 23 x 1,800, and
    # 5 x 1,800 with guidance.
    assert cost == (
        "  on CPU: 102 s on one core if no trial is stopped at a rung (training 60 s, scoring 42 s: 41 %); "
        "measured: 11 trials of study mine took 4 s each"
    )
    assert time == "  time: about 51 s on 2 CPU, 2 trials at a time; plus the time to make a small base"
    assert disk.startswith("  disk: about ")
    other = plan_of(configs, tmp_path, "new", HERE, 10, 2.5, {"": 3.0, "CPU": 0.5})
    assert other[0].endswith("/new: new")
    assert "at 0.5 an hour; measured: 11 trials of study mine took 4 s each" in other[3]
    assert (
        other[-1] == "budget: 10 minutes and 2.5 GPU-hours for all sizes together; no trial starts that would exceed it"
    )
    longer = [load_config(find_space("digits_s"), [*settings, "train.epochs=80"])]
    epochs = configs[0].train.epochs
    assert f"training {words(60 * 80 / epochs / 3600)}" in plan_of(longer, tmp_path, "mine", HERE)[3]


def test_a_wider_control_spares_no_trial_of_the_search(tmp_path: Path):
    """One control has ended of the one that was planned, or three more than that: the search has as much to do."""
    make_study(tmp_path / "mine", finished=False)
    configs = [load_config(find_space("digits_s"), ["search.trials=16", "control.learning_rates=[1e-3]"])]
    before = plan_of(configs, tmp_path, "mine", HERE)
    database = f"sqlite:///{tmp_path / 'mine' / 'study.db'}"
    control = optuna.load_study(study_name="mine/digits_s/control", storage=database)
    control.add_trials([create_trial(state=TrialState.FAIL)] * 3)
    after = plan_of(configs, tmp_path, "mine", HERE)
    assert after[0].endswith("16 trials have ended")
    assert after[1:] == before[1:]


def test_what_finalists_take_that_are_trained_again_is_in_the_disk_space(tmp_path: Path):
    alone, again = (
        plan_of(
            [load_config(find_space("digits_s"), ["score.finalists=3", f"search.replicates={n}"])], tmp_path, "a", HERE
        )
        for n in (0, 2)
    )
    count = [int(lines[-1].split("(up to ")[1].split(" trials")[0]) for lines in (alone, again)]
    assert count[1] == count[0] + 6


def test_the_disk_space_of_an_official_size_is_known_before_its_weights_are_here(tmp_path: Path):
    def disk(*settings: str) -> str:
        return plan_of([load_config(find_space("llamagen_b"), settings)], tmp_path, "new", HERE)[-1]

    # 111 M parameters; AdamW's two moments, the model in the checkpoint, and the weights.
    assert disk().startswith("  disk: about 39 GB (up to 22 trials × weights and checkpoint, 4 times the size of")
    assert disk("control.widen=0").startswith("  disk: about 34 GB (19 trials ×")
    assert disk("search.trials=160").startswith("  disk: about 290 GB (up to 166 trials ×")


def test_of_several_sizes_the_last_lines_tell_what_all_take(tmp_path: Path):
    names = ("llamagen_b", "var_d16")
    configs = [load_config(find_space(name)) for name in names]
    nodes = [Node("H100", 64, 8), Node("A100", 64, 8)]
    lines = plan_of(configs, tmp_path, "new", nodes, prices={"H100": 4.9})
    at = lines.index("in all:")
    alone = [plan_of([config], tmp_path, "new", nodes, prices={"H100": 4.9}) for config in configs]

    def hours(lines: list[str], card: str) -> float:
        (told,) = (line for line in lines if line.startswith(f"  on {card}: "))
        return float(told.removeprefix(f"  on {card}: ").partition(" hours")[0])

    for card in ("A100", "H100"):
        assert hours(lines[at:], card) == pytest.approx(sum(hours(own, card) for own in alone), abs=1.5)
    assert " on one card; " in next(line for line in lines[at:] if "H100: " in line)
    assert lines[-1].endswith(" on 8 A100, 8 H100, one size after another")
    assert plan_of(configs, tmp_path, "new", HERE)[-1] == "  time: unknown, as that of a size above"
    mixed = plan_of([configs[0], load_config(find_space("digits_s"))], tmp_path, "new", HERE)
    assert mixed[-2:] == ["in all:", "  time: unknown, as that of a size above"]  # no card is common to both


def test_of_a_finished_study_nothing_is_left(tmp_path: Path):
    make_study(tmp_path / "mine")
    settings = ["search.trials=10", "control.learning_rates=[1e-3]"]
    lines = plan_of([load_config(find_space("digits_s"), settings)], tmp_path, "mine", HERE)
    assert "  time: nothing left to do" in lines


def test_the_cluster_decides_how_many_run_at_a_time(tmp_path: Path):
    """Four trials of B at a time have room on eight H100s, one on one; none on a processor."""
    configs = [load_config(find_space("llamagen_b"), ["placement.accelerators=[{type: H100, micro_batch: 64}]"])]

    def time_on(*nodes: Node) -> str:
        return plan_of(configs, tmp_path, "new", nodes, prices={"": 2.0, "H100": 4.9})[-2]

    assert ", 4 trials at a time" in time_on(Node("H100", 64, 8))
    assert ", 1 trial at a time" in time_on(Node("H100", 64, 1))
    assert time_on(*HERE) == "  time: unknown: no trial fits on 2 CPU as it is now"


def test_the_weights_are_those_of_the_base_that_would_be_made():
    assert embedded_base(load_config(find_space("digits_s"))) == (43_520, 16, 1797)
    assert embedded_base(load_config(find_space("digits_var"))) == (4_266, 30, 8 * 1797)
