import argparse
import collections
import datetime
import fractions
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from cca_ray.models.files import load_state, read_checkpoint, write_atomically, write_checkpoint

STATE = {"weight": torch.arange(6.0).view(2, 3), "bias": torch.ones(2)}


def equal(state: dict[str, torch.Tensor]) -> bool:
    return set(state) == set(STATE) and all(torch.equal(state[name], STATE[name]) for name in STATE)


@pytest.mark.parametrize("key", ["model", "module", "state_dict", None])
def test_official_files_of_every_form_are_read(tmp_path: Path, key: str | None):
    extra = {"steps": 5000, "args": argparse.Namespace(lr=1e-5), "optimizer": {"state": {}}}
    torch.save({key: STATE, **extra} if key else STATE, tmp_path / "any.name")
    state, config = read_checkpoint(tmp_path / "any.name")
    assert equal(state)
    assert config == {}


def test_a_file_of_before_torch_1_6_is_read(tmp_path: Path):
    torch.save({"model": STATE}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert equal(read_checkpoint(tmp_path / "old.pt")[0])


def test_safetensors_are_known_by_their_content(tmp_path: Path):
    save_file(STATE, tmp_path / "weights.pt")
    assert equal(read_checkpoint(tmp_path / "weights.pt")[0])


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_our_files_carry_a_config(tmp_path: Path, name: str):
    write_checkpoint(STATE, {"dim": 3}, tmp_path / name)
    state, config = read_checkpoint(tmp_path / name)
    assert equal(state)
    assert config == {"dim": 3}
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_a_bare_file_is_a_state_dict_that_carries_a_config_beside_it(tmp_path: Path):
    write_checkpoint(STATE, {"dim": 3, "scales": (1, 2)}, tmp_path / "w.pt", bare=True)
    content = torch.load(tmp_path / "w.pt", weights_only=True)
    assert equal(content)  # what official code loads strictly
    state, config = read_checkpoint(tmp_path / "w.pt")
    assert equal(state)
    assert config == {"dim": 3, "scales": (1, 2)}
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_weights_are_mapped_not_copied(tmp_path: Path):
    torch.save({"weight": torch.zeros(2, 3), "bias": torch.zeros(2)}, tmp_path / "weights.pt")
    state, _ = read_checkpoint(tmp_path / "weights.pt")
    with torch.device("meta"):
        model = nn.Linear(3, 2)
    load_state(model, state, "weights.pt")
    assert model.weight.data_ptr() == state["weight"].data_ptr()
    with torch.no_grad():
        model.weight.add_(1)  # the file stays as it was
    assert read_checkpoint(tmp_path / "weights.pt")[0]["weight"].sum() == 0


def test_half_precision_weights_become_the_models_precision():
    model = nn.Linear(3, 2)
    load_state(model, {name: tensor.half() for name, tensor in STATE.items()}, "weights.pt")
    assert model.weight.dtype == torch.float32


def test_every_misfit_is_listed_in_one_error():
    with pytest.raises(
        ValueError, match=r"w\.pt: does not fit .* missing bias; unexpected extra; weight is \[3, 3\], not"
    ):
        load_state(nn.Linear(3, 2), {"weight": torch.zeros(3, 3), "extra": torch.zeros(1)}, "w.pt")


class Bomb:
    def __reduce__(self):
        return os.system, ("touch exploded",)


@pytest.mark.parametrize(
    "kind", ["absent", "folder", "empty", "text", "truncated", "short safetensors", "bomb", "a class", "no tensors"]
)
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "weights.pt"
    if kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "text":
        path.write_text("not a checkpoint")
    elif kind == "truncated":
        torch.save({"weight": torch.zeros(50, 50)}, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "short safetensors":
        save_file({"weight": torch.zeros(50, 50)}, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif kind == "bomb":
        torch.save({"model": STATE, "extra": Bomb()}, path)
    elif kind == "a class":
        torch.save({"model": argparse.Namespace}, path)
    elif kind == "no tensors":
        torch.save({"epoch": 3}, path)
    with pytest.raises(ValueError, match=r"weights\.pt: ") as error:
        read_checkpoint(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "exploded").exists()


def test_a_write_that_fails_leaves_nothing(tmp_path: Path):
    path = tmp_path / "weights.pt"
    write_atomically({"model": STATE}, path)
    with pytest.raises(AttributeError, match="local object"):
        write_atomically({"model": lambda: None}, path)
    assert [p.name for p in tmp_path.iterdir()] == ["weights.pt"]
    assert equal(read_checkpoint(path)[0])


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_a_prefix_that_all_names_share_is_taken_off(tmp_path: Path, prefix: str, ending: str):
    state = {f"{prefix}{name}": tensor for name, tensor in STATE.items()}
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save({"model": state}, path)
    assert equal(read_checkpoint(path)[0])


def test_a_prefix_of_some_names_stays(tmp_path: Path):
    torch.save({"module.weight": torch.ones(1), "bias": torch.ones(1)}, tmp_path / "w.pt")
    assert set(read_checkpoint(tmp_path / "w.pt")[0]) == {"module.weight", "bias"}


def test_training_files_are_read_where_their_weights_lie(tmp_path: Path):
    var = {"epoch": 3, "trainer": {"var_wo_ddp": STATE, "vae_local": {"other": torch.ones(1)}}, "args": {"tlr": 1e-4}}
    for content in (var, {"ema": STATE, "steps": 5}, {"model": STATE, "ema": {"weight": torch.zeros(1)}}):
        torch.save(content, tmp_path / "w.pt")
        assert equal(read_checkpoint(tmp_path / "w.pt")[0])


def test_weights_at_an_unknown_place_are_named(tmp_path: Path):
    torch.save({"generator": STATE, "net": {"inner": STATE}, "epoch": 1}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt: holds no state dict .*under 'generator', 'net\.inner': save one"):
        read_checkpoint(tmp_path / "w.pt")


def test_paths_and_numpy_numbers_beside_the_weights_do_no_harm(tmp_path: Path):
    beside = {
        "path": Path("/x/y"), "loss": np.float32(1.5), "best": np.float64(2.0), "step": np.int64(7),
        "curve": np.zeros(3), "flags": np.ones(2, dtype=bool), "rng": np.random.RandomState(0).get_state(),
        "name": np.str_("x"), "z": np.complex64(1), "when": datetime.datetime.now(), "took": datetime.timedelta(1),
        "torch_rng": torch.get_rng_state(), "dtype": torch.float16, "counts": collections.defaultdict(list),
    }  # fmt: skip
    torch.save({"model": STATE, **beside}, tmp_path / "w.pt")
    assert equal(read_checkpoint(tmp_path / "w.pt")[0])


@pytest.mark.parametrize(
    ("beside", "name"),
    [
        (fractions.Fraction(1, 3), r"fractions\.Fraction"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
        (np.array([None]), r"numpy\.dtypes\.ObjectDType"),
        (re.compile("x"), r"re\._compile"),
    ],
)
def test_an_object_that_could_run_code_is_named(tmp_path: Path, beside: object, name: str):
    torch.save({"model": STATE, "beside": beside}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=rf"w\.pt: .* an object of {name}, which could run code: save the"):
        read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("precision", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_named_where_it_enters(value: float, precision: torch.dtype):
    bad = {name: tensor.clone().to(precision) for name, tensor in STATE.items()}
    bad["weight"][1, 2] = value
    with pytest.raises(ValueError, match=r"w\.pt: weight holds (NaN|an infinite number): the file is damaged"):
        load_state(nn.Linear(3, 2), bad, "w.pt")


def test_a_mask_may_be_infinite_but_no_nan():
    class Masked(nn.Linear):
        def __init__(self) -> None:
            super().__init__(3, 2)
            self.register_buffer("mask", torch.zeros(2))

    load_state(Masked(), {**STATE, "mask": torch.tensor([0.0, -torch.inf])}, "w.pt")
    with pytest.raises(ValueError, match=r"mask holds NaN"):
        load_state(Masked(), {**STATE, "mask": torch.tensor([0.0, torch.nan])}, "w.pt")
