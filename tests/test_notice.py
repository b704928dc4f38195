"""What others' licences ask for goes with every copy of the package."""

import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_a_wheel_carries_the_licence_and_the_notice(tmp_path: Path):
    for name in ("pyproject.toml", "README.md", "LICENSE", "NOTICE"):
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    for folder in ("search_spaces", *(package.replace(".", os.sep) for package in packages)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    (tmp_path / "made").mkdir()
    make = "from setuptools import build_meta; print(build_meta.prepare_metadata_for_build_wheel('made'))"
    made = subprocess.run([sys.executable, "-c", make], cwd=tmp_path, capture_output=True, text=True, check=True)
    licences = tmp_path / "made" / made.stdout.splitlines()[-1] / "licenses"
    assert {path.name for path in licences.iterdir()} == {"LICENSE", "NOTICE"}


def test_the_image_is_built_with_what_the_project_names():
    files = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["license-files"]
    (line,) = [line for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines() if "pyproject.toml" in line]
    assert set(files) <= set(line.split())


def test_the_notice_names_the_code_that_golden_numbers_come_from():
    notice = (ROOT / "NOTICE").read_text()
    for name in ("LlamaGen", "VAR", "CCA", "ADM evaluator", "pytorch-fid", "RAR", "MaskGIT-VQGAN"):
        assert name in (ROOT / "tests" / "golden" / "README.md").read_text()
        assert name in notice
