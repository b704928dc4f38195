"""The whole way of an official model at full size: prepare, tune, and out again as an official file."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from cca_ray.models.files import read_checkpoint
from cca_ray.models.official import build, build_tokenizer
from tests.conftest import golden, golden_state
from tests.golden.models import official_state
from tests.golden.weights import inception_checkpoint


def verb(name: str, *arguments: str | Path) -> str:
    """`python -m cca_ray.NAME ARGUMENTS`; its output."""
    command = [sys.executable, "-m", f"cca_ray.{name}", *map(str, arguments)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def settings(**values: object) -> list[str]:
    return [f"--set={key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]


def inputs(folder: Path, images: int, pixels: int) -> None:
    """Below `folder`: photos/ of four classes, classes.txt with a thousand, inception.pth with made-up weights."""
    inception = golden("inception_fid.npz")
    torch.save(inception_checkpoint(json.loads(str(inception["manifest"]))), folder / "inception.pth")
    rng = np.random.default_rng(0)
    for i in range(images):
        path = folder / "photos" / f"class{i % 4:03}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (pixels, pixels + 10, 3), dtype=np.uint8)).save(path)
    (folder / "classes.txt").write_text("\n".join(f"class{i:03}" for i in range(1000)))


def prepared(folder: Path, family: str, tokenizer: str, size: int, *more: str) -> list[str]:
    """Make token set and reference from `inputs`; the settings that name all files."""
    verb(
        "prepare", folder / "photos", "--family", family, "--tokenizer", folder / tokenizer, "--out", folder / "tokens",
        "--image-size", str(size), "--classes", folder / "classes.txt", "--features", folder / "inception.pth",
        "--reference", folder / "reference.npz", "--reference-size", "64", *more,
    )  # fmt: skip
    paths = dict(base__checkpoint="model.pt", base__tokenizer=tokenizer, data__tokens="tokens",
                 score__features="inception.pth", score__reference="reference.npz")  # fmt: skip
    return settings(**{key: str(folder / name) for key, name in paths.items()})


def tuned(folder: Path, space: str, *changes: str, gpus: int = 0, trials: int = 1) -> tuple[dict[str, Any], Path]:
    """A trial, or several, and a control; their summary and the winner's file."""
    verb(
        "tune", space, "--name", "full", "--storage", folder / "runs", "--trials", str(trials), "--max-concurrent", "1",
        *changes,
        *settings(score__finalists=1, score__blocks=1, score__guidance_scales=[2.0], score__image_size=64,
                  placement__cpus=2, placement__gpus=gpus, placement__accelerators=[]),
    )  # fmt: skip
    (size,) = json.loads((folder / "runs" / "full" / "summary.json").read_text())["sizes"]
    assert size["trials"] == trials
    assert all(np.isfinite(size["models"][role]["values"]["fid"]) for role in ("base", "guided", "control", "tuned"))
    return size, folder / "runs" / "full" / space / "winner.pt"


def assert_official_and_moved(winner: Path, before: dict[str, torch.Tensor]) -> None:
    """Names and shapes are the official file's; weights are not."""
    state, _ = read_checkpoint(winner)
    assert {name: tensor.shape for name, tensor in state.items()} == {
        name: tensor.shape
        for name, tensor in before.items()
        if name != "freqs_cis"  # made, not learned
    }
    assert any(not torch.equal(tensor, before[name]) for name, tensor in state.items())


def check_gpt_b(folder: Path, gpus: int = 0) -> None:
    """Two steps of it, on eight images."""
    official = golden_state(golden("llamagen_GPT-B_384.npz"))
    torch.save({"model": official, "steps": 300_000}, folder / "model.pt")
    torch.save({"model": build_tokenizer("llamagen").state_dict()}, folder / "vq.pt")
    inputs(folder, images=8, pixels=80)
    paths = prepared(folder, "llamagen", "vq.pt", 64)
    size, winner = tuned(
        folder, "llamagen_b", *paths,
        *settings(train__global_batch=4, placement__micro_batch=2, control__learning_rates=[1e-5],
                  rungs=[{"at": 1.0, "samples": 8}], score__samples=8),
        gpus=gpus,
    )  # fmt: skip
    assert size["parameters"] == 110_888_448
    assert size["device"] == ("GPU" if gpus else "CPU")
    assert_official_and_moved(winner, official)
    verb(
        "sample", "llamagen_b", "--checkpoint", winner, "--count", "4", "--npz", folder / "samples.npz",
        *paths, *settings(score__image_size=64),
    )  # fmt: skip
    assert np.load(folder / "samples.npz")["arr_0"].shape == (4, 64, 64, 3)


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
