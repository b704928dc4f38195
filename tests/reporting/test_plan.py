"""What a dry run says that a study takes: by what its trials, or those of another study, took before."""

from pathlib import Path

from cca_ray.inputs import find_space
from cca_ray.reporting.plan import parameters_of, plan_of
from cca_ray.space_file import load_config
from tests.studies import make_study


def test_a_study_that_was_begun_is_continued_and_its_trials_tell_the_time(tmp_path: Path):
    make_study(tmp_path / "mine", finished=False)
    configs = [load_config(find_space("digits_s"), ["search.trials=30"])]
    head, trials, time, disk = plan_of(configs, tmp_path, "mine", None, None)
    assert head == f"study mine in {tmp_path / 'mine'}: continued; 13 trials have ended"
    assert trials.startswith("digits_s: 30 trials, 3 controls")
    # 20 of 33 are left, 4 s each, two at a time; the comparison at half a second for what the rungs scored.
    assert "13 trials took 4 s each, here before" in time
    assert disk.startswith("  disk: about ")
    other = plan_of(configs, tmp_path, "new", 10, 2.5)
    assert other[0].endswith("/new: new")
    assert "13 trials took 4 s each, here in another study" in other[2]
    assert (
        other[-1] == "budget: 10 minutes and 2.5 GPU-hours for all sizes together; no trial begins that would exceed it"
    )


def test_the_weights_are_those_of_the_base_that_would_be_made():
    assert parameters_of(load_config(find_space("digits_s"))) == 16_640
