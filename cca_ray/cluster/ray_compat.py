"""What of Ray has no public way: each a function that imports it when it is called."""


def worker_group_startup_timeout_error() -> type[Exception]:
    """What Ray Train raises when the workers of a group could not be started in time."""
    from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

    return WorkerGroupStartupTimeoutError
