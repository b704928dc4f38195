import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
from cca_ray.models.llamagen_family import LlamaGenFamily

class Tiny(LlamaGenFamily):
    name = "tiny"

    def configure(self, size, **overrides):
        return super().configure("S" if size == "{known}" else size, **overrides)

PLUGINS = [Tiny()]
"""


@pytest.mark.parametrize(("known", "code"), [("S", 0), ("none", 1)])
def test_a_familys_promises_are_tested_by_its_modules_name(tmp_path: Path, known: str, code: int):
    (tmp_path / "plugged.py").write_text(MODULE.format(known=known))
    command = [sys.executable, "-m", "pytest", "-p", "cca_ray.testing.options", "-p", "no:cacheprovider", "-q",
               "--pyargs", "cca_ray.testing", "--family", "plugged", "-k", "refused and unknown"]  # fmt: skip
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = .\n")
    outcome = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert outcome.returncode == code, outcome.stdout + outcome.stderr
    assert ("1 failed" if code else "1 passed") in outcome.stdout
