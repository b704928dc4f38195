"""What a study should take by arithmetic agrees with the simulation of clusters, which counts it job by job."""

import pytest

from benchmarks.cluster_sim import HOUR, Plan, Study
from benchmarks.cluster_sim import size_of as simulated
from cca_ray.cluster.placement import accelerator_of, ways
from cca_ray.cluster.queue import Node
from cca_ray.config import StudyConfig
from cca_ray.inputs import find_space
from cca_ray.search.forecast import Speed, Work, speed_on_a_core, speeds_by_arithmetic, wall_hours
from cca_ray.space_file import load_config


def config_of(name: str) -> StudyConfig:
    return load_config(find_space(name))


@pytest.mark.parametrize("name", ["llamagen_b", "var_d30", "rar_l"])
def test_hours_of_training_and_of_scoring_are_those_of_the_simulation(name: str):
    """But for the time to add up FIDs."""
    study = Study(simulated(name), Plan(fid=0.0))
    jobs = [job for stage, _ in study.all_stages() for job in stage]
    jobs += [job for stage in study.all_base_stages() for job in stage]
    config, work = study.config, Work.of(study.config)
    ways_by_card = {accelerator_of(way): way for way in ways(config.placement)}
    for speed in speeds_by_arithmetic(config):
        way = ways_by_card[speed.card]
        training, scoring = (
            sum(
                phase.seconds(study.size, way if job.gang else way.model_copy(update={"workers": 1}), study.plan)
                * (way.workers if job.gang else 1)
                for job in jobs for phase in job.phases if bool(phase.samples) == samples
            ) / HOUR
            for samples in (False, True)
        )  # fmt: skip
        assert work.training(speed) == pytest.approx(training, rel=0.02)
        assert work.rungs(speed) + work.final(speed) == pytest.approx(scoring, rel=0.1)  # whole rounds of a group


def test_a_size_that_is_not_an_official_one_has_no_arithmetic():
    assert speeds_by_arithmetic(config_of("digits_s")) == []


@pytest.mark.parametrize(
    ("parameters", "tokens", "pairs", "trial", "control", "images"),
    [
        (43_520, 16, 8 * 1797, 6.6, 3.7, 1.15),  # digits_s, _m, _var on a quiet machine of two cores: seconds of a
        (80_640, 16, 8 * 1797, 12.5, 8.0, 2.05),  # trial's training, of a control's, and of scoring 2,700 images
        (4_266, 30, 16 * 1797, 9.9, 6.5, 0.9),
    ],
)
def test_arithmetic_for_a_core_is_near_what_was_measured(
    parameters: int, tokens: int, pairs: int, trial: float, control: float, images: float
):
    speed = speed_on_a_core(parameters, tokens, pairs)
    for hours, seconds in ((speed.trial, trial), (speed.control, control), (2700 * speed.image, images)):
        assert seconds / 1.5 < HOUR * hours < 1.5 * seconds


def test_twice_the_cards_halve_the_time_as_long_as_there_are_trials():
    config = config_of("llamagen_b")
    work, speeds = Work.of(config), [Speed("H100", trial=2.0, control=1.0, image=1e-5, guided=2e-5, source="")]
    one, two, many = (wall_hours(config, work, speeds, [Node("H100", 64, n)]) for n in (1, 2, 64))
    plain, guided = work.final_images
    assert one == pytest.approx(16 * 2.0 + 3 * 1.0 + 1e-5 * (work.rung_images + plain + 2 * guided))
    assert two is not None
    assert one == pytest.approx(2 * two)
    assert many is not None
    assert 0 < many < two
    assert wall_hours(config, work, speeds, [Node("A100", 64, 8)]) is None
    last = Work(trials=1, controls=0, rung_images=0, final_images=(0, 0))
    assert wall_hours(config, last, speeds, [Node("H100", 64, 8)]) == 2.0


def test_what_has_ended_is_not_counted_again():
    config = config_of("llamagen_b")
    for ended, left in (
        ({"control": 2}, (16, 1)),
        ({"search": 4}, (12, 3)),
        ({"control": 3, "search": 4}, (12, 0)),
        ({"control": 6, "search": 4}, (12, 0)),  # it was widened
        ({"control": 6, "search": 16}, (0, 0)),
    ):
        work = Work.of(config, ended)
        assert (work.trials, work.controls, work.tables) == (*left, 0)
        assert work.rung_images == sum(left) * sum(rung.samples for rung in config.rungs)
    assert Work.of(config, {"control": 3, "search": 16}, finished=True) == Work(0, 0, 0, (0, 0))


def test_finalists_that_are_trained_again_take_trials_and_a_table_of_each_further_seed():
    config = load_config(find_space("llamagen_b"), ["search.replicates=2"])
    again = 2 * config.score.finalists
    done, more = {"control": 3, "search": 20}, {"replicate": 1}  # search.trials was larger once
    for ended, left, tables in (
        ({}, 16 + again, 3),
        (done, again, 2),
        (done | more, again - 1, 0),
        (more, 16 + again, 0),
    ):
        work = Work.of(config, ended)
        assert (work.trials, work.tables) == (left, tables)
        speed = Speed("H100", trial=2.0, control=1.0, image=0.0, guided=0.0, source="", table=0.5)
        assert work.training(speed) == 2 * left + work.controls + 0.5 * tables
