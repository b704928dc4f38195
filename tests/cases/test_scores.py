"""Files for scores as people have them, through the verbs that read them; see README.md."""

import argparse
import collections
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file

from cca_ray import evaluate, sample, train
from cca_ray.evaluation.features import load_extractor
from cca_ray.evaluation.sampler import decode_images, uniforms
from cca_ray.models.official import load_official, load_tokenizer
from cca_ray.training.small_base import BaseFiles
from tests.commands import Outcome, invoke, write_space

Verb = Callable[..., Outcome]


@pytest.fixture
def verb(base_files: BaseFiles, tmp_path: Path, capsys) -> Verb:
    """A verb on the tests' small base."""
    space = write_space(tmp_path, base_files)
    return lambda which, *arguments: invoke(which.main, [str(space), *map(str, arguments)], capsys)


def images(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)


def features(files: BaseFiles, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pooled features and class probabilities, float64."""
    with torch.inference_mode():
        found = load_extractor(files.features)(torch.from_numpy(pictures))
    assert found.probabilities is not None
    return found.pooled.double().numpy(), found.probabilities.double().numpy()


@pytest.mark.parametrize("kind", ["plain", "compressed", "labelled", "fortran", "two", "alike"])
def test_images_of_any_form_have_scipys_scores(kind: str, base_files: BaseFiles, verb: Verb, tmp_path: Path):
    pictures, path = images(2 if kind == "two" else 80), tmp_path / "i.npz"
    if kind == "alike":
        pictures = np.repeat(pictures[:1], 80, axis=0)
    if kind == "compressed":
        np.savez_compressed(path, pictures)
    elif kind == "labelled":
        np.savez(path, labels=np.arange(80), arr_0=pictures, arr_1=np.arange(80))
    else:
        np.savez(path, np.asfortranarray(pictures) if kind == "fortran" else pictures)
    outcome = verb(evaluate, "--npz", path)
    assert outcome.code == 0, outcome.err
    found, reference = json.loads(outcome.out), np.load(base_files.reference)
    pooled, shares = features(base_files, pictures)
    covariance, apart = np.cov(pooled, rowvar=False), pooled.mean(0) - reference["mu"]
    roots = np.sqrt(scipy.linalg.eigvals(covariance @ reference["sigma"]).real.clip(0))
    fid = apart @ apart + np.trace(covariance) + np.trace(reference["sigma"]) - 2 * roots.sum()
    surprise = (shares * (np.log(shares) - np.log(shares.mean(0)))).sum(1)
    assert found["fid"] == pytest.approx(fid, rel=1e-4)
    assert found["inception_score"] == pytest.approx(np.exp(surprise.mean()), rel=1e-4)
    assert (found["precision"] is None) == (found["recall"] is None) == (kind == "two")


@pytest.mark.parametrize("count", [3, 5, 80])
def test_precision_and_recall_of_a_few_images_are_those_by_hand(
    count: int, base_files: BaseFiles, verb: Verb, tmp_path: Path
):
    real, made = images(80), images(count, seed=1)
    np.savez(
        tmp_path / "real.npz", arr_0=real, **{k: v for k, v in np.load(base_files.reference).items() if k != "features"}
    )
    np.savez(tmp_path / "i.npz", made)
    outcome = verb(evaluate, "--npz", tmp_path / "i.npz", "--set", f"score.reference={tmp_path / 'real.npz'}")
    assert outcome.code == 0, outcome.err
    found = json.loads(outcome.out)
    if count <= 3:  # the third neighbour of three others is not there
        assert found["precision"] is found["recall"] is None
        return
    r, m = features(base_files, real)[0], features(base_files, made)[0]

    def squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return ((a[:, None] - b[None]) ** 2).sum(-1)

    radius_r, radius_m = np.sort(squared(r, r), 1)[:, 3], np.sort(squared(m, m), 1)[:, 3]
    apart = squared(r, m)
    assert found["precision"] == pytest.approx((apart <= radius_r[:, None]).any(0).mean(), abs=0.02)
    assert found["recall"] == pytest.approx((apart <= radius_m[None]).any(1).mean(), abs=0.02)


def test_a_compressed_file_with_a_flipped_byte_is_one_line(verb: Verb, tmp_path: Path):
    for kind, save in (("stored", np.savez), ("deflated", np.savez_compressed)):
        path = tmp_path / f"{kind}.npz"
        save(path, images(80))
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
        outcome = verb(evaluate, "--npz", path)
        assert outcome.code == 2, kind
        assert f"{kind}.npz: " in outcome.err
        assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("verb_of", [evaluate, train], ids=["evaluate", "train"])
@pytest.mark.parametrize("key", ["mu", "sigma"])
def test_a_reference_with_a_nan_is_found_before_anything_is_made(
    key: str, verb_of: Any, base_files: BaseFiles, verb: Verb, tmp_path: Path
):
    content = dict(np.load(base_files.reference))
    content[key] = content[key].copy()
    content[key].flat[3] = np.nan
    np.savez(tmp_path / "r.npz", **content)
    extra = ["--out", tmp_path / "out"] if verb_of is train else []
    outcome = verb(verb_of, "--set", f"score.reference={tmp_path / 'r.npz'}", *extra)
    assert outcome.code == 2
    assert f"r.npz: {key} holds a number that is not finite" in outcome.err
    assert outcome.err.count("\n") == 1
    assert outcome.out == ""
    assert not (tmp_path / "out" / "model.pt").exists()


def forms(state: dict[str, torch.Tensor], folder: Path) -> list[Path]:
    """The same weights as people keep them."""

    def prefixed(prefix: str) -> dict[str, torch.Tensor]:
        return {prefix + name: tensor for name, tensor in state.items()}

    others = {name: tensor + 1 for name, tensor in state.items()}
    contents = {
        "bare": state,
        "ordered": collections.OrderedDict(state),
        "module": {"model": prefixed("module.")},
        "compiled": prefixed("_orig_mod."),
        "nested": {"state_dict": prefixed("module._orig_mod.module.")},
        "llamagens": {"model": state, "optimizer": {"state": {}}, "steps": 7, "args": argparse.Namespace(lr=1e-4)},
        "with_ema": {"model": state, "ema": others},
        "only_ema": {"ema": state},
        "vars": {"epoch": 3, "trainer": {"var_wo_ddp": state, "vae_local": {}, "var_opt": {}}, "args": {}},
        "scalars": {"model": state, "best": np.float64(3.1), "out": Path("/x"), "seeds": np.arange(3, dtype=np.uint32)},
        "frequencies": {"model": {**state, "freqs_cis": torch.zeros(17, 4, 2)}},
    }  # fmt: skip
    for name, content in contents.items():
        torch.save(content, folder / f"{name}.pt")
    torch.save(state, folder / "legacy.pt", _use_new_zipfile_serialization=False)
    save_file(state, folder / "a.safetensors")
    save_file(prefixed("module."), folder / "prefixed.safetensors")
    return [*folder.iterdir()]


def test_checkpoints_as_people_have_them_give_the_same_images(base_files: BaseFiles, verb: Verb, tmp_path: Path):
    def sampled(*arguments: object) -> np.ndarray:
        outcome = verb(sample, "--count", 6, "--npz", tmp_path / "o.npz", *arguments)
        assert outcome.code == 0, outcome.err
        return np.load(tmp_path / "o.npz")["arr_0"]

    (tmp_path / "c").mkdir()
    base = sampled()
    assert base.std() > 0
    for path in forms(torch.load(base_files.checkpoint)["model"], tmp_path / "c"):
        np.testing.assert_array_equal(sampled("--checkpoint", path), base, str(path))


@pytest.mark.parametrize(
    ("factor", "message"),
    [
        (torch.nan, "holds NaN"),
        (torch.inf, "holds an infinite number"),
        (1e35, "the model gives numbers that are not finite"),
    ],
)
def test_a_model_that_is_no_numbers_is_one_line(
    factor: float, message: str, base_files: BaseFiles, verb: Verb, tmp_path: Path
):
    state = torch.load(base_files.checkpoint)["model"]
    for name in ("norm.weight", "output.weight"):
        state[name] = state[name] * factor if np.isfinite(factor) else torch.full_like(state[name], factor)
    torch.save(state, tmp_path / "w.pt")
    for which in (sample, evaluate):
        outcome = verb(which, "--checkpoint", tmp_path / "w.pt")
        assert outcome.code == 2, outcome.err
        assert message in outcome.err
        assert outcome.err.count("\n") == 1


def by_hand(files: BaseFiles, labels: list[int], scale: float) -> np.ndarray:
    """Images of seed 0, each token drawn from what the whole model says of all before it."""
    model = load_official("llamagen", "S", files.checkpoint, files.tokenizer).eval()
    noise = uniforms(0, np.arange(len(labels)), model.config.block_size)
    tokens = torch.zeros(len(labels), model.config.block_size, dtype=torch.long)
    null = torch.full((len(labels),), model.null_label)
    with torch.inference_mode():
        for t in range(tokens.shape[1]):
            with_label, without = (model(y, tokens)[:, t].double() for y in (torch.tensor(labels), null))
            mass = (without + scale * (with_label - without)).softmax(-1).cumsum(-1).numpy()
            drawn = [
                np.searchsorted(m, u * m[-1], side="right") for m, u in zip(mass, noise[:, t].numpy(), strict=True)
            ]
            tokens[:, t] = torch.tensor(drawn)
    return decode_images(load_tokenizer("llamagen", files.tokenizer), tokens).numpy()


@pytest.mark.parametrize("scale", [1.0, 0.0, 0.5, 3.0])
def test_samples_are_those_by_hand(scale: float, base_files: BaseFiles, verb: Verb, tmp_path: Path):
    def sampled(*arguments: object) -> np.ndarray:
        outcome = verb(sample, "--count", 8, "--npz", tmp_path / "o.npz", "--guidance-scale", scale, *arguments)
        assert outcome.code == 0, outcome.err
        return np.load(tmp_path / "o.npz")["arr_0"]

    found = sampled()
    np.testing.assert_array_equal(found, by_hand(base_files, [*range(8)], scale))
    np.testing.assert_array_equal(sampled("--set", "score.top_k=100000"), found)
    greedy = sampled("--set", "score.top_k=1")
    np.testing.assert_array_equal(sampled("--set", "score.top_p=1e-9"), greedy)
    assert not np.array_equal(greedy, found)
    assert not np.array_equal(sampled("--seed", 1), found)


@pytest.mark.parametrize(
    "option",
    [
        "--guidance-scale=-1", "--guidance-scale=nan", "--guidance-scale=inf", "--guidance-scale=1e300",
        "--seed=-1", "--seed=18446744073709551616", "--set=score.temperature=0", "--set=score.temperature=1e-320",
        "--set=score.temperature=.nan", "--set=score.temperature=.inf", "--set=score.top_p=0", "--set=score.top_p=1.5",
        "--set=score.top_k=-1", "--count=0",
    ],
)  # fmt: skip
def test_an_option_out_of_its_bounds_is_one_line(option: str, verb: Verb, tmp_path: Path):
    outcome = verb(sample, "--npz", tmp_path / "o.npz", option)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "o.npz").exists()


def test_a_zip_that_is_no_npz_is_one_line(verb: Verb, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "z.npz", "w") as archive:
        archive.writestr("arr_0.npy", b"no array")
    (tmp_path / "h.npz").write_text("<html>")
    np.save(tmp_path / "a.npy", images(4))
    for name in ("z.npz", "h.npz", "a.npy"):
        outcome = verb(evaluate, "--npz", tmp_path / name)
        assert outcome.code == 2
        assert f"{name}: not an .npz with arr_0" in outcome.err
        assert outcome.err.count("\n") == 1
