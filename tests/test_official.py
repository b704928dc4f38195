"""The whole way of an official model at full size: prepare, tune, and out again as an official file."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cca_ray.models import build_tokenizer, read_checkpoint
from tests.conftest import golden, golden_state
from tests.golden.weights import inception_checkpoint


def verb(name: str, *arguments: str | Path) -> str:
    """`python -m cca_ray.NAME ARGUMENTS`; its output."""
    command = [sys.executable, "-m", f"cca_ray.{name}", *map(str, arguments)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


def settings(**values: object) -> list[str]:
    return [f"--set={key.replace('__', '.')}={json.dumps(value)}" for key, value in values.items()]


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_an_official_gpt_b_is_tuned_and_comes_out_as_an_official_file(tmp_path: Path):
    content, inception = golden("llamagen_GPT-B_384.npz"), golden("inception_fid.npz")
    manifest = json.loads(str(content["manifest"]))
    torch.save({"model": golden_state(content), "steps": 300_000}, tmp_path / "c2i_B.pt")
    torch.save({"model": build_tokenizer("llamagen").state_dict()}, tmp_path / "vq.pt")
    torch.save(inception_checkpoint(json.loads(str(inception["manifest"]))), tmp_path / "inception.pth")
    rng = np.random.default_rng(0)
    for i in range(8):
        path = tmp_path / "photos" / f"class{i % 4:03}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (80, 90, 3), dtype=np.uint8)).save(path)
    (tmp_path / "classes.txt").write_text("\n".join(f"class{i:03}" for i in range(1000)))
    printed = verb(
        "prepare", tmp_path / "photos", "--tokenizer", tmp_path / "vq.pt", "--out", tmp_path / "tokens",
        "--image-size", "64", "--classes", tmp_path / "classes.txt", "--features", tmp_path / "inception.pth",
        "--reference", tmp_path / "reference.npz", "--reference-size", "64",
    )  # fmt: skip
    assert "8 images of 4 classes" in printed
    paths = dict(base__checkpoint="c2i_B.pt", base__tokenizer="vq.pt", data__tokens="tokens",
                 score__features="inception.pth", score__reference="reference.npz")  # fmt: skip
    verb(
        "tune", "llamagen_b", "--name", "full", "--storage", tmp_path / "runs", "--trials", "2",
        "--max-concurrent", "1", *settings(**{key: str(tmp_path / name) for key, name in paths.items()}),
        *settings(train__global_batch=4, control__learning_rates=[1e-5], rungs=[{"at": 1.0, "samples": 64}],
                  score__samples=64, score__image_size=64, score__finalists=1, score__guidance_scales=[2.0],
                  placement={"workers": 1, "cpus": 2, "micro_batch": 2}),
    )  # fmt: skip
    (size,) = json.loads((tmp_path / "runs" / "full" / "summary.json").read_text())["sizes"]
    assert (size["params"], size["trials"]) == (110_888_448, 2)
    assert all(np.isfinite(size[f"fid_{model}"]) for model in ("base", "guided", "control", "cca"))
    winner = tmp_path / "runs" / "full" / "llamagen_b" / "winner.pt"
    state, _ = read_checkpoint(winner)
    assert {name: list(tensor.shape) for name, tensor in state.items()} == {
        name: shape for name, shape in manifest.items() if name != "freqs_cis"
    }
    assert any(not torch.equal(state[name], tensor) for name, tensor in golden_state(content).items() if name in state)
    verb(
        "sample", "llamagen_b", "--checkpoint", winner, "--count", "4", "--npz", tmp_path / "samples.npz",
        *settings(score__image_size=64, **{key: str(tmp_path / name) for key, name in paths.items()}),
    )  # fmt: skip
    assert np.load(tmp_path / "samples.npz")["arr_0"].shape == (4, 64, 64, 3)
