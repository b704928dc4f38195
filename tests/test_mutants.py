"""The benchmark that counts which changes of the code the tests notice, on a function of one line."""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[1] / "benchmarks" / "mutants.py"


def test_good_tests_kill_mutants_and_poor_ones_do_not():
    done = subprocess.run([sys.executable, str(PROGRAM), "--smoke"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = dict(re.findall(r"^\| `(\w+)` \| (\d+ \| \d+) \|", done.stdout, re.MULTILINE))
    assert rows == {"well_tested": "4 | 4", "poorly_tested": "4 | 0"}
    assert done.stderr.count("poorly_tested\n") == 4  # every survivor is shown with the line that it changes
    assert "-    return x / 2 + 1\n+    return x // 2 + 1\n" in done.stderr


def test_every_module_and_every_file_of_tests_that_it_names_is_there():
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        from mutants import ROOT, TESTS
    finally:
        sys.path.remove(str(PROGRAM.parent))
    for module, tests in TESTS.items():
        assert (ROOT / "cca_ray" / f"{module}.py").exists()
        assert all((ROOT / "tests" / name).exists() for name in tests)
