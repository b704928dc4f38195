"""Search-space files of any content: a valid study, which can be written and read again, or one line."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from cca_ray.config import StudyConfig
from cca_ray.errors import ConfigError
from cca_ray.space_file import load_config, override, parse
from tests.conftest import tiny_space

SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.dates(), st.datetimes(),
    st.binary(max_size=4), st.sampled_from([0, 1, -1, 2**53, 1e-3, "cca", "fid", "both", "digits", "~", "S", 10**400]),
)  # fmt: skip
KEYS = st.one_of(
    st.sampled_from(["name", "base", "train", "lambda", "low", "at", "plugins", "placement", "seed"]),
    st.text(max_size=6), st.integers(0, 3), st.dates(), st.none(), st.booleans(),
)  # fmt: skip
TREES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3), max_leaves=8
)


def containers(tree: Any) -> list[Any]:
    """Every mapping and list of a tree, from the top."""
    if not isinstance(tree, dict | list):
        return []
    below = tree.values() if isinstance(tree, dict) else tree
    return [tree, *(found for value in below for found in containers(value))]


@st.composite
def changed_spaces(draw: st.DrawFn) -> Any:
    """A search space with a few values replaced, added or taken away."""
    space = tiny_space()
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.sampled_from(containers(space)))
        known = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = draw(st.sampled_from(known) | KEYS if known else KEYS)
        if isinstance(place, dict) and draw(st.booleans()):
            place[key] = draw(TREES)
        elif key in known:
            if draw(st.booleans()):
                place[key] = draw(TREES)
            else:
                del place[key]
    return space


def one_line_or_none(read: Any) -> StudyConfig | None:
    """What is read, or None if it is refused in one line."""
    try:
        return read()
    except ConfigError:  # of which the terminal makes one line
        return None


def loaded(content: bytes, name: str = "tiny") -> StudyConfig | None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        path.write_bytes(content)
        return one_line_or_none(lambda: load_config(path))


@given(changed_spaces())
@example(tiny_space())
@example(tiny_space() | {"plugins": [".."]})
def test_any_structure_is_a_study_that_can_be_written_again_or_one_line(space: Any):
    config = loaded(yaml.safe_dump(space, allow_unicode=True).encode(errors="surrogatepass"))
    if config is not None:
        content = config.model_dump(mode="json", by_alias=True, exclude={"name"})
        assert loaded(yaml.safe_dump(content).encode()) == config


def test_the_space_that_is_changed_is_valid():
    assert loaded(yaml.safe_dump(tiny_space()).encode()) is not None


@given(TREES)
def test_any_yaml_is_no_other_error(tree: Any):
    assert loaded(yaml.safe_dump(tree).encode(errors="surrogatepass")) is None


PIECES = ["base:", "\n", "  ", "- ", "{", "}", "[", "]", "&a ", "*a", "<<: ", "!!", "!!set", "!!python/x", "!!float",
          "!!int", "!!timestamp", "!!binary", "!!bool", "!!omap", "!!pairs", "? ", ": ", "'", '"', "|", "%", "---",
          "...", "1e3", "0x", "1:2", "=", "\t", "\0", "\ufeff", "a", "2001-01-01", "2001-99-99"]  # fmt: skip


@given(st.binary(max_size=60) | st.lists(st.sampled_from(PIECES), max_size=12).map("".join).map(str.encode))
@example(b"a: &a [*a]")
@example(b"? [a]\n: 1")
@example(b"[" * 5000)
@example(b"{base: !!float x}")
@example(b"base: 2001-99-99")
@example(b"a: 0b")
def test_any_bytes_are_no_other_error(content: bytes):
    loaded(content)


@given(st.text(max_size=20) | st.tuples(st.sampled_from(["train", "search.space", "rungs", "base.x.y"]),
                                        st.text(max_size=8)).map("=".join))  # fmt: skip
def test_any_setting_is_no_other_error(setting: str):
    def read() -> StudyConfig:
        content = tiny_space()
        override(content, setting)
        return parse(content, "tiny", "tiny.yaml")

    one_line_or_none(read)


@given(st.text(min_size=1, max_size=40).filter(lambda name: "/" not in name and "\0" not in name))
def test_a_file_of_any_name_is_a_study_of_that_name_or_one_line(name: str):
    try:
        config = loaded(yaml.safe_dump(tiny_space()).encode(), name)
    except (UnicodeEncodeError, OSError):  # no file can have this name
        return
    assert config is None or config.name == name
