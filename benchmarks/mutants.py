"""Do the tests notice when the code is another? Mutants of the modules behind every number, and how many are killed.

    python benchmarks/mutants.py --seed 0            # all modules; survivors go to stderr
    python benchmarks/mutants.py fid kid --share 0.5

cosmic-ray changes the code: an operator, a comparison, a constant, a condition, a decorator, a loop. Of each place that
it can change, one change is drawn by the seed; bit operations in place of arithmetic are left out, for they raise
whatever the tests are. Type hints do not count. The tests of the module's own file run on a copy of the project, in a
process that is forked after all libraries have been imported; a mutant that runs on and on is killed by its CPU time.
"""

import argparse
import ast
import importlib
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from difflib import unified_diff
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[1]
CPU_SECONDS = 60  # of one mutant's tests, which take one to ten
# Threads that wait for one another on busy cores, and plug-ins of pytest, take longer than the tests.
SETTINGS = {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "OPENBLAS_NUM_THREADS": "1",
    "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
}
OURS = ("cca_ray", "tests", "benchmarks", "__main__")
ARITHMETIC, BITS = (
    ("Add", "Sub", "Mul", "Div", "FloorDiv", "Mod", "Pow"),
    ("RShift", "LShift", "BitOr", "BitAnd", "BitXor"),
)
OPERATORS = [
    name
    for name in operator_names()
    if not get_operator(name).arguments()
    and name not in {f"core/ReplaceBinaryOperator_{old}_{new}" for old in ARITHMETIC for new in BITS}
]  # fmt: skip

TESTS = {
    "training/objectives": ("training/test_objectives.py",),
    "training/step": ("training/test_step.py", "training/test_recipe.py"),
    "evaluation/sampler": ("evaluation/test_sampler.py",),
    "evaluation/decoder": ("evaluation/test_sampler.py",),
    "evaluation/metric": ("evaluation/test_metric.py",),
    "evaluation/fid": ("evaluation/test_fid.py",),
    "evaluation/inception_score": ("evaluation/test_inception_score.py",),
    "evaluation/kid": ("evaluation/test_kid.py",),
    "evaluation/precision_recall": ("evaluation/test_precision_recall.py",),
    "evaluation/jackknife": ("evaluation/test_jackknife.py",),
    "evaluation/estimate": ("evaluation/test_estimate.py",),
    "search/rungs": ("search/test_rungs.py",),
    "search/standings": ("search/test_standings.py",),
    "verdict": ("test_verdict.py",),
}


@dataclass(frozen=True)
class Mutant:
    """A changed source, and the lines that changed."""

    source: str
    diff: tuple[str, ...]

    @staticmethod
    def of(original: str, mutated: str) -> "Mutant":
        lines = list(unified_diff(original.splitlines(), mutated.splitlines(), n=0, lineterm=""))[2:]
        return Mutant(mutated, tuple(lines))


def meaning(source: str) -> str:
    """What of a source can change what it does: no type hints."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return ast.dump(tree)


def mutants(source: str, draw: random.Random) -> Iterator[Mutant]:
    """One of each place."""
    nodes, places = list(ast_nodes(get_ast(source))), dict[object, list[tuple[str, int]]]()
    for name in OPERATORS:
        operator, family = get_operator(name)(), name.split("_")[0]
        positions = [position for node in nodes for position in operator.mutation_positions(node)]
        for occurrence, position in enumerate(positions):
            places.setdefault((position, family), []).append((name, occurrence))
    for _, choices in sorted(places.items()):
        name, occurrence = draw.choice(choices)
        mutated = mutate_code(source, get_operator(name)(), occurrence)
        with suppress(SyntaxError):  # what does not compile proves nothing
            if meaning(mutated) != meaning(source):
                yield Mutant.of(source, mutated)


def run_tests(copy: Path, tests: Sequence[str], mutated: bool, answer: Connection) -> None:
    """In a process of its own: pytest's exit code, and what was imported."""
    import resource

    import pytest

    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    sys.dont_write_bytecode = mutated  # two mutants of one size and second would share theirs
    if mutated:  # seconds of its own, not of a machine that others use, too
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS))
    os.chdir(copy)
    sys.path.insert(0, str(copy))
    code = pytest.main([
        "-x", "-q", "-o", "addopts=", "-p", "pytest_timeout", "--timeout", "900", "-p", "no:cacheprovider",
        "-m", "not slow and not nightly and not chaos", "--basetemp", str(copy / "tmp"),
        *(f"tests/{name}" for name in tests),
    ])  # fmt: skip
    assert str(sys.modules["cca_ray"].__file__).startswith(str(copy))
    answer.send((int(code), [name for name in sys.modules if name.split(".")[0] not in OURS]))
    os._exit(0)


def outcome(copy: Path, tests: Sequence[str], mutated: bool = True) -> tuple[int, list[str]]:
    """pytest's exit code, -1 of a process that died, and the libraries that were imported."""
    ours, theirs = get_context("fork").Pipe(duplex=False)
    process = get_context("fork").Process(target=run_tests, args=(copy, tests, mutated, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError:
        return -1, []
    finally:
        process.join()


def killed(copy: Path, path: Path, mutant: Mutant, tests: Sequence[str]) -> bool:
    path.write_text(mutant.source)
    os.utime(path, (0, 0))  # else the bytecode of what was there in the same second, of the same size, would be run
    return outcome(copy, tests)[0] != 0


@dataclass(frozen=True)
class Result:
    mutants: int
    survivors: tuple[Mutant, ...]
    seconds: float


def examine(copy: Path, module: str, tests: Sequence[str], seed: int, share: float) -> Result:
    """The tests pass on the module as it is; how many of its mutants pass, too?"""
    path, began = copy / "cca_ray" / f"{module}.py", time.monotonic()
    source = path.read_text()
    code, libraries = outcome(copy, tests, mutated=False)
    if code:
        raise SystemExit(f"{module}: its tests do not pass as it is (pytest's exit code is {code})")
    for name in libraries:
        with suppress(ImportError):
            importlib.import_module(name)
    draw = random.Random(seed)  # noqa: S311
    chosen = list(mutants(source, draw))
    chosen = draw.sample(chosen, max(1, round(share * len(chosen))))
    survivors = []
    for mutant in chosen:
        if not killed(copy, path, mutant, tests):
            survivors.append(mutant)
            print(module, *mutant.diff, sep="\n", file=sys.stderr, flush=True)
    path.write_text(source)
    return Result(len(chosen), tuple(survivors), time.monotonic() - began)


def copied(folder: Path) -> dict[str, tuple[str, ...]]:
    """The project where it may be changed; its modules, and their tests."""
    for name in ("cca_ray", "tests", "benchmarks", "search_spaces"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", folder)
    os.environ.setdefault("CCA_RAY_TEST_BASES", str(folder / "bases"))
    return TESTS


def row(module: str, result: Result, share: float) -> str:
    """Of the table; with the standard error of drawing, where not all places were taken."""
    count, kills = result.mutants, result.mutants - len(result.survivors)
    spread = f" ± {(kills * (count - kills) / count) ** 0.5 / count:.1%}" if share < 1 else ""
    return f"| `{module}` | {count} | {kills} | {kills / count:.1%}{spread} | {result.seconds:.0f} |"


def smoke(folder: Path) -> dict[str, tuple[str, ...]]:
    """A project of one line, once with a test that notices every change and once with one that notices none."""
    (folder / "cca_ray").mkdir()
    (folder / "tests").mkdir()
    (folder / "cca_ray" / "__init__.py").touch()
    for name, check in (("well_tested", "assert f(6) == 4 and f(1) == 1.5"), ("poorly_tested", "f(6)")):
        (folder / "cca_ray" / f"{name}.py").write_text("def f(x):\n    return x / 2 + 1\n")
        test = f"from cca_ray.{name} import f\n\n\ndef test_f():\n    {check}\n"
        (folder / "tests" / f"test_{name}.py").write_text(test)
    return {name: (f"test_{name}.py",) for name in ("well_tested", "poorly_tested")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", help="ends of their names; all, if none is given")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the places, drawn by the seed")
    parser.add_argument("--smoke", action="store_true", help="a function of one line instead, in seconds")
    arguments = parser.parse_args()
    os.environ |= SETTINGS
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        targets = smoke(copy) if arguments.smoke else copied(copy)
        print("| module | mutants | killed | share | seconds |\n|---|---|---|---|---|", flush=True)
        for module, tests in targets.items():
            if not arguments.modules or module.endswith(tuple(arguments.modules)):
                result = examine(copy, module, tests, arguments.seed, arguments.share)
                print(row(module, result, arguments.share), flush=True)


if __name__ == "__main__":
    main()
