"""What README and the docs tell people to type, to open and to believe is there."""

import importlib.util
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pytest

from cca_ray.cli import VERBS, group
from cca_ray.inputs import SPACES, find_space
from cca_ray.registry import GROUP
from cca_ray.space_file import load_config

ROOT = Path(__file__).parent.parent
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("tests/**/*.md"),
                        *ROOT.glob("benchmarks/*.md"), *ROOT.glob("examples/**/*.md")])
    if ".egg-info" not in str(page)
]  # fmt: skip
OURS = re.compile(r"(?:python -m cca_ray\.|cca-ray )(\w+)\b")
MARKERS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]


@dataclass(frozen=True)
class Command:
    page: str
    line: str

    def __str__(self) -> str:
        return f"{self.page}: {self.line[:60]}"

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line, comments=True)


def commands_of(page: Path) -> list[Command]:
    """Lines of its code blocks, continued ones as one, and what stands in `backticks`."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines + inline for part in re.split(r" && | \| |; ", line)]
    return [Command(str(page.relative_to(ROOT)), part) for part in parts if part]


COMMANDS = [command for page in PAGES for command in commands_of(page)]


def arguments_after(words: list[str], program: list[str]) -> list[str] | None:
    """Those of this program, wherever in the line it is: also after `ray job submit --`."""
    for start in range(len(words) - len(program) + 1):
        if words[start : start + len(program)] == program:
            return words[start + len(program) :]
    return None


def verbs(command: Command) -> tuple[str, list[str]] | None:
    """The verb and its arguments, if it is a command of ours and whole."""
    found = OURS.search(command.line)
    if not found or found[1] not in VERBS or not re.match(r"(ray|cca-ray|python|kubectl|CCA_RAY|pip) ?", command.line):
        return None
    rest = arguments_after(command.words, ["python", "-m", f"cca_ray.{found[1]}"])
    rest = arguments_after(command.words, ["cca-ray", found[1]]) if rest is None else rest
    return None if rest is None else (found[1], rest)


OF_OURS = [(command, *verb) for command in COMMANDS if (verb := verbs(command)) and verb[1]]


@pytest.mark.parametrize(("command", "verb", "arguments"), OF_OURS, ids=str)
def test_a_command_of_ours_parses(command: Command, verb: str, arguments: list[str]):
    program = group()
    _, parser, _ = program.resolve_command(program.make_context("cca-ray", [verb], resilient_parsing=True), [verb])
    context = parser.make_context(verb, [*arguments])
    if verb == "tune":
        settings = context.params["set_"] or []
        for space in context.params["spaces"] or []:
            if find_space(space).parent == SPACES:  # others are the reader's own, or want a plug-in
                load_config(find_space(space), settings)
            else:
                assert "/" in space, f"{command}: no such search space"


def test_no_command_of_ours_is_overlooked():
    assert len(OF_OURS) >= 30
    assert {verb for _, verb, _ in OF_OURS} == set(VERBS)


BENCHMARKS = [c for c in COMMANDS if c.line.startswith("python benchmarks/")]


@pytest.mark.parametrize("command", BENCHMARKS, ids=str)
def test_a_benchmark_is_there_and_takes_the_options_given(command: Command):
    _, program, *rest = command.words
    text = (ROOT / program).read_text()
    for option in [word for word in rest if word.startswith("--")]:
        assert f'"{option}"' in text, command


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.line.startswith("pytest")], ids=str)
def test_a_mark_that_is_asked_for_exists_and_a_path_too(command: Command):
    rest = command.words[1:]
    marks = {marker.split(":")[0] for marker in MARKERS}
    for option, value in pairwise(rest):
        if option == "-m":
            assert set(re.findall(r"\w+", value)) - {"or", "and", "not"} <= marks, command
    for word in rest:
        assert not word.startswith("tests/") or (ROOT / word).exists(), command


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_exist(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        if re.match(r"\w+:", target):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} -> {target}"
        if heading:
            titles = re.findall(r"^#+ (.*)", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {anchor(title) for title in titles}, f"{page.name} -> {target}"


def anchor(title: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_modules_and_files_of_ours_that_are_named_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    for name in set(re.findall(r"`(cca_ray(?:\.\w+)+)`", text)):
        module, _, attribute = name.rpartition(".")
        if name == GROUP:
            continue
        assert importlib.util.find_spec(name if module == "cca_ray" else module), f"{page.name}: {name} {attribute}"
    for name in set(re.findall(r"`((?:cca_ray|tests|benchmarks|deploy|search_spaces|docs|examples)/[\w./-]+)`", text)):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.slow
def test_the_table_of_scale_is_what_the_simulation_prints():
    command = [sys.executable, str(ROOT / "benchmarks" / "cluster_sim.py")]
    ended = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    rows = [line for line in ended.stdout.splitlines() if line.startswith("|")]
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 10
    assert [row for row in rows if row not in page] == []
