"""What libraries ask a notebook for when they are imported, and we do not need, is not shown to anyone."""

import logging
import subprocess
import sys
import warnings

import pytest

from cca_ray.terminal.hints import without_hints

NOTEBOOK = """
from ipykernel.zmqshell import ZMQInteractiveShell

ZMQInteractiveShell.instance()
"""


def test_no_library_asks_a_notebook_for_ipywidgets():
    import_alone = subprocess.run([sys.executable, "-c", f"{NOTEBOOK}import tqdm.auto"], capture_output=True, text=True)
    ours = subprocess.run(
        [sys.executable, "-c", f"{NOTEBOOK}import cca_ray; cca_ray.sample"], capture_output=True, text=True, check=True
    )
    assert "ipywidgets" in import_alone.stderr  # the hint that is not shown
    assert ours.stdout + ours.stderr == ""


def test_all_else_is_said_and_later_all():
    with pytest.warns(UserWarning, match="another"), without_hints():
        warnings.warn("another", UserWarning, stacklevel=1)
    with pytest.warns(UserWarning, match="IProgress"):
        warnings.warn("IProgress not found", UserWarning, stacklevel=1)
    assert logging.getLogger("ray.widgets.util").level == logging.NOTSET
