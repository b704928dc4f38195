"""The table of what a card does: what was measured is kept, judged by its goal, and not measured again."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu.cases import SHALLOW, SHAPES, WHOLE, Case, cases, lines
from benchmarks.gpu.images import sampling
from benchmarks.gpu.made import DRY, TINY, Here, Shape, load_of
from benchmarks.gpu.table import Goal, Line, Store, below, row
from benchmarks.gpu.training import TooSmall, batches, memory
from cca_ray.cluster.placement import CARDS, GIB, USABLE, accelerator_of, memory_gib, ways
from cca_ray.errors import ConfigError
from cca_ray.evaluation.sampler import CACHE_BYTES, GRAPH_BYTES, sample_tokens
from cca_ray.inputs import SPACES
from cca_ray.space_file import load_config
from tests.official_code import PACKAGES, write_checkouts

STEP, PEER = ("step", "images/s"), ("step official", "images/s")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "a" / "gpu.json", "a card")
    store.add("step", {"images/s": 18.0, "MFU": 0.3}, 2.0)
    store.add("step official", {"images/s": 9.0}, 3.0)
    return store


@pytest.mark.parametrize(
    ("line", "cells"),
    [
        (Line("a", STEP, PEER, "official", Goal(least=1.8)), "18 | official: 9 | 2.00 × | ≥ 1.8 | yes"),
        (Line("a", STEP, PEER, "official", Goal(least=2.1)), "18 | official: 9 | 2.00 × | ≥ 2.1 | **no**"),
        (Line("a", STEP, PEER, "official", Goal(most=1.9)), "18 | official: 9 | 2.00 × | ≤ 1.9 | **no**"),
        (Line("a", STEP, PEER, "official", Goal(0.9, 2.0)), "18 | official: 9 | 2.00 × | ≥ 0.9, ≤ 2 | yes"),
        (Line("a", ("step", "MFU"), goal=Goal(least=0.4)), "0.3 |  |  | ≥ 0.4 | **no**"),
        (Line("a", ("step", "MFU")), "0.3 |  |  |  | "),
        (Line("a", ("none", "MFU"), goal=Goal(least=0.4)), "not measured |  |  | ≥ 0.4 | "),
        (Line("a", STEP, ("none", "x"), "official", Goal(1.8)), "18 | official: not measured |  | ≥ 1.8 | "),
        (Line("a", STEP, ("step", "no such figure"), "b", Goal(1.8)), "18 | b: not measured |  | ≥ 1.8 | "),
    ],
)
def test_a_figure_is_judged_by_its_goal(store: Store, line: Line, cells: str):
    assert row(line, store) == f"| a | {cells} | a card |"


def test_what_was_measured_is_there_again_and_of_one_card(store: Store):
    assert store.path is not None
    again = Store(store.path, "a card")
    assert again.results == store.results
    assert "step" in again
    assert "step of another" not in again
    with pytest.raises(ConfigError, match=r"gpu\.json: is of a card, and here is another; use another --json"):
        Store(store.path, "another")
    store.path.write_text("{}")
    with pytest.raises(ValueError, match=r"gpu\.json.*not a file of this benchmark"):
        Store(store.path, "a card")


def test_a_run_that_goes_on_with_other_software_says_so_in_its_rows(store: Store, monkeypatch: pytest.MonkeyPatch):
    before = (store.software, store.made_by)
    assert below(store).splitlines()[0] == "; ".join(before)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    again = Store(store.path, "a card")
    again.add("step official", {"images/s": 6.0}, 3.0)  # as if it had failed before
    own, both, other = Line("a", ("step", "MFU")), Line("a", STEP, PEER, "official"), Line("a", PEER)
    assert [row(line, again).split(" | ")[-1] for line in (own, both, other)] == [
        "a card [1] |", "a card [1, 2] |", "a card [2] |",
    ]  # fmt: skip
    assert row(Line("a", ("none", "MFU")), again).endswith("| a card |")
    first, second, *_ = below(again).splitlines()
    assert first == f"[1] {'; '.join(before)}"
    assert second.startswith("[2] ")
    assert "PyTorch 9.9.9" in second
    assert again.path is not None
    assert Store(again.path, "a card").makers == again.makers


def run(some: list[Case], store: Store, minutes: float = 30) -> dict[str, str]:
    from benchmarks.common import Raw

    return program.measure(some, Here(torch.device("cpu"), dry=True), store, Raw(None), minutes)


def counted(name: str, told: list[str], figure: float = 1.0) -> Case:
    def measured(here: Here) -> dict[str, float]:
        told.append(name)
        return {"figure": figure}

    return Case(name, measured)


def failing(name: str, error: Callable[[], Exception]) -> Case:
    def measured(here: Here) -> dict[str, float]:
        raise error()

    return Case(name, measured)


def test_a_run_that_was_cut_short_goes_on(tmp_path: Path):
    path, told = tmp_path / "gpu.json", list[str]()
    some = [counted("a", told), failing("b", lambda: torch.OutOfMemoryError("no\nroom")), counted("c", told)]
    assert run(some, Store(path, "a card")) == {"b": "OutOfMemoryError: no"}
    assert told == ["a", "c"]
    assert run([*some[::2], counted("b", told)], Store(path, "a card")) == {}
    assert told == ["a", "c", "b"]


def test_no_case_begins_when_the_time_is_used_up(tmp_path: Path):
    told = list[str]()
    assert run([counted("a", told)], Store(None, "a card"), minutes=0) == {"a": "no time was left"}
    assert told == []


def test_every_row_is_of_cases_that_there_are():
    for peer in (False, True):
        names = [case.name for case in cases(peer)]
        assert len(set(names)) == len(names)
        wanted = {of[0] for line in lines(peer, h100=True) for of in (line.of, line.beside) if of}
        assert set(names) <= wanted | {"encoding VAR"}, set(names) - wanted
        assert {name for name in wanted - set(names) if peer or "official" not in name} == set()
    assert all(f"sampling {name} guided" in wanted for name in SHAPES)


def test_every_kind_of_official_models_is_measured():
    """In speed those of classes, in memory all; RAR's official code is not compared."""
    families = {config.base.family for config in map(load_config, SPACES.glob("*.yaml")) if not config.base.embedded}
    assert {shape.family for shape in WHOLE.values()} == families == set(TINY)
    assert {shape.family for shape in SHAPES.values()} == {"llamagen", "var", "rar"}
    named = [case.name for case in cases(peer=True)]
    assert {"step RAR-B", "step RAR-XL", "sampling RAR-XL guided", "memory RAR-B"} <= set(named)
    assert not any("RAR" in name and "official" in name for name in named)


@pytest.mark.parametrize(
    ("name", "type_", "micro_batch"),
    [("NVIDIA A100-SXM4-80GB", "A100", 32), ("NVIDIA A40", "A40", 64), ("NVIDIA RTX 6000 Ada Generation", "", 64),
     ("NVIDIA H100 80GB HBM3", "H100", 64), ("NVIDIA H200", "", 64)],
)  # fmt: skip
def test_a_card_trains_as_much_at_a_time_as_fits_it(
    name: str, type_: str, micro_batch: int, monkeypatch: pytest.MonkeyPatch
):
    """Of one that no table knows its own memory counts, and no more than an H100 has."""
    free = {"NVIDIA RTX 6000 Ada Generation": 48, "NVIDIA H200": 139}
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, free[name] * GIB))
    here = Here(torch.device("cuda:0"))
    assert here.type == type_
    assert batches(SHAPES["B"], here) == (micro_batch, min(256, 4 * micro_batch))
    assert batches(SHAPES["B"], replace(here, like="A100"))[0] == 32


TOO_LARGE = {"A40": {"XXL", "3B", "d30"}, "L40S": {"XXL", "3B", "d30"}, "A100": {"d24", "RAR-XL", "XXL", "3B", "d30"},
             "H100": {"3B"}}  # fmt: skip


@pytest.mark.parametrize("type_", CARDS)
def test_of_every_shape_a_micro_batch_fits_every_card_or_it_is_too_small(type_: str):
    """The largest, which is that of the table's row wherever each card of it has a whole model."""
    here, too_large = Here(torch.device("cuda:0"), like=type_), set[str]()
    whole = WHOLE | {name.partition(",")[0]: Shape(shape.space) for name, shape in SHALLOW.items()}
    for name, shape in {**whole, **SHALLOW}.items():
        load, usable = load_of(shape), USABLE * CARDS[type_].memory_gib
        if memory_gib(load, 1, 1, "ddp", False) > usable:
            with pytest.raises(TooSmall, match=f"^too small: {shape.space} wants "):
                batches(shape, here)
            too_large.add(name)
            continue
        micro_batch, global_batch = batches(shape, here)
        assert memory_gib(load, 1, micro_batch, "ddp", False) <= usable
        assert micro_batch == 256 or memory_gib(load, 1, 2 * micro_batch, "ddp", False) > usable
        assert global_batch % micro_batch == 0
        for way in ways(shape.shipped.placement) if not shape.model else ():
            if accelerator_of(way) == type_ and way.strategy == "ddp":
                assert micro_batch == way.micro_batch
    assert too_large == TOO_LARGE[type_]


def test_a_case_that_the_card_is_too_small_for_is_skipped_with_a_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    store, told = Store(tmp_path / "gpu.json", "a card"), list[str]()
    small = Case("memory d24", lambda here: memory(SHAPES["d24"], Here(torch.device("cuda:0"), like="A100")))
    assert run([small, counted("b", told)], store) == {}
    assert told == ["b"]
    assert "memory d24" not in store
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("skipped"))
    assert line == "skipped: memory d24: too small: var_d24 wants 41 GiB of one card, and 36 are usable here"


def test_without_a_card_it_says_so_in_a_line(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        program.main([])
    assert ended.value.code == 2
    assert "a GPU was requested, but PyTorch" in capsys.readouterr().err.splitlines()[-1]


def test_an_unknown_case_is_told(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        program.main(["--dry", "--only", "steps"])
    assert ended.value.code == 2
    assert "--only steps: no case begins so" in capsys.readouterr().err


@pytest.mark.parametrize("graphs", [True, False])
def test_as_many_images_are_sampled_at_a_time_as_in_a_study(graphs: bool, monkeypatch: pytest.MonkeyPatch):
    """With graphs there is less room for keys and values."""
    caches, real = list[int](), sample_tokens

    def watched(
        model: Any, labels: Any, noise: Any, decoding: Any, cache: int = CACHE_BYTES, decoder: Any = None
    ) -> torch.Tensor:
        caches.append(cache)
        return real(model, labels, noise, decoding, cache, decoder)

    monkeypatch.setattr("benchmarks.sample.sample_tokens", watched)
    sampling(SHAPES["d16"], Here(torch.device("cpu"), dry=True), 1.0, graphs)
    assert set(caches) == {CACHE_BYTES - (GRAPH_BYTES if graphs else 0)}


@pytest.fixture
def peers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Checkouts of the official code, or what passes for it; what they leave in this process is taken away again."""

    def forget() -> dict[str, ModuleType]:
        found = {name for name in sys.modules if name.partition(".")[0] in PACKAGES}
        return {name: sys.modules.pop(name) for name in found}

    write_checkouts(tmp_path / "peers")
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = forget()
    yield tmp_path / "peers"
    forget()
    sys.modules.update(before)


def test_every_case_of_the_official_code_is_walked_dry(peers: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """With stand-ins for it. On a machine without a card nothing else would run what `--peer` does."""
    names = [case.name for case in cases(peer=True) if "official" in case.name]
    assert len(names) == 11
    path = tmp_path / "gpu.json"
    program.main(["--dry", "--peer", str(peers), "--json", str(path), "--only", *names])
    store = Store(path, DRY)
    assert set(store.results.cases) == set(names)
    assert all((store.figure((name, "images/s")) or 0) > 0 for name in names)
    of_peer = [line for line in capsys.readouterr().out.splitlines() if "| official" in line]
    assert len(of_peer) == 15
    assert not any("official: not measured" in line or "official, compiled: not" in line for line in of_peer)
