"""The example plug-in, as someone else would use it: both wheels in an environment of their own, and a study.

Nothing is downloaded: the new environment sees the heavy dependencies of this one.
"""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from site import getsitepackages

import optuna
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
EXAMPLE = ROOT / "examples" / "plugin"
SOURCES = ("cca_ray", "search_spaces", "pyproject.toml", "README.md", "LICENSE")  # what the wheel is made of
SPACE = "digits_mixer"
OFFLINE = ("--no-deps", "--no-index", "--quiet", "--disable-pip-version-check")


def run(arguments: Sequence[str | Path], folder: Path) -> str:
    """A command's output. What names this checkout or another storage is not passed on."""
    ours = ("PYTHONPATH", "MLFLOW_", "CCA_RAY_", "PYTEST_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
    environment = {**kept, "RAY_ADDRESS": "local", "CCA_RAY_CACHE": str(folder / "cache")}
    done = subprocess.run(arguments, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{arguments}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def built(source: Path, names: Sequence[str], folder: Path) -> Path:
    """The wheel of the package in `source`, built from a copy, so that nothing is left beside the sources."""
    copy = folder / source.name
    for name in names:
        put = shutil.copytree if (source / name).is_dir() else shutil.copy2
        copy.mkdir(parents=True, exist_ok=True)
        put(source / name, copy / name)
    wheels = folder / f"wheel of {source.name}"
    run([sys.executable, "-m", "pip", "wheel", *OFFLINE, "--no-build-isolation", "-w", wheels, copy], folder)
    (wheel,) = wheels.glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of a fresh environment with both wheels."""
    folder = tmp_path_factory.mktemp("installed")
    environment = folder / "environment"
    venv.create(environment, symlinks=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    # Of the folder named here, .pth files are not read: an editable cca_ray of this environment is not seen.
    (packages / "dependencies.pth").write_text("\n".join(getsitepackages()))
    wheels = [built(ROOT, SOURCES, folder), built(EXAMPLE, ("cca_ray_example", "pyproject.toml"), folder)]
    python = environment / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", *OFFLINE, *wheels], folder)
    return environment / "bin"


def small_space(folder: Path) -> Path:
    """The example's own search space, with fewer trials of fewer images."""
    content = yaml.safe_load((EXAMPLE / f"{SPACE}.yaml").read_text())
    content["search"]["trials"] = 2
    content["control"]["learning_rates"] = [3e-3]
    content["rungs"] = [{"at": 0.5, "samples": 100}, {"at": 1.0, "samples": 200}]
    content["score"] |= {"samples": 200, "blocks": 1, "guidance_scales": [1.5]}
    content["train"]["epochs"] = 1
    content["pretrain"] |= {"epochs": 5, "tokenizer_epochs": 2, "feature_epochs": 2}
    path = folder / f"{SPACE}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.slow
def test_the_package_runs_from_its_own_place(installed: Path, tmp_path: Path):
    program = "import cca_ray, cca_ray_example; print(cca_ray.__file__, cca_ray_example.__file__)"
    where = run([installed / "python", "-c", program], tmp_path)
    assert where.count(str(installed.parent)) == 2
    assert str(ROOT) not in where


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_family_an_objective_and_a_metric_from_outside_are_searched_with(installed: Path, tmp_path: Path):
    command = [installed / "cca-ray", "tune", small_space(tmp_path), "--name", "outside", "--json"]
    said = json.loads(run(command, tmp_path))
    folder = tmp_path / "runs" / "outside"
    (size,) = json.loads((folder / "summary.json").read_text())["sizes"]
    assert said["sizes"] == [size]
    assert (size["family"], size["objective"], size["objective_label"]) == ("mixer", "ipo", "IPO")
    assert set(size["winner"]["params"]) == {"margin", "learning_rate"}
    for role in ("base", "guided", "control", "tuned"):
        assert size["models"][role]["values"]["mean_distance"] > 0
    memory = memory_of(folder / "study.db")
    version, digest = memory["plugins"]["cca_ray_example"].split()
    assert version == "1.2.3"
    assert len(digest) == 16
    page = (folder / "report" / "report.html").read_text()
    assert "IPO" in page
    assert "mean feature distance" in page


def memory_of(database: Path) -> dict[str, dict[str, str]]:
    """What a study remembers of its settings."""
    storage = f"sqlite:///{database}"
    (name,) = (name for name in optuna.get_all_study_names(storage) if name.endswith("search"))
    memory: dict[str, dict[str, str]] = optuna.load_study(study_name=name, storage=storage).user_attrs["memory"]
    return memory


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_example_passes_the_suites_for_plug_ins(installed: Path, tmp_path: Path):
    shutil.copy2(EXAMPLE / "test_plugin.py", tmp_path)
    pytest_there = [installed / "python", "-m", "pytest"]
    assert "passed" in run([*pytest_there, "test_plugin.py"], tmp_path)
    assert "passed" in run([*pytest_there, "--pyargs", "cca_ray.testing", "--family", "cca_ray_example"], tmp_path)
