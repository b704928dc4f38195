import errno
import pickle

import pytest

from cca_ray.contracts import Attempt
from cca_ray.errors import Stuck
from cca_ray.training.failures import blame, failure_of
from cca_ray.training.reports import TrialFailure


class Wrapped(Exception):
    """As Ray Train wraps what a worker raised."""

    def __init__(self, error: Exception):
        super().__init__("workers failed")
        self.worker_failures = {0: error}


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (ValueError("the loss is nan\nmore"), TrialFailure(reason="ValueError: the loss is nan")),
        (Wrapped(ValueError("x")), TrialFailure(reason="ValueError: x")),
        (Wrapped(Stuck("checkpoint.pt: damaged")), TrialFailure(reason="checkpoint.pt: damaged", stuck=True)),
        (
            OSError(errno.ENOSPC, "No space left on device"),
            TrialFailure(reason="OSError: [Errno 28] No space left on device", stuck=True),
        ),
        (
            FileNotFoundError(errno.ENOENT, "No such file"),
            TrialFailure(reason="FileNotFoundError: [Errno 2] No such file"),
        ),
    ],
)
def test_a_failure_is_told_in_the_innermost_errors_words(error: Exception, told: TrialFailure):
    assert failure_of(error) == told


def test_a_failure_says_what_its_attempt_took_however_it_travelled():
    taken = Attempt(id="a", seconds=3.0, device_seconds={"A40": 6.0})
    blame(error := ValueError("x"), taken)
    outer = Stuck("a disk")
    outer.__cause__ = pickle.loads(pickle.dumps(error))
    for seen in (error, Wrapped(error), pickle.loads(pickle.dumps(error)), outer, Wrapped(outer)):
        assert failure_of(seen).attempt == taken
    assert failure_of(ValueError("y")).attempt is None
    assert taken.longer(1.5) == Attempt(id="a", seconds=4.5, device_seconds={"A40": 9.0})
