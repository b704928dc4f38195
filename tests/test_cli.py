"""The verbs, as a person would type them."""

import json
import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from ray.exceptions import LocalRayletDiedError, RayError, RayTaskError

from cca_ray import clean, evaluate, plan, pretrain, report, sample, status, train, tune
from cca_ray.models.official import build, load_tokenizer, save_official
from cca_ray.storage.lock import alone
from cca_ray.terminal.console import command
from cca_ray.training.small_base import BaseFiles
from tests.commands import invoke, write_space


def test_train_fine_tunes_once(base_files: BaseFiles, tmp_path: Path, capsys):
    space = write_space(tmp_path, base_files)
    outcome = invoke(train.main, [str(space), "--lambda", "3", "--lr", "2e-3", "--out", str(tmp_path / "out")], capsys)
    assert outcome.code == 0
    assert "step 5/10" in outcome.out
    assert "(80 samples)" in outcome.out
    assert (tmp_path / "out" / "model.pt").is_file()


def test_sample_makes_a_grid_or_an_npz_that_evaluate_scores(base_files: BaseFiles, tmp_path: Path, capsys):
    space = write_space(tmp_path, base_files)
    grid, npz = tmp_path / "grid.png", tmp_path / "samples.npz"
    assert invoke(sample.main, [str(space), "--count", "30", "--out", str(grid)], capsys).code == 0
    with Image.open(grid) as image:
        assert image.size == (251, 76)
    assert invoke(sample.main, [str(space), "--count", "80", "--npz", str(npz)], capsys).code == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.png", "samples.npz", "tiny.yaml"]
    assert np.load(npz)["arr_0"].shape == (80, 8, 8, 3)
    by_file = json.loads(invoke(evaluate.main, [str(space), "--npz", str(npz)], capsys).out)
    assert np.load(npz)["labels"].tolist() == [i % 10 for i in range(80)]
    direct = json.loads(invoke(evaluate.main, [str(space), "--samples", "80"], capsys).out)
    assert by_file["fid"] == pytest.approx(direct["fid"], rel=1e-6)
    refused = invoke(evaluate.main, [str(space), "--npz", str(npz), "--samples", "20"], capsys)
    assert (refused.code, refused.err) == (2, "error: --samples: --npz has all images that are scored\n")
    assert by_file["inception_score"] == pytest.approx(direct["inception_score"], rel=1e-6)
    guided = json.loads(invoke(evaluate.main, [str(space), "--samples", "80", "--guidance-scale", "2"], capsys).out)
    assert guided["protocol_id"] != direct["protocol_id"]
    assert guided["fid"] != direct["fid"]
    assert direct["sfid"] is None
    assert all(np.isfinite(direct[name]) for name in ("kid", "precision", "recall"))


def test_a_reference_of_moments_alone_gives_no_more_than_version_0_1_did(base_files: BaseFiles, tmp_path: Path, capsys):
    space, bare = write_space(tmp_path, base_files), tmp_path / "bare.npz"
    content = np.load(base_files.reference)
    np.savez(bare, mu=content["mu"], sigma=content["sigma"])
    space.write_text(space.read_text().replace(str(base_files.reference), str(bare)))
    found = json.loads(invoke(evaluate.main, [str(space), "--samples", "80"], capsys).out)
    assert [found[name] for name in ("sfid", "kid", "precision", "recall")] == [None] * 4
    refused = invoke(evaluate.main, [str(space), "--set", "score.metrics=[fid, kid]"], capsys)
    assert refused.code == 2
    assert "score.metrics: kid cannot be computed: score.reference holds no features" in refused.err
    assert refused.err.count("\n") == 1


def test_a_dry_run_shows_every_setting_and_starts_nothing(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    outcome = invoke(tune.main, ["--dry-run", "--trials", "5", "--set", "train.beta=0.5", "--seed", "3"], capsys)
    shown = list(yaml.safe_load_all(outcome.out))
    assert outcome.code == 0
    assert [study["name"] for study in shown] == ["digits_s", "digits_m", "digits_var"]
    assert [study["search"]["trials"] for study in shown] == [5, 5, 5]
    told = [line[2:] for line in outcome.out.splitlines() if line.startswith("# ")]
    assert told[0] == f"study digits-seed3 in {tmp_path / 'runs' / 'digits-seed3'}: new"
    assert told[1].startswith(
        "digits_s: 5 trials, 4 controls (up to 7 if the best rate is at the edge), 2 at a time; then 3 "
    )
    assert told[2] == "  rungs: 900 images at 50 %, 1,800 images at 100 % of a trial"
    assert told[3].startswith("  on CPU: ")
    assert re.fullmatch(r"  time: about [\d.]+ (s|minutes) on .*; plus the time to make a small base", told[4])
    assert re.fullmatch(r"  disk: about [\d.]+ MB \(up to 12 trials × .* 5 times the size of the weights\)", told[5])
    assert shown[0]["train"]["beta"] == 0.5
    assert shown[0]["train"]["weight_decay"] == 0.05
    assert (shown[0]["search"]["seed"], shown[0]["train"]["seed"]) == (3, 3)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("verb", "arguments", "message"),
    [
        (tune, ["nowhere.yaml"], "nowhere.yaml: no such search-space file"),
        (tune, ["nowhere/digits_s.yaml"], "nowhere/digits_s.yaml: no such search-space file"),
        (tune, ["digit_s"], "digit_s: no such search-space file; did you mean digits_s?"),
        (train, ["lamagen-xl.yaml"], "lamagen-xl.yaml: no such search-space file; did you mean llamagen_xl?"),
        (tune, ["--set", "train.beta=x"], "train.beta: input should be a valid number"),
        (tune, ["llamagen_b"], "llamagen_b: base.checkpoint: no such file"),
        (train, ["llamagen_3b"], "c2i_3B_384.pt; expected the base's official weights"),
        (sample, ["llamagen_l"], "llamagen_l: base.checkpoint: no such file"),
        (evaluate, ["llamagen_xl"], "llamagen_xl: base.checkpoint: no such file"),
        (tune, ["--trials", "0"], "'--trials'"),
        (tune, ["--frobnicate"], "No such option: --frobnicate"),
        (tune, ["digits_s", "digits_s"], "two search spaces have the same name"),
        (tune, ["--name", "it's"], "--name it's: letters, digits"),
        (tune, ["--set", "placement.workers=3"], "global_batch 128 is not a multiple of placement.workers (3)"),
        (tune, ["--set", "pretrain.image_size=16"], "the embedded digits are 8 pixels wide"),
        (train, ["--lr", "fast"], "'--lr'"),
        (train, ["--lambda", "-1"], "train.lambda: input should be greater than 0"),
        (sample, ["--out", "grid.gif"], "--out grid.gif: expected a file that ends in .png"),
        (sample, ["--npz", "samples.png"], "--npz samples.png: expected a file that ends in .npz"),
        (evaluate, ["--checkpoint", "a", "--npz", "b"], "give one of them"),
        (evaluate, ["--npz", "a", "--verify", "b"], "--npz and --verify: give one of them"),
        (evaluate, ["--npz", "file:///no/images.npz"], "error: file:///no/images.npz: no such file"),
        (evaluate, ["--checkpoint", "no.pt"], "no.pt: no such file"),
        (sample, ["--checkpoint", "file:///no/winner.pt"], "error: file:///no/winner.pt: no such file"),
        (evaluate, ["--trial", "3"], "--trial: names a finalist of a study; give --verify, too"),
        (evaluate, ["--verify", "a", "--samples", "20"], "--samples: --verify always scores as the study did"),
        (pretrain, ["--size", "XXL"], "one of S, M"),
        (pretrain, ["--images", "nowhere"], "no such folder"),
        (pretrain, ["--images", "nowhere", "--image-size", "30"], "downsample"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(
    verb: Any, arguments: list[str], message: str, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    outcome = invoke(verb.main, arguments, capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("section", "key", "hint"),
    [
        ("base", "tokenizer", "expected the tokenizer's official weights"),
        ("data", "tokens", "expected a token set, which python -m cca_ray.prepare makes"),
        ("score", "features", "expected the FID Inception weights: pt_inception-2015-12-05-6726825d.pth"),
        ("score", "reference", "expected ADM's VIRTUAL_imagenet256_labeled.npz"),
    ],
)
def test_a_missing_file_is_one_line_that_says_where_to_get_it(
    section: str, key: str, hint: str, base_files: BaseFiles, tmp_path: Path, capsys
):
    space = write_space(tmp_path, base_files)
    arguments = [str(space), "--set", f"{section}.{key}={tmp_path}/none", "--storage", str(tmp_path / "runs")]
    outcome = invoke(tune.main, arguments, capsys)
    assert outcome.code == 2
    assert f"tiny: {section}.{key}: no such file: {tmp_path}/none; {hint}" in outcome.err
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def damaged(kind: str, folder: Path, files: BaseFiles) -> dict[str, Path]:
    """A file that is there but wrong, by the setting that names it."""
    path = folder / "damaged"
    if kind == "truncated checkpoint":
        path.write_bytes(files.checkpoint.read_bytes()[:3000])
        return {"base.checkpoint": path}
    if kind == "another size":
        save_official(build("llamagen", "M", num_classes=10, vocab_size=32, block_size=16), path)
        return {"base.checkpoint": path}
    if kind == "another codebook":
        save_official(build("llamagen", "S", num_classes=10, vocab_size=64, block_size=16), path)
        return {"base.checkpoint": path}
    if kind == "another tokenizer":
        tokenizer = load_tokenizer("llamagen", files.tokenizer)
        tokenizer.decoder.conv_in.bias.data += 1
        save_official(tokenizer, path)
        return {"base.tokenizer": path}
    if kind == "model for tokenizer":
        return {"base.tokenizer": files.checkpoint}
    if kind == "half-written tokens":
        shutil.copytree(files.tokens, path)
        (path / "manifest.json").unlink()
        return {"data.tokens": path}
    if kind == "altered tokens":
        shutil.copytree(files.tokens, path)
        part = path / "part-00000.parquet"
        part.write_bytes(part.read_bytes()[:-1])
        return {"data.tokens": path}
    if kind == "no feature network":
        return {"score.features": files.checkpoint}
    if kind == "reference of other features":
        np.savez(path, mu=np.zeros(5), sigma=np.eye(5))
        return {"score.reference": path.with_suffix(".npz")}
    np.savez(path, arr_0=np.zeros((4, 8, 8, 3), np.uint8))
    return {"score.reference": path.with_suffix(".npz")}


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated checkpoint", "damaged: not a readable checkpoint"),
        ("another size", "damaged: its dim is 24, not the 16 of llamagen S"),
        ("another codebook", "models 16 tokens of 64 codes and 10 classes, but"),
        ("another tokenizer", "damaged: is not the tokenizer that made"),
        ("model for tokenizer", "not a VQ checkpoint"),
        ("half-written tokens", "no finished token set here"),
        ("altered tokens", "part-00000.parquet: missing, or not what the manifest says"),
        ("no feature network", "not a feature network; score.features must name"),
        ("reference of other features", "statistics of 5 features, but"),
        ("reference without mu", "has no mu; expected an .npz with mu and sigma"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(kind: str, message: str, base_files: BaseFiles, tmp_path: Path, capsys):
    space = write_space(tmp_path, base_files)
    content = yaml.safe_load(space.read_text())
    for setting, path in damaged(kind, tmp_path, base_files).items():
        section, key = setting.split(".")
        content[section][key] = str(path)
    space.write_text(yaml.safe_dump(content))
    outcome = invoke(evaluate.main, [str(space), "--samples", "20"], capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


def test_a_storage_that_is_a_file_is_one_line(base_files: BaseFiles, tmp_path: Path, capsys):
    (tmp_path / "runs").touch()
    outcome = invoke(tune.main, [str(write_space(tmp_path, base_files)), "--storage", str(tmp_path / "runs")], capsys)
    assert outcome.code == 2
    assert outcome.err == f"error: {tmp_path / 'runs'}: cannot be written: it is a file\n"


def test_a_checkpoint_of_another_base_is_one_line(base_files: BaseFiles, tmp_path: Path, capsys):
    other = tmp_path / "other.pt"
    save_official(build("llamagen", "S", num_classes=7, vocab_size=32, block_size=16), other)
    for verb in (sample, evaluate):
        arguments = [str(write_space(tmp_path, base_files)), "--checkpoint", str(other)]
        outcome = invoke(verb.main, arguments, capsys)
        assert outcome.code == 2
        assert "models 16 tokens of 32 codes and 7 classes" in outcome.err
        assert outcome.err.count("\n") == 1


def test_a_study_has_one_driver(base_files: BaseFiles, tmp_path: Path, capsys):
    space = write_space(tmp_path, base_files)
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    with alone(folder):
        outcome = invoke(tune.main, [str(space), "--storage", str(tmp_path / "runs")], capsys)
    assert outcome.code == 2
    assert f"in use by process {os.getpid()}" in outcome.err


def test_a_reference_with_images_gives_precision_and_recall(base_files: BaseFiles, tmp_path: Path, capsys):
    space, npz, real = write_space(tmp_path, base_files), tmp_path / "samples.npz", tmp_path / "real.npz"
    assert invoke(sample.main, [str(space), "--count", "40", "--npz", str(npz)], capsys).code == 0
    np.savez(real, arr_0=np.load(npz)["arr_0"], **np.load(base_files.reference))
    space.write_text(space.read_text().replace(str(base_files.reference), str(real)))
    found = json.loads(invoke(evaluate.main, [str(space), "--npz", str(npz)], capsys).out)
    assert (found["precision"], found["recall"]) == (1.0, 1.0)


def test_random_labels_are_another_protocol(base_files: BaseFiles, tmp_path: Path, capsys):
    space, npz = write_space(tmp_path, base_files), tmp_path / "samples.npz"
    balanced = json.loads(invoke(evaluate.main, [str(space), "--samples", "80"], capsys).out)
    content = yaml.safe_load(space.read_text())
    content["score"]["labels"] = "random"
    space.write_text(yaml.safe_dump(content))
    drawn = json.loads(invoke(evaluate.main, [str(space), "--samples", "80"], capsys).out)
    assert drawn["protocol"] == {**balanced["protocol"], "labels": "random"}
    assert drawn["protocol_id"] != balanced["protocol_id"]
    assert drawn["fid"] != balanced["fid"]
    assert invoke(sample.main, [str(space), "--count", "300", "--npz", str(npz)], capsys).code == 0
    counts = np.bincount(np.load(npz)["labels"], minlength=10)
    assert counts.min() > 10
    assert counts.max() > 30


def test_an_array_in_fortrans_order_is_read_as_any_other(base_files: BaseFiles, tmp_path: Path, capsys):
    space = str(write_space(tmp_path, base_files))
    images = np.random.default_rng(0).integers(0, 256, (600, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "c.npz", arr_0=images)
    np.savez(tmp_path / "f.npz", arr_0=np.asfortranarray(images))
    scores = [invoke(evaluate.main, [space, "--npz", str(tmp_path / name)], capsys) for name in ("c.npz", "f.npz")]
    assert scores[0].code == scores[1].code == 0
    assert scores[0].out == scores[1].out
    (tmp_path / "torn.npz").write_bytes((tmp_path / "f.npz").read_bytes()[:5000])
    assert invoke(evaluate.main, [space, "--npz", str(tmp_path / "torn.npz")], capsys).code == 2


@pytest.mark.parametrize("option", [
    "--guidance-scale=inf", "--guidance-scale=nan", "--guidance-scale=1e300", "--guidance-scale=-1",
    "--guidance-scale=two", "--seed=18446744073709551616", "--seed=-1", "--set=score.temperature=1e-320",
    "--set=score.temperature=1e300", "--set=score.guidance_scales=[1e300]", "--set=score.seed=9223372036854775808",
])  # fmt: skip
@pytest.mark.parametrize("verb", [evaluate, sample])
def test_options_have_bounds_that_hold(verb: Any, option: str, base_files: BaseFiles, tmp_path: Path, capsys):
    outcome = invoke(verb.main, [str(write_space(tmp_path, base_files)), option], capsys)
    assert outcome.code == 2
    assert outcome.err.count("\n") == 1
    assert not (tmp_path / "samples.png").exists()


def test_of_few_images_the_metrics_are_told_that_can_be_had(base_files: BaseFiles, tmp_path: Path, capsys):
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    np.savez(tmp_path / "few.npz", arr_0=images)
    space = str(write_space(tmp_path, base_files))
    outcome = invoke(evaluate.main, [space, "--npz", str(tmp_path / "few.npz")], capsys)
    assert outcome.code == 0
    found = json.loads(outcome.out)
    assert found["fid"] > 0
    assert found["inception_score"] >= 1
    assert found["precision"] is found["recall"] is None


def npz_of(path: Path, images: int, there: int, fortran: bool = False) -> None:
    """An `.npz` whose `arr_0` says how many images it holds, and holds as many as there are."""
    with zipfile.ZipFile(path, "w") as archive, archive.open("arr_0.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": fortran, "shape": (images, 8, 8, 3)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(np.random.default_rng(0).integers(0, 255, there * 192, dtype=np.uint8).tobytes())


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("short", "bad.npz: ends after 0 of 40 images"),
        ("short in Fortran's order", "bad.npz: ends after 5,760 of 7,680 bytes"),
        ("flipped", "bad.npz: arr_0 cannot be read; make or copy it again (Bad CRC-32 for file 'arr_0.npy')"),
        (
            "flipped in Fortran's order",
            "bad.npz: arr_0 cannot be read; make or copy it again (Bad CRC-32 for file 'arr_0.npy')",
        ),
    ],
)
def test_an_npz_whose_images_are_cut_short_or_damaged_is_one_line(
    kind: str, message: str, base_files: BaseFiles, tmp_path: Path, capsys
):
    space, path = write_space(tmp_path, base_files), tmp_path / "bad.npz"
    npz_of(path, 40, 30 if "short" in kind else 40, "Fortran" in kind)
    if "flipped" in kind:
        content = bytearray(path.read_bytes())
        content[4000] ^= 255
        path.write_bytes(content)
    outcome = invoke(evaluate.main, [str(space), "--npz", str(path)], capsys)
    assert outcome.code == 2
    assert message in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize("kind", ["text", "float", "wrong size", "empty", "no arr_0", "truncated"])
def test_an_npz_that_cannot_be_scored_is_one_line(kind: str, base_files: BaseFiles, tmp_path: Path, capsys):
    space, path = write_space(tmp_path, base_files), tmp_path / "bad.npz"
    if kind == "text":
        path.write_text("no")
    elif kind == "empty":
        path.touch()
    elif kind == "truncated":
        np.savez(path, arr_0=np.zeros((40, 8, 8, 3), dtype=np.uint8))
        path.write_bytes(path.read_bytes()[:3000])
    elif kind == "float":
        np.savez(path, arr_0=np.zeros((4, 8, 8, 3)))
    elif kind == "wrong size":
        np.savez(path, arr_0=np.zeros((4, 9, 9, 3), dtype=np.uint8))
    else:
        np.savez(path, images=np.zeros((4, 8, 8, 3), dtype=np.uint8))
    outcome = invoke(evaluate.main, [str(space), "--npz", str(path)], capsys)
    assert outcome.code == 2
    assert "bad.npz" in outcome.err
    assert outcome.err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (LocalRayletDiedError(), "error: Ray died on this machine; run the same command again to continue\n"),
        (
            RayTaskError("score", "trace\nback", OSError(28, "No space left on device", "scores")),
            "error: scores: No space left on device\n",
        ),
    ],
    ids=["raylet", "full disk of a task"],
)
def test_what_ray_brings_from_elsewhere_is_one_line(error: RayError, line: str, capsys):
    def main() -> None:
        raise error

    outcome = invoke(main, [], capsys)
    assert (outcome.code, outcome.err) == (2, line)


def test_a_password_reaches_neither_terminal_nor_files(base_files: BaseFiles, tmp_path: Path, capsys):
    space, runs = str(write_space(tmp_path, base_files)), tmp_path / "runs"
    for uri in ("http://user:geheim@127.0.0.1:9", "postgresql://user:geheim@127.0.0.1:9/mlflow"):
        outcome = invoke(tune.main, [space, "--name", "s", "--storage", str(runs), "--tracking-uri", uri], capsys)
        assert outcome.code == 2
        assert "user:***@127.0.0.1:9" in outcome.err
        assert "geheim" not in outcome.out + outcome.err
    written = [path for path in runs.rglob("*") if path.is_file()]
    assert (runs / "s" / "log.txt") in written
    assert not any(b"geheim" in path.read_bytes() for path in written)


def test_a_fault_of_ours_is_a_traceback_without_passwords(capsys):
    def main() -> None:
        raise KeyError("postgresql://user:geheim@host/db")

    outcome = invoke(main, [], capsys)
    assert outcome.code == 1
    assert "Traceback" in outcome.err
    assert "KeyError: 'postgresql://user:***@host/db'" in outcome.err


VERBS = [clean, evaluate, plan, pretrain, report, sample, status, train, tune]


@pytest.mark.parametrize("verb", VERBS, ids=[verb.__name__.rsplit(".", 1)[-1] for verb in VERBS])
def test_one_option_names_the_storage_of_every_verb(verb: Any):
    (storage,) = (option for option in command(verb.main).params if option.name == "storage")
    assert storage.envvar == "CCA_RAY_STORAGE"
    assert storage.opts == ["--storage"]


def test_a_tilde_is_the_home_in_options_environment_and_search_spaces(
    base_files: BaseFiles, tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    (home / "model.pt").symlink_to(base_files.checkpoint)
    space = write_space(tmp_path, base_files)
    content = yaml.safe_load(space.read_text())
    content["base"]["checkpoint"] = "~/model.pt"
    (home / "mine.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setenv("CCA_RAY_STORAGE", "~/runs")
    outcome = invoke(sample.main, ["~/mine.yaml", "--count=10", "--out=~/grid.png"], capsys)
    assert outcome.code == 0, outcome.err
    assert (home / "grid.png").is_file()
    assert invoke(status.main, ["nothing"], capsys).err.startswith(f"error: {home / 'runs'}: no such folder")
    assert not (tmp_path / "~").exists()
