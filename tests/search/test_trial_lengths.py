from typing import Any

import pytest

from cca_ray.config import Rung, StudyConfig
from cca_ray.errors import ConfigError
from cca_ray.search.trial_lengths import check_rungs
from tests.conftest import MakeStudy


def rungs_at(config: StudyConfig, *places: float) -> StudyConfig:
    return config.model_copy(update={"rungs": tuple(Rung(at=at, samples=60) for at in places)})


@pytest.mark.parametrize(
    ("space", "places", "total", "steps"),
    [
        ({"epochs": {"low": 2, "high": 9}}, (0.1, 0.2, 0.5, 1), 4, "1, 1, 2, 4"),
        ({"global_batch": {"low": 24, "high": 120}}, (0.1, 0.2, 0.5, 1), 4, "1, 1, 2, 4"),
        ({"beta": {"low": 0.1, "high": 1}}, (0.1, 0.2, 1), 4, "1, 1, 4"),
    ],
)
def test_rungs_of_a_trial_that_fall_on_one_step_are_refused(
    make_config: MakeStudy, space: dict[str, Any], places: tuple[float, ...], total: int, steps: str
):
    """They are counted: at its second the trial would be compared with others at their third."""
    config = make_config(search={"space": space}, train={"global_batch": 120, "epochs": 2})
    told = rf"^tiny: rungs: 0\.1, .* of a trial of {total} steps are its steps {steps}, and each must be another; take"
    with pytest.raises(ConfigError, match=told):
        check_rungs(rungs_at(config, *places), images=240)
    check_rungs(rungs_at(config, 0.5, 1), images=240)


def test_a_longer_trial_whose_rungs_fall_on_one_step_is_found_too(make_config: MakeStudy):
    whole = {"epochs": {"low": 1, "high": 2}}
    config = rungs_at(make_config(train={"global_batch": 80, "epochs": 1}), 0.49, 0.51, 1)
    check_rungs(config, images=240)  # after steps 1, 2 and 3
    config = rungs_at(make_config(search={"space": whole}, train={"global_batch": 80, "epochs": 1}), 0.49, 0.51, 1)
    with pytest.raises(ConfigError, match="of a trial of 6 steps are its steps 3, 3, 6"):
        check_rungs(config, images=240)
