"""A file imports only from files above it, in the order in which the data flows."""

import ast
from pathlib import Path

import pytest

ORDER = [
    "config", "uris", "mirror", "lease", "placement", "models.files", "models.dropout", "models.llamagen",
    "models.llamagen_vq", "models.var_vqvae", "models.var", "models", "images", "tokens", "lock", "encode", "data",
    "objective", "parallel", "reference", "sampler", "champion", "features", "fid", "checkpoint", "scoring", "machine",
    "worker", "mlmodels", "mlstore", "tracking", "stopping", "gangs", "trial", "ledger", "standing", "finals",
    "showcase", "tuning", "search", "console", "chatter", "view", "results", "drawing", "charts", "words", "page",
    "report", "pretrain", "prepare", "train", "sample", "evaluate", "status", "sizes", "tune", "cli", "__main__",
]  # fmt: skip
PACKAGE = Path(__file__).parent.parent / "cca_ray"


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


FILES = {module_name(path): path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py"}


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text())))
    modules = {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return modules | {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}


def test_every_file_has_its_place():
    assert set(FILES) == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_only_from_above(name: str):
    ours = {m.removeprefix("cca_ray.") for m in imported(FILES[name]) if m.startswith("cca_ray.")}
    assert ours <= set(ORDER[: ORDER.index(name)])


def test_only_the_tracker_and_what_it_writes_with_import_mlflow():
    importers = {name for name, path in FILES.items() if any(m.split(".")[0] == "mlflow" for m in imported(path))}
    assert importers == {"mlmodels", "mlstore", "tracking"}
