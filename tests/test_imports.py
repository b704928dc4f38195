"""A package imports only from packages above it, a file from no file that imports it, and nobody from a test module."""

import ast
import re
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

# Files of the package's own folder stand here by their names; the verbs at the door come last.
ORDER = [
    "errors", "contracts", "verdict", "registry", "placement_config", "search_config",
    "config", "space_file", "storage", "inputs",
    "cluster", "models", "data", "evaluation", "training", "tracking", "champion", "search", "terminal", "reporting",
    "testing", "report", "pretrain", "prepare_options", "prepare", "train", "sample", "evaluate", "status", "clean",
    "opened", "study", "tune", "plan", "cli", "__main__",
]  # fmt: skip
PACKAGE = Path(__file__).parent.parent / "cca_ray"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def imported(path: Path) -> set[str]:
    """Modules, by their full names, wherever in the file they are imported."""
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            ours = {name for name in names if name.removeprefix("cca_ray.") in FILES}
            modules |= ours or {node.module}
    return modules


OURS = {name: {m.removeprefix("cca_ray.") for m in imported(path) if m.startswith("cca_ray.")}
        for name, path in FILES.items()}  # fmt: skip


def test_every_file_has_its_room():
    assert {name.split(".")[0] for name in FILES} == set(ORDER)


@pytest.mark.parametrize("name", FILES)
def test_a_package_imports_only_from_above(name: str):
    room = name.split(".")[0]
    assert {module.split(".")[0] for module in OURS[name]} <= set(ORDER[: ORDER.index(room) + 1])


def test_no_file_imports_itself_by_way_of_others():
    TopologicalSorter(OURS).prepare()  # raises CycleError, which names the circle


@pytest.mark.parametrize("name", [name for name in ORDER if (PACKAGE / name).is_dir()])
def test_a_package_says_what_it_is_for_and_what_it_may_import(name: str):
    tree = ast.parse(FILES[name].read_text())
    assert "mport" in (ast.get_docstring(tree) or "")
    assert len(tree.body) == 1  # nothing is imported on the way to a module


def test_only_the_tracker_and_what_it_writes_with_import_mlflow():
    importers = {name for name, path in FILES.items() if any(m.split(".")[0] == "mlflow" for m in imported(path))}
    assert importers == {
        "tracking.logged_models", "tracking.origin", "tracking.store", "tracking.tracker", "tracking.trouble",
    }  # fmt: skip


def test_every_package_is_in_the_wheel():
    project = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())
    folders = {".".join(path.parent.relative_to(PACKAGE.parent).parts) for path in PACKAGE.rglob("__init__.py")}
    assert set(project["tool"]["setuptools"]["packages"]) == folders | {"cca_ray.search_spaces"}
    shipped = {
        path
        for name, patterns in project["tool"]["setuptools"]["package-data"].items()
        for pattern in patterns
        for path in PACKAGE.parent.joinpath(*name.split(".")).glob(pattern)
    }
    files = {path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")}
    assert files <= shipped


def test_no_file_of_the_tests_imports_from_a_test_module():
    """What several of them share is in a file of its own, whose name says what that is."""
    imports = [
        (path.name, ast.unparse(node))
        for path in Path(__file__).parent.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert imports
    assert [(name, words) for name, words in imports if re.search(r"\btest_", words)] == []
