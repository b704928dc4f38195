"""What README and the docs tell people to type, to open and to believe is there."""

import ast
import csv
import importlib.util
import inspect
import json
import re
import shlex
import subprocess
import sys
import tomllib
from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

import pytest
import yaml

import cca_ray
from benchmarks import cluster_sim, default
from benchmarks.intervals import WORLDS, row
from cca_ray import tune
from cca_ray.cli import VERBS, group
from cca_ray.cluster.machine import machine_here
from cca_ray.cluster.placement import IMAGES, accelerator_of, memory_gib, ways
from cca_ray.inputs import DEFAULT_SPACES, SPACES, find_space
from cca_ray.registry import GROUP
from cca_ray.space_file import load_config
from cca_ray.training import roofline
from tests import pictures
from tests.commands import invoke
from tests.studies import summary_of

ROOT = Path(__file__).parent.parent
STUDIES = "docs/studies/striped_digits.md"
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
        return shlex.split(self.line.partition(" > ")[0], comments=True)


def commands_of(page: Path) -> list[Command]:
    """Lines of its code blocks, continued ones as one, and what stands in `backticks`."""
    text = page.read_text(encoding="utf-8")
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    inline = re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE))
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    parts = [part for line in lines + inline for part in re.split(r" && | \| |; ", line)]
    return [Command(str(page.relative_to(ROOT)), part) for part in parts if part]


def examples_of(verb: str) -> list[Command]:
    """What its --help shows, without what each line says of it."""
    text = ast.get_docstring(ast.parse((ROOT / "cca_ray" / f"{verb}.py").read_text(encoding="utf-8"))) or ""
    lines = [line.strip() for line in text.splitlines()]
    return [Command(f"{verb} --help", re.split(" {2,}", line)[0]) for line in lines if line.startswith("cca-ray ")]


COMMANDS = [command for page in PAGES for command in commands_of(page)]
COMMANDS += [command for verb in VERBS for command in examples_of(verb)]


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
            if (SPACES / f"{Path(space).stem}.yaml").exists():  # others are the reader's own, or want a plug-in
                load_config(find_space(space), settings)
            else:
                assert "/" in space or space.endswith(".yaml"), f"{command}: no such search space"


def test_no_command_of_ours_is_overlooked():
    assert len(OF_OURS) >= 30
    assert {verb for _, verb, _ in OF_OURS} == set(VERBS)
    assert all(examples_of(verb) for verb in VERBS)


@pytest.mark.parametrize("verb", [*VERBS, "VERB"])  # README: `cca-ray VERB --help`; without a verb, `cca-ray --help`
def test_help_that_is_offered_is_there(verb: str, capsys: pytest.CaptureFixture[str]):
    words = [] if verb == "VERB" else [verb]
    with pytest.raises(SystemExit) as ended:
        group().main([*words, "--help"], prog_name="cca-ray")
    assert ended.value.code == 0
    assert "Usage: " in capsys.readouterr().out


DRY = [command for command in OF_OURS if "--dry-run" in command[2]]


@pytest.mark.parametrize(("command", "verb", "arguments"), DRY, ids=str)
def test_a_command_that_only_shows_what_would_run_runs(
    command: Command, verb: str, arguments: list[str], capsys: pytest.CaptureFixture[str]
):
    outcome = invoke(tune.main, arguments, capsys)
    assert (verb, outcome.code, outcome.err) == ("tune", 0, "")
    assert {study["name"] for study in yaml.safe_load_all(outcome.out)} == set(DEFAULT_SPACES)


BENCHMARKS = [c for c in COMMANDS if re.match(r"python (-m )?benchmarks\b", c.line)]


@pytest.mark.parametrize("command", BENCHMARKS, ids=str)
def test_a_benchmark_is_there_and_takes_the_options_given(command: Command):
    program = re.search(r"benchmarks[./](\w+)", command.line)
    assert program, command
    files = [ROOT / "benchmarks" / f"{name}.py" for name in (program[1], "common")]
    if not files[0].exists():
        files[0] = ROOT / "benchmarks" / program[1] / "__main__.py"
    text = "".join(path.read_text() for path in files)
    for option in [word for word in command.words if word.startswith("--")]:
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
        if name == GROUP or attribute in cca_ray.__all__:
            continue
        assert importlib.util.find_spec(name if module == "cca_ray" else module), f"{page.name}: {name} {attribute}"
    for name in set(re.findall(r"`((?:cca_ray|tests|benchmarks|deploy|search_spaces|docs|examples)/[\w./-]+)`", text)):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


def programs() -> list[tuple[str, str]]:
    """Python that README, the docs and the notebooks show."""
    block, found = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE), list[tuple[str, str]]()
    for page in PAGES:
        found += [(str(page.relative_to(ROOT)), text) for text in block.findall(page.read_text(encoding="utf-8"))]
    for notebook in ROOT.glob("examples/*.ipynb"):
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        found += [(notebook.name, "".join(cell["source"])) for cell in cells if cell["cell_type"] == "code"]
    return found


def called(program: str) -> list[tuple[str, ast.Call]]:
    """The functions of `cca_ray` itself that it calls."""
    calls = [node for node in ast.walk(ast.parse(program)) if isinstance(node, ast.Call)]
    return [(call.func.attr, call) for call in calls
            if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)
            and call.func.value.id == "cca_ray"]  # fmt: skip


CALLS = [(page, name, call) for page, program in programs() for name, call in called(program)]


@pytest.mark.parametrize(("page", "name", "call"), CALLS, ids=map(str, range(len(CALLS))))
def test_a_call_of_ours_has_arguments_that_there_are(page: str, name: str, call: ast.Call):
    given = {keyword.arg: None for keyword in call.keywords if keyword.arg}
    inspect.signature(getattr(cca_ray, name)).bind(*call.args, **given)


def test_no_call_of_ours_is_overlooked():
    assert {name for _, name, _ in CALLS} >= {*cca_ray.VERBS, "open"}
    assert {page for page, *_ in CALLS} >= {"README.md", "docs/python.md", "digits.ipynb"}


def commit_exists(commit: str) -> bool:
    """Whether this repository has it; taken for granted where there is none, or not all of it."""
    git = ["git", "-C", str(ROOT)]
    said = subprocess.run([*git, "rev-parse", "--is-shallow-repository"], capture_output=True, text=True)
    if said.stdout.strip() != "false":
        return True
    return subprocess.run([*git, "cat-file", "-e", f"{commit}^{{commit}}"], capture_output=True).returncode == 0


def measured_tables(page: Path) -> list[tuple[str, str]]:
    """Those with figures, each with the line that follows it."""
    found = re.findall(r"((?:^\|.*\n)+)\n?(.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [(table, line) for table, line in found if re.search(r"\| \d[\d.,]* ", table)]


MEASURED = [
    (page, *table) for page in ("README.md", "benchmarks/README.md", STUDIES) for table in measured_tables(ROOT / page)
]


@pytest.mark.parametrize(("page", "table", "line"), MEASURED, ids=map(str, range(len(MEASURED))))
def test_a_table_of_figures_says_of_which_commit_it_is_and_where_its_raw_results_are(page: str, table: str, line: str):
    commits = re.findall(r"`([0-9a-f]{7,40})`", line)
    assert re.match(r"Measured for commits? `", line), f"{page}: {line!r} follows {table}"
    assert commits
    assert [commit for commit in commits if not commit_exists(commit)] == []
    files = re.findall(r"`([\w/-]+\.csv)`", line)
    for file in files:
        assert (ROOT / file).read_text(encoding="utf-8").startswith(f"# commit {commits[0]},"), file
    assert files or "raw results were not kept" in line, line


def test_no_table_of_figures_is_overlooked():
    assert len(MEASURED) >= 13


def test_the_intervals_of_the_benchmarks_page_are_those_of_its_raw_results():
    raw = csv.DictReader((ROOT / "benchmarks" / "results" / "intervals.csv").read_text("utf-8").splitlines()[1:])
    found = defaultdict[str, list[tuple[float, ...]]](list)
    for study in raw:
        name, _, *values = study.values()
        found[name].append(tuple(map(float, values)))
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8").splitlines()
    assert list(found) == list(WORLDS)
    assert [line for name, studies in found.items() if (line := row(name, studies)) not in page] == []
    assert {len(studies) for studies in found.values()} == {400}


def test_the_readmes_table_is_that_of_its_raw_results():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert default.table(default.read_rows(default.ROWS)) in page


def test_the_table_of_the_small_rar_is_that_of_its_raw_results():
    rows = default.read_rows(ROOT / "benchmarks" / "results" / "digits_rar.csv")
    assert default.table(rows) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    ratios = [
        sorted(ratio(row) for row in rows)
        for ratio in (default.RATIOS["CCA / guided"], default.RATIOS["CCA / control"])
    ]
    told = (
        "{:.2f} of the guided base's FID at the median and {:.2f} at most, "
        "and {:.2f} of the control's at the median and {:.2f} at most"
    )
    numbers = [value for of_all in ratios for value in (of_all[len(rows) // 2], of_all[-1])]
    assert told.format(*numbers) in (ROOT / "docs" / "imagenet.md").read_text(encoding="utf-8")


def test_the_table_of_the_kept_studies_is_that_of_its_raw_results():
    rows = default.read_rows((ROOT / STUDIES).with_suffix(".csv"))
    assert default.table(rows) in (ROOT / STUDIES).read_text(encoding="utf-8")


NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def test_the_figures_of_the_readmes_sentences_are_those_of_its_raw_results():
    page, rows = (ROOT / "README.md").read_text(encoding="utf-8"), default.read_rows(default.ROWS)
    (studies, control) = re.findall(r"In all (\w+) studies, CCA was better .*?at most ([\d.]+) times its FID", page)[0]
    (worse,) = re.findall(r"of VAR, where it was worse by up to (\d+) %", page)
    assert studies == (NUMBERS[len(rows)] if len(rows) < len(NUMBERS) else str(len(rows)))
    assert control == f"{max(row.fid_cca / row.fid_control for row in rows):.2f}"
    assert worse == f"{100 * max(row.fid_cca / row.fid_guided - 1 for row in rows if row.size == 'digits_var'):.0f}"
    var, llamagen = (
        [row.fid_cca / row.fid_guided for row in rows if (row.size == "digits_var") is is_var]
        for is_var in (True, False)
    )
    below = [sum(ratio < 1 for ratio in ratios) for ratios in (llamagen, var)]
    of_llamagen = f"{below[0]} of the {len(llamagen)} studies of LlamaGen (at most {max(llamagen):.2f} times)"
    assert f"lower FID than it in {of_llamagen}, and in {below[1]} of the {len(var)} of VAR" in page
    bases = NUMBERS[len({(row.arithmetic, row.base) for row in rows})]
    assert f"over {bases} bases of each size" in page
    off = sum(row.fid_guided <= 0.8 * row.fid_base for row in rows)
    assert f"In {off} of the {len(rows)} studies guidance takes at least 20 % off" in page
    assert f"is of {bases} bases a size" in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


def test_the_ways_and_hours_of_a_trial_in_the_docs_are_those_of_the_arithmetic():
    def cells(size: roofline.Size, type_: str) -> list[str]:
        way = next((way for way in ways(size.config.placement) if accelerator_of(way) == type_), None)
        if way is None:
            return ["none", "", ""]
        need = memory_gib(size, way.workers, way.micro_batch or 1, way.strategy, way.activation_checkpointing)
        hours = roofline.training_seconds(size, way, IMAGES) / 3600
        return [f"{way.workers} × {way.micro_batch} {way.strategy}", f"{need:.0f}", f"{hours:.1f}"]

    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    table = page.partition("| size | H100s: way |")[2].partition("\n\n")[0].splitlines()[2:]
    found = [[cell.strip() for cell in line.strip("|").split("|")][1:] for line in table]
    expected = [
        [*cells(size, "H100"), *cells(size, "A40"), f"{50_000 * roofline.image_seconds(size, 'H100') / 3600:.2f}"]
        for size in map(cluster_sim.size_of, cluster_sim.NAMES)
    ]
    assert found == expected


def test_scoring_takes_less_than_15_percent_of_each_official_size_as_the_docs_say(capsys: pytest.CaptureFixture[str]):
    cluster_sim.print_scoring()
    lines = capsys.readouterr().out.splitlines()
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line not in page] == []
    shares = [int(line.split(" | ")[6].rstrip("%")) for line in lines[2:]]
    assert len(shares) == len(cluster_sim.NAMES)
    assert max(shares) < 15


def test_what_the_readme_says_of_another_arithmetic_is_of_its_raw_results():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    by_study = defaultdict[tuple[object, ...], list[float]](list)
    for study in default.read_rows(default.ROWS):
        by_study[study.size, study.base, study.seed].append(study.fid_base)
    differ = [100 * abs(a - b) / fmean((a, b)) for a, b in by_study.values()]
    assert f"differed by {fmean(differ):.1f} % on average, and by {max(differ):.0f} % at most" in page


def test_what_the_readme_says_of_32_pixels_is_of_the_raw_results_of_those_studies():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    one, var = default.read_rows((ROOT / STUDIES).with_suffix(".csv"))
    assert (
        f"a base of {one.parameters / 1e6:.1f} M parameters, took {one.seconds / 60:.0f} minutes: CCA brought FID from "
        f"{one.fid_base:.1f} to {one.fid_cca:.1f}, plain fine-tuning to {one.fid_control:.1f}, and guidance to "
        f"{one.fid_guided:.1f}. Of a VAR of the same size, which guidance improved by "
        f"{100 * (1 - var.fid_guided / var.fid_base):.0f} % only, CCA gained nothing."
    ) in page
    assert var.fid_cca > var.fid_base


def test_the_readmes_pictures_are_of_a_study_of_its_table():
    made = pictures.MadeOf.model_validate_json(pictures.MADE_OF.read_bytes())
    which = (made.arithmetic, made.base, made.seed, made.commit)
    of_it = [
        row for row in default.read_rows(default.ROWS) if (row.arithmetic, row.base, row.seed, row.commit) == which
    ]
    assert len(of_it) == len(DEFAULT_SPACES)
    assert made.pictures == pictures.digests()
    shown = re.findall(r"\]\(docs/([\w-]+\.png)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert len(shown) >= 4
    assert set(shown) <= set(made.pictures)


def test_the_study_of_the_pictures_is_found_among_the_rows():
    size = summary_of(machine=machine_here())
    rows = [
        replace(default.Row.of(size, arithmetic, base, 0), commit="0123456789ab")
        for arithmetic, base in (("avx2", 0), ("default", 1))
    ]
    other = replace(rows[0], fid_cca=9.0)
    assert pictures.row_of([size], [other, rows[1]]) == rows[1]
    assert pictures.row_of([size], [other]) is None
    larger = size.model_copy(update={"size": "digits_m"})
    assert pictures.row_of([size, larger], rows[:1]) is None
    assert pictures.row_of([size, larger], [rows[0], replace(rows[1], size="digits_m")]) is None  # two studies


def test_figures_without_a_way_to_check_them_are_not_taken(tmp_path: Path):
    page = tmp_path / "page.md"
    page.write_text(
        "| a | b |\n|---|---|\n| x | 1.5 |\n\nIt is fast.\n\n| file | content |\n|---|---|\n| x | what 1 is |\n"
    )
    ((table, line),) = measured_tables(page)
    with pytest.raises(AssertionError, match="It is fast"):
        test_a_table_of_figures_says_of_which_commit_it_is_and_where_its_raw_results_are("page.md", table, line)
    line = "Measured for commit `0123456` (today); raw results: `benchmarks/results/none.csv`."
    with pytest.raises((AssertionError, OSError)):
        test_a_table_of_figures_says_of_which_commit_it_is_and_where_its_raw_results_are("page.md", table, line)


def test_the_table_of_what_scoring_takes_is_what_the_arithmetic_prints(capsys: pytest.CaptureFixture[str]):
    cluster_sim.main(["--scoring"])
    printed, page = capsys.readouterr().out, (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")
    assert printed.count("\n") == 2 + len(cluster_sim.NAMES) == 15
    assert printed in page


def test_the_hours_of_rar_are_what_the_simulation_prints(capsys: pytest.CaptureFixture[str]):
    cluster_sim.main(["--families", "rar", "--cluster", "H100=1", "--max-concurrent", "16", "--side-by-side"])
    on_demand, _ = (line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:])
    gpus, trials, kind, days, paid, usd = (on_demand[column] for column in (1, 2, 3, 4, 5, 8))
    assert (gpus, trials, kind) == ("8", "16 a size, all sizes at once", "on demand")
    told = f"take {days} days, {paid.removeprefix('H100 ')} GPU-hours and {usd} USD (simulated)"
    assert told in (ROOT / "docs" / "scale.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_table_of_scale_is_what_the_simulation_prints():
    command = [sys.executable, "-m", "benchmarks.cluster_sim"]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    rows = [line for line in ended.stdout.splitlines() if line.startswith("|")]
    page = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").splitlines()
    assert len(rows) > 10
    assert [row for row in rows if row not in page] == []
