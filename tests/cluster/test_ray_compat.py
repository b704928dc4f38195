"""That this Ray still has what `ray_compat` uses of it. Who fails here names the line to mend there."""

import importlib
import inspect
import logging
import os
import traceback
from pathlib import Path
from types import SimpleNamespace

import pytest
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train import TrainingFailedError
from ray.tune.experiment import Trial

from cca_ray.cluster.device import CardLost
from cca_ray.cluster.ray_compat import (
    DATA_PROGRESS,
    ERRORS_THREAD,
    FAILURE,
    IN_A_JOB,
    NEVER_RAN,
    ON_THE_HEAD,
    TRAIN_SWITCHES,
    TUNE_RESULTS,
    TUNE_SWITCHES,
    actor_of,
    last_loss,
    quiet_data,
    quiet_tune,
    set_switches,
    worker_group_startup_timeout_error,
    wrapped_error,
)


@pytest.mark.parametrize(
    ("text", "module", "where"),
    [
        ("RAY_AIR_NEW_OUTPUT", "ray.tune.experimental.output", "TUNE_SWITCHES"),
        ("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "ray.tune.utils.callback", "TUNE_SWITCHES"),
        ("TUNE_DISABLE_SIGINT_HANDLER", "ray.tune.tune", "TUNE_SWITCHES"),
        ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "ray.train.v2._internal.constants", "TRAIN_SWITCHES"),
        (IN_A_JOB, "ray._private.runtime_env.constants", "IN_A_JOB"),
        (NEVER_RAN, "ray.exceptions", "NEVER_RAN"),
        (FAILURE, "ray.tune.experiment.trial", "FAILURE"),
        (ERRORS_THREAD, "ray._private.worker", "ERRORS_THREAD"),
    ],
)
def test_ray_still_reads_and_writes_these_words(text: str, module: str, where: str):
    source = inspect.getsource(importlib.import_module(module))
    assert text in source, f"{module} no longer has {text!r}: mend {where} in cca_ray/cluster/ray_compat.py"


def test_all_switches_are_looked_for_above():
    assert set(TUNE_SWITCHES) == {
        "RAY_AIR_NEW_OUTPUT",
        "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS",
        "TUNE_DISABLE_SIGINT_HANDLER",
    }
    assert set(TRAIN_SWITCHES) == {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"}


def test_a_switch_that_is_set_already_stays(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("A_SWITCH", "mine")
    set_switches({"A_SWITCH": "ours"})
    assert os.environ["A_SWITCH"] == "mine"


def test_the_head_has_a_resource_of_its_own(ray_here: None):
    (name,) = ON_THE_HEAD
    assert name in ray.cluster_resources(), "mend ON_THE_HEAD in cca_ray/cluster/ray_compat.py"


def test_ray_data_tells_of_its_progress_by_this_logger():
    importlib.import_module(f"{DATA_PROGRESS}.base_progress")  # else mend DATA_PROGRESS
    quiet_data()
    assert logging.getLogger(DATA_PROGRESS).level == logging.ERROR


def test_tune_tells_by_this_logger_that_it_kept_no_results():
    assert importlib.import_module(TUNE_RESULTS).logger.name == TUNE_RESULTS  # else mend TUNE_RESULTS
    quiet_tune()
    assert logging.getLogger(TUNE_RESULTS).level == logging.ERROR


def test_the_error_of_a_group_that_did_not_start_is_there():
    assert issubclass(worker_group_startup_timeout_error(), Exception)


def test_what_ray_train_wraps_is_found():
    from ray.train.v2._internal.exceptions import UserExceptionWithTraceback
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    cause = ValueError("the cause")
    for error in (
        UserExceptionWithTraceback(cause, "traceback"),
        WorkerGroupError("a worker failed", {0: cause}),
        ControllerError(cause),
    ):
        assert wrapped_error(error) is cause, "mend wrapped_error in cca_ray/cluster/ray_compat.py"
        if not isinstance(error, UserExceptionWithTraceback):
            assert isinstance(error, TrainingFailedError)
    assert wrapped_error(cause) is None


def test_a_trial_of_tune_tells_its_process():
    assert actor_of(Trial("none", stub=True)) is None  # else mend actor_of


def raised(error: Exception) -> Exception:
    """As Ray brings it from the task that raised it."""
    text = "".join(traceback.format_exception(error))
    return RayTaskError("ImplicitFunc.train", text, error, "ray::train", 1, "127.0.0.1").as_instanceof_cause()


def lost(folder: Path, *errors: Exception) -> SimpleNamespace:
    """A trial that lost its process by these errors, as Tune writes them down."""
    path = folder / "error.txt"
    tune = SimpleNamespace(
        is_restoring=False,
        local_path=str(folder),
        error_file=str(path),
        pickled_error_file=str(folder / "error.pkl"),
        run_metadata=SimpleNamespace(num_failures=0, invalidate_cache=lambda: None),
        _handle_ray_actor_error=lambda error: None,
        _handle_ray_task_error=lambda error: None,
    )
    for error in errors:
        Trial.handle_error(tune, error)
    return tune


def test_how_a_process_was_lost_is_read_from_what_tune_writes(tmp_path: Path):
    """Else mend last_loss, FAILURE or NEVER_RAN."""
    assert last_loss(SimpleNamespace(error_file=None)) is None
    assert last_loss(SimpleNamespace(error_file=str(tmp_path / "absent"))) is None
    loss = last_loss(lost(tmp_path, ValueError("an earlier one"), ActorDiedError()))
    assert loss is not None
    assert loss.reason == "lost its process: The actor died unexpectedly before finishing this task."
    assert not loss.never_ran
    assert not loss.out_of_memory
    never = last_loss(lost(tmp_path, RuntimeError(f"The actor died.\n{NEVER_RAN} - it was cancelled")))
    assert never is not None
    assert (never.reason, never.never_ran) == (NEVER_RAN, True)
    card = last_loss(lost(tmp_path, raised(CardLost("AcceleratorError: CUDA error: device-side assert"))))
    assert card is not None
    assert card.reason == "lost its process: AcceleratorError: CUDA error: device-side assert"
    memory = last_loss(lost(tmp_path, RuntimeError(repr(OutOfMemoryError("too much")))))
    assert memory is not None
    assert memory.out_of_memory
