"""An official model's whole way at full size, by the verbs: from images and an official file to a winner's file."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cca_ray.models.files import read_checkpoint
from cca_ray.models.official import build_tokenizer
from tests.commands import verb
from tests.conftest import golden, golden_state
from tests.golden.weights import inception_checkpoint


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
