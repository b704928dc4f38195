"""The whole way of an official model at full size: prepare, tune, and out again as an official file."""

from pathlib import Path

import pytest
import torch

from cca_ray.models.official import build
from tests.commands import verb
from tests.conftest import golden, golden_state
from tests.golden.models import official_state
from tests.official_studies import assert_official_and_moved, check_gpt_b, inputs, prepared, settings, tuned


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_an_official_gpt_b_is_tuned_and_comes_out_as_an_official_file(tmp_path: Path):
    check_gpt_b(tmp_path)


@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_an_official_var_d16_is_tuned_and_comes_out_as_an_official_file(tmp_path: Path):
    content = golden("var_d16.npz")
    official = official_state(content, "var")
    torch.save(official, tmp_path / "model.pt")
    torch.save(official_state(content, "vae"), tmp_path / "vae.pth")
    inputs(tmp_path, images=2, pixels=300)
    paths = prepared(tmp_path, "var", "vae.pth", 256)
    size, winner = tuned(
        tmp_path, "var_d16", *paths,
        *settings(train__global_batch=1, placement__micro_batch=1, control__learning_rates=[2e-5],
                  rungs=[{"at": 1.0, "samples": 4}], score__samples=2),
    )  # fmt: skip
    assert size["parameters"] == 310_283_520
    assert_official_and_moved(winner, official)


def rar_b(folder: Path) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Made-up official files of RAR-B, and what `prepare` makes of four images; the settings that name all files."""
    official = golden_state(golden("rar_B.npz"))
    torch.save(official, folder / "model.pt")
    torch.save(golden_state(golden("maskgit_vqgan.npz")), folder / "vqgan.bin")
    inputs(folder, images=4, pixels=300)
    return official, prepared(folder, "rar", "vqgan.bin", 256, "--augment", "centre")


def assert_the_official_loader_takes(winner: Path, official: dict[str, torch.Tensor]) -> None:
    """RAR's own code strictly loads what is in a file as a whole; ours has the names and shapes of its modules."""
    with torch.device("meta"):
        model = build("rar", "B")
    content = torch.load(winner, map_location="cpu", weights_only=True)
    model.load_state_dict(content, strict=True, assign=True)
    assert {tensor.dtype for tensor in content.values()} == {torch.float32}
    assert_official_and_moved(winner, official)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_official_rar_b_is_fine_tuned_and_comes_out_as_an_official_file(tmp_path: Path):
    """Two steps; the nightly test has a whole study."""
    official, paths = rar_b(tmp_path)
    verb(
        "train", "rar_b", "--lambda", "300", "--lr", "1e-5", "--out", tmp_path / "made", *paths,
        *settings(train__global_batch=2, placement__micro_batch=1, rungs=[{"at": 1.0, "samples": 2}],
                  placement__gpus=0, placement__accelerators=[], score__image_size=64),
    )  # fmt: skip
    assert_the_official_loader_takes(tmp_path / "made" / "model.pt", official)


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_an_official_rar_b_is_tuned_and_comes_out_as_an_official_file(tmp_path: Path):
    official, paths = rar_b(tmp_path)
    size, winner = tuned(
        tmp_path, "rar_b", *paths,
        *settings(train__global_batch=2, placement__micro_batch=1, control__learning_rates=[1e-5],
                  rungs=[{"at": 1.0, "samples": 16}], score__samples=16),
        trials=2,
    )  # fmt: skip
    assert size["parameters"] == 260_923_648
    assert_the_official_loader_takes(winner, official)
