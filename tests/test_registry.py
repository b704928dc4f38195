"""The door through which others' code comes in."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

from cca_ray import prepare, pretrain
from cca_ray.config import StudyConfig
from cca_ray.data.tokens import read_token_set
from cca_ray.errors import ConfigError
from cca_ray.evaluation.protocol import Protocol
from cca_ray.models.family import family_of
from cca_ray.models.llamagen_family import LlamaGenFamily
from cca_ray.registry import (
    FAMILIES,
    LOADED,
    REGISTRIES,
    PluginInfo,
    Registry,
    digest_of,
    load_plugins,
    owner_of,
    used_plugins,
)
from cca_ray.search.arms import difference, memory_of
from cca_ray.space_file import parse
from cca_ray.training.job import Job
from cca_ray.training.reference_logps import table_key
from cca_ray.training.setup import reference_key
from cca_ray.training.small_base import BaseFiles
from tests.commands import invoke
from tests.conftest import MakeStudy, tiny_space

FAMILY = """
    from cca_ray.models.llamagen_family import LlamaGenFamily

    class Tiny(LlamaGenFamily):
        name = "{name}"

    PLUGINS = [Tiny()]
"""


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """What a test loads is forgotten after it."""
    loaded, modules = dict(LOADED), set(sys.modules)
    kept = {registry: (dict(registry.found), dict(registry.owners)) for registry in REGISTRIES.values()}
    yield
    LOADED.clear()
    LOADED.update(loaded)
    for registry, (found, owners) in kept.items():
        registry.found, registry.owners = found, owners
    for name in set(sys.modules) - modules:
        if name.startswith("plugged"):
            del sys.modules[name]


Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Write a module that can be imported; its name."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(content: str = FAMILY.format(name="tiny"), name: str = "plugged") -> str:
        (tmp_path / f"{name}.py").write_text(dedent(content))
        return name

    return write


def test_what_a_module_brings_is_there_by_its_name(write: Write):
    (info,) = load_plugins([write()])
    assert FAMILIES.names() == ["llamagen", "var", "rar", "llamagen_t2i", "tiny"]
    assert isinstance(family_of("tiny"), LlamaGenFamily)
    assert owner_of("family", "tiny") == info
    assert owner_of("family", "llamagen") is None
    assert (info.module, info.version) == ("plugged", "")
    assert load_plugins(["plugged"]) == (info,)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("x = 1", "plug-in plugged: has no PLUGINS, a list of families, objectives, extractors, metrics or samplers"),
        ("PLUGINS = []", "has no PLUGINS"),
        (
            "PLUGINS = [1]",
            r"plug-in plugged: 1 has no kind \(family, objective, extractor, metric, sampler\) or no name",
        ),
        ("raise RuntimeError('no\\nlicence')", r"plug-in plugged: cannot be imported \(RuntimeError: no licence\)"),
        ("import nowhere_at_all", r"cannot be imported \(ModuleNotFoundError: No module named 'nowhere_at_all'\)"),
        (FAMILY.format(name="var"), "plug-in plugged: its family 'var' has the name of one of cca_ray"),
    ],
)
def test_a_module_that_does_not_do_is_one_line(write: Write, content: str, message: str):
    with pytest.raises(ConfigError, match=message) as error:
        load_plugins([write(content)])
    assert "\n" not in str(error.value)
    assert "plugged" not in LOADED


def test_two_modules_cannot_bring_the_same_name(write: Write):
    load_plugins([write()])
    with pytest.raises(ConfigError, match="plug-in plugged_too: its family 'tiny' has the name of one of plugged"):
        load_plugins([write(name="plugged_too")])


def test_what_is_not_there_is_told_with_what_is(write: Write):
    load_plugins([write()])
    with pytest.raises(ValueError, match="unknown family 'mar': one of llamagen, var, rar, llamagen_t2i, tiny"):
        FAMILIES.get("mar")


def test_an_option_of_the_verbs_that_make_bases_and_tokens_names_plug_ins(
    write: Write, tokenizer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The family is asked: for its sizes by one, for what it knows of the official files by the other."""
    module, out = write(), ["--out", str(tmp_path / "made")]
    of_verbs = [
        (pretrain.main, ["--size", "XXL", *out], "error: --size XXL: one of "),
        (prepare.main, [str(tmp_path), "--tokenizer", "no.pt", *out], "error: no.pt: no such checkpoint file\n"),
    ]
    for main, arguments, _ in of_verbs:
        unknown = invoke(main, [*arguments, "--family", "tiny"], capsys)
        assert (unknown.code, unknown.err) == (2, "error: --family tiny: one of llamagen, var, rar, llamagen_t2i\n")
    for main, arguments, mistake in of_verbs:
        found = invoke(main, [*arguments, "--family", "tiny", "--plugin", module], capsys)
        assert found.code == 2
        assert found.err.startswith(mistake)


def test_what_a_family_says_of_itself_needs_no_torch():
    program = (
        "import sys; from cca_ray.registry import FAMILIES; "
        "print([*FAMILIES.get('llamagen').sizes], FAMILIES.get('var').passes, 'torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.strip() == (
        "['S', 'M', 'tiny', 'mini', 'small', 'medium', 'large', 'B', 'L', 'XL', 'XXL', '3B'] "
        "one forward pass per scale of its token pyramid False"
    )


def test_an_object_that_is_no_family_is_told():
    registry = Registry("family", {"x": "json:JSONDecoder"})
    assert registry.get("x") is json.JSONDecoder
    FAMILIES.found["odd"] = registry.get("x")
    with pytest.raises(ValueError, match="family 'odd': expected an object of a class made from"):
        family_of("odd")


def test_entry_points_are_found(write: Write, tmp_path: Path):
    info = tmp_path / "plugged_dist-3.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: plugged-dist\nVersion: 3.1\n")
    (info / "entry_points.txt").write_text("[cca_ray.plugins]\ntiny = plugged\n")
    (info / "RECORD").write_text("plugged.py,,\n")
    (info / "top_level.txt").write_text("plugged\n")
    write()
    assert [(found.module, found.version) for found in load_plugins()] == [("plugged", "3.1")]
    assert "tiny" in FAMILIES.names()


def test_a_digest_names_the_source_of_the_whole_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "plugged_package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "inner" / "__init__.py").write_text("PLUGINS = 1")
    with pytest.raises(ConfigError, match="has no PLUGINS"):
        load_plugins(["plugged_package.inner"])
    before = digest_of("plugged_package.inner")
    (package / "helper.py").write_text("x = 1")
    assert digest_of("plugged_package.inner") != before


def test_those_are_used_that_are_named_or_bring_what_is(write: Write):
    load_plugins([write(), write("PLUGINS = [type('M', (), {'kind': 'metric', 'name': 'm'})]", "plugged_metric")])
    names = [("family", "llamagen"), ("metric", "m")]
    assert [info.module for info in used_plugins([], names)] == ["plugged_metric"]
    assert [info.module for info in used_plugins(["plugged"], names)] == ["plugged", "plugged_metric"]
    assert used_plugins([], [("family", "llamagen")]) == ()


def space(family: str = "tiny") -> dict:
    content = tiny_space()
    content["base"]["family"] = family
    return content


def plugged_study() -> StudyConfig:
    return parse({**space(), "plugins": ["plugged"]}, "study", "study.yaml")


def test_a_search_space_names_its_plug_ins(write: Write):
    with pytest.raises(ConfigError, match=r"study\.yaml: base\.family: unknown family 'tiny': one of llamagen, var"):
        parse(space(), "study", "study.yaml")
    write()
    assert plugged_study().base.family == "tiny"
    with pytest.raises(ConfigError, match=r"study\.yaml: plugins: plug-in absent: cannot be imported"):
        parse({**space(), "plugins": ["absent"]}, "study", "study.yaml")


def test_the_code_of_others_enters_a_studys_memory_and_that_of_ours_does_not(write: Write):
    write()
    config = plugged_study()
    (info,) = config.plugins_used()
    memory = memory_of(config, {})
    assert memory["plugins"] == {"plugged": info.digest}
    assert "plugins" not in memory_of(parse(space("llamagen"), "study", "study.yaml"), {})
    LOADED["plugged"] = PluginInfo("plugged", "", "0123456789abcdef")  # as if its source had changed
    changed = difference(memory, memory_of(config, {}))
    assert changed == f"plugins.plugged was {info.digest}, is 0123456789abcdef"


def test_the_code_of_others_makes_another_protocol():
    ours = Protocol(extractor="e", reference="r", samples=10, seed=0, image_size=8)
    assert ours.id == "13b702dc57"  # of version 0.1.0
    assert ours.model_copy(update={"plugins": ("plugged 0123",)}).id != ours.id


def test_the_code_of_others_makes_another_reference_table(write: Write, make_study: MakeStudy, base_files: BaseFiles):
    load_plugins([write()])
    data = read_token_set(base_files.tokens)

    def key(**changes: Any) -> str:
        config = make_study(**changes)
        return reference_key("weights", config, config.train, data)

    plugged: dict[str, Any] = {"plugins": ["plugged"], "base": {"family": "tiny"}}
    before, ours = key(**plugged), key()
    LOADED["plugged"] = PluginInfo("plugged", "", "0123456789abcdef")  # as if its source had changed
    assert key(**plugged) not in (before, ours)
    assert key() == ours == table_key("weights", data, 0.1, 0, "float32")  # as earlier versions named it


def test_a_worker_imports_the_same(write: Write, tmp_path: Path, make_study: MakeStudy):
    load_plugins([write()])
    config = make_study(plugins=["plugged"], base={"family": "tiny"})
    packed = tmp_path / "job.json"
    packed.write_text(Job(config, config.train, tmp_path / "trial").packed())
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; from cca_ray.training.job import Job; "
        "job = Job.unpacked(Path(sys.argv[2]).read_text()); print(*job.config.plugins_used())"
    )
    command = [sys.executable, "-c", program, str(tmp_path), str(packed)]
    worker = subprocess.run(command, capture_output=True, text=True, check=True)
    assert worker.stdout.strip() == " ".join(map(str, config.plugins_used()))
    (tmp_path / "plugged.py").write_text((tmp_path / "plugged.py").read_text() + "# another\n")
    worker = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "plug-in plugged: its source is not the same here as where the study was begun" in worker.stderr


@pytest.mark.parametrize(
    "name", ["../evil", "/tmp/evil.py", "file:///tmp/evil", "evil.py/", "", ".evil", "a..b", "evil\n"]
)
def test_a_plug_in_is_no_path_and_no_uri(name: str):
    with pytest.raises(ConfigError, match=r"expected the dotted name of an installed module") as error:
        load_plugins([name])
    assert "\n" not in str(error.value)
