"""Where a run comes from, under the names by which MLflow's users filter: program, user, commit, versions."""

import getpass
import os
from functools import cache
from importlib.metadata import version

from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_GIT_DIRTY,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from cca_ray import __version__
from cca_ray.cluster.machine import FULL, LIBRARIES, revision
from cca_ray.cluster.ray_compat import IN_A_JOB

PROGRAM = "cca-ray tune"
DIRTY = "-dirty"


@cache
def origin() -> dict[str, str]:
    """Tags of every run."""
    tags = {
        MLFLOW_SOURCE_NAME: PROGRAM,
        MLFLOW_SOURCE_TYPE: "JOB" if IN_A_JOB in os.environ else "LOCAL",
        MLFLOW_USER: user(),
        "version": __version__,
    }
    if commit := revision(FULL):
        tags |= {MLFLOW_GIT_COMMIT: commit.removesuffix(DIRTY), MLFLOW_GIT_DIRTY: str(commit.endswith(DIRTY)).lower()}
    return tags


def user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name, as in some containers
        return str(os.getuid())


def versions() -> dict[str, str]:
    """Tags of a size's run: the libraries of the driver."""
    return {f"version.{name}": version(name) for name in LIBRARIES}
