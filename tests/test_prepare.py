import json
import re
import signal
import subprocess
import sys
import time
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cca_ray import prepare
from cca_ray.data import token_set_making
from cca_ray.data.images import centre_crop, crops_of, cut, decode
from cca_ray.data.listing import list_images
from cca_ray.data.official_npy import import_npy
from cca_ray.data.token_set_making import tokenize
from cca_ray.data.tokens import read_token_set, to_input
from cca_ray.errors import ConfigError
from cca_ray.evaluation.features import extract
from cca_ray.evaluation.reference import Moments, Reference
from cca_ray.evaluation.reference_making import make_reference
from cca_ray.evaluation.small_network import FeatureNet
from cca_ray.models.files import digest_of_weights, write_atomically
from cca_ray.models.llamagen_family import LlamaGenFamily
from cca_ray.models.official import load_tokenizer
from cca_ray.prepare import wait_for_gpus
from cca_ray.registry import FAMILIES, LOADED, PluginInfo
from cca_ray.storage.lock import alone
from cca_ray.terminal.console import Console
from cca_ray.terminal.images_done import Pace
from tests.commands import assert_refused, invoke
from tests.evaluation.programs import Nvidias
from tests.processes import begin

CROPS = ["flips", "ten-crop-1.1"]


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 30; one file is no image."""
    folder = tmp_path_factory.mktemp("images") / "photos"
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "emu"):
        (folder / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 256, (20 + i, 25, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{i:02}.png")
    (folder / "dog" / "07.png").write_bytes(b"no")
    return folder


def make(photos: Path, tokenizer: Path, out: Path, limit: int = 5) -> str:
    return tokenize(list_images(str(photos)), "llamagen", tokenizer, 16, CROPS, out, 40, limit, Pace(Console()))


@pytest.fixture(scope="module")
def made(photos: Path, tokenizer: Path, tmp_path_factory: pytest.TempPathFactory, ray_here: None) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("made") / "tokens"
    return out, make(photos, tokenizer, out)


def test_every_crop_of_every_image_is_encoded_in_order(made: tuple[Path, str], photos: Path, tokenizer: Path):
    data, network = read_token_set(made[0]), load_tokenizer("llamagen", tokenizer)
    assert data.tokens.shape == (89, 12, 64)
    assert data.labels.tolist() == [0] * 30 + [1] * 29 + [2] * 30
    assert data.meta.tokenizer == digest_of_weights(network)
    assert data.meta.class_names == ("cat", "dog", "emu")
    assert data.meta.augmentations[:3] == ("flips/0", "flips/1", "ten-crop-1.1/0")
    crops = crops_of(CROPS, 16)
    readable = [path for path in sorted(photos.glob("*/*.png")) if path.name != "07.png" or path.parent.name != "dog"]
    for path, tokens in zip(readable, data.tokens, strict=True):
        image = decode(path.read_bytes())
        pixels = {crop.square.key: centre_crop(image, crop.square.side)[None] for crop in crops}
        views = np.concatenate([cut(pixels, crop, 16) for crop in crops])
        with torch.inference_mode():
            expected = network.encode(to_input(views)).numpy()
        assert (tokens == expected).mean() > 0.99, path  # a sum in another order may tip a tie


def test_a_token_set_of_other_code_of_a_plug_in_is_not_gone_on_with(
    photos: Path, tokenizer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(token_set_making, "write_stream", lambda *arguments: "made")
    monkeypatch.setitem(FAMILIES.found, "mine", LlamaGenFamily())
    monkeypatch.setitem(FAMILIES.owners, "mine", "plugged")

    def made(family: str, code: str) -> str:
        monkeypatch.setitem(LOADED, "plugged", PluginInfo("plugged", "", code))
        listing = list_images(str(photos))
        return tokenize(listing, family, tokenizer, 16, CROPS, tmp_path / "out", 40, 5, Pace(Console()))

    assert [made("mine", "a"), made("mine", "a")] == ["made", "made"]
    for family, code in (("mine", "b"), ("llamagen", "a")):
        with pytest.raises(ConfigError, match=r"out: holds another token set \(plug-in differs\); use another --out"):
            made(family, code)


def test_unreadable_images_are_left_out_and_listed(made: tuple[Path, str], photos: Path):
    listed = (made[0] / "unreadable.txt").read_text()
    assert listed == f"{photos / 'dog' / '07.png'}: not an image of any known kind\n"
    manifest = json.loads((made[0] / "manifest.json").read_text())
    assert manifest["unreadable"] == 1
    assert manifest["images"] == {
        "seen": 90, "taken": 89, "unreadable": 1, "fewest": 29, "fewest_class": "dog", "passed_over": {},
    }  # fmt: skip


def test_too_many_unreadable_images_stop_it(photos: Path, tokenizer: Path, tmp_path: Path, ray_here: None, capsys):
    options = ["--tokenizer", str(tokenizer), "--image-size", "16", "--max-unreadable", "0"]
    outcome = invoke(prepare.main, [str(photos), *options, "--out", str(tmp_path / "tokens")], capsys)
    assert (outcome.code, outcome.err.count("\n")) == (2, 1)
    assert re.search(r"1 images cannot be read, more than the limit of 0: .*07\.png: not an image", outcome.err)
    with pytest.raises(ValueError, match="no finished token set here"):
        read_token_set(tmp_path / "tokens")


def test_a_class_of_which_no_image_can_be_read_is_allowed_on_request(
    photos: Path, tokenizer: Path, tmp_path: Path, ray_here: None, capsys
):
    some, out = tmp_path / "some", tmp_path / "tokens"
    for name, content in (("cat", (photos / "cat" / "00.png").read_bytes()), ("dog", b"no")):
        (some / name).mkdir(parents=True)
        (some / name / "00.png").write_bytes(content)
    command = [str(some), "--tokenizer", str(tokenizer), "--image-size", "16", "--out", str(out)]
    refused = invoke(prepare.main, command, capsys)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "--allow-empty-classes" in refused.err
    assert invoke(prepare.main, [*command, "--allow-empty-classes"], capsys).code == 0
    data = read_token_set(out)
    assert (data.labels.tolist(), data.meta.class_names) == ([0], ("cat", "dog"))


def test_only_missing_parts_are_made_again(photos: Path, tokenizer: Path, tmp_path: Path, made, ray_here: None):
    out = tmp_path / "tokens"
    assert make(photos, tokenizer, out) == made[1]
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    (out / "part-00001.parquet").unlink()
    (out / "manifest.json").unlink()
    assert make(photos, tokenizer, out) == made[1]
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert {name for name in before if before[name] != after[name]} == {"part-00001.parquet"}


@pytest.mark.nightly  # the test above has parts that are missing
def test_a_killed_run_goes_on_and_ends_as_if_nothing_had_happened(photos: Path, tokenizer: Path, tmp_path: Path, made):
    out = tmp_path / "tokens"
    crops = [argument for name in CROPS for argument in ("--augment", name)]
    command = [sys.executable, "-m", "cca_ray.prepare", str(photos), "--tokenizer", str(tokenizer), "--out", str(out),
               "--image-size", "16", "--part-images", "40", *crops]  # fmt: skip
    process = begin(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 120
    while not (out / "part-00000.parquet").exists():
        assert process.poll() is None
        assert time.monotonic() < end
        time.sleep(0.01)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL
    for late in ("part-00002.parquet", "manifest.json"):  # should its parts have been quicker than the signal
        (out / late).unlink(missing_ok=True)
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert f"token set {made[1]}: {out}" in again.stdout
    assert "of 90 images were done before" in again.stdout


def test_a_finished_token_set_is_not_read_again(photos: Path, tokenizer: Path, made: tuple[Path, str]):
    manifest = made[0] / "manifest.json"
    before = manifest.stat().st_mtime_ns
    assert make(photos, tokenizer, made[0]) == made[1]
    assert manifest.stat().st_mtime_ns == before


def test_gpus_that_never_come_are_not_waited_for(ray_here: None):
    wait_for_gpus(0, lambda line: None)
    with pytest.raises(ConfigError, match="--gpus 2: this Ray cluster has 0, and no autoscaler brings more"):
        wait_for_gpus(2, lambda line: None)


def test_a_second_run_on_the_folder_is_refused(photos: Path, tokenizer: Path, made: tuple[Path, str], capsys):
    with alone(made[0]):
        arguments = [str(photos), "--tokenizer", str(tokenizer), "--out", str(made[0]), "--image-size", "16"]
        outcome = invoke(prepare.main, arguments, capsys)
    assert outcome.code == 2
    assert "in use by process" in outcome.err


def test_another_token_set_in_the_folder_is_not_touched(photos: Path, tokenizer: Path, tmp_path: Path, made):
    listing, pace = list_images(str(photos)), Pace(Console())
    with pytest.raises(ConfigError, match=r"holds another token set \(part_images differs\)"):
        tokenize(listing, "llamagen", tokenizer, 16, CROPS, made[0], 50, 5, pace)
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="is not empty and not a token set begun here"):
        tokenize(listing, "llamagen", tokenizer, 16, CROPS, tmp_path, 40, 5, pace)


def test_reference_statistics_are_those_of_the_centre_crops(photos: Path, tmp_path: Path, ray_here: None):
    network = FeatureNet(16, 3)
    write_atomically({"model": network.state_dict(), "config": {"image_size": 16, "num_classes": 3}}, tmp_path / "f.pt")
    listing = list_images(str(photos))
    made = make_reference(listing, tmp_path / "f.pt", 16, tmp_path / "reference.npz", 5, Pace(Console()))
    images = [centre_crop(decode(Path(e.path).read_bytes()), 16) for e in listing.entries if "dog/07" not in e.path]
    expected = Moments.of(extract(network, torch.from_numpy(np.stack(images))).pooled.numpy())
    np.testing.assert_allclose(made.mean, expected.mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(made.covariance, expected.covariance, rtol=1e-4, atol=1e-7)
    found = Reference.load(tmp_path / "reference.npz")
    assert found.digest == made.digest
    assert found.features is not None
    pooled = extract(network, torch.from_numpy(np.stack(images))).pooled.numpy()
    np.testing.assert_allclose(found.features, pooled, rtol=1e-4, atol=1e-5)
    assert "dog/07.png: not an image" in (tmp_path / "reference.npz.unreadable.txt").read_text()


def test_a_feature_network_that_is_a_program_is_run_only_if_its_maker_is_trusted(
    photos: Path, tmp_path: Path, ray_here: None, capsys
):
    features, reference = tmp_path / "program.pt", tmp_path / "new" / "reference.npz"
    torch.jit.script(Nvidias(1008)).save(str(features))
    command = [str(photos), "--features", str(features), "--reference", str(reference), "--reference-size", "16"]
    refused = invoke(prepare.main, command, capsys)
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "prepare --trust-torchscript" in refused.err
    assert not reference.exists()
    (photos / "dog" / "scan.heic").touch()
    made = invoke(prepare.main, [*command, "--trust-torchscript"], capsys)
    (photos / "dog" / "scan.heic").unlink()
    assert made.code == 0
    assert Reference.load(reference).mean.shape == (12,)
    assert Path(f"{reference}.unreadable.txt").exists()  # also in a folder that was not there before
    assert "1 file is no image by its name: 1 .heic" in made.out


def write_npy(root: Path, count: int = 5, crops: int = 2, seed: int = 0) -> np.ndarray:
    """As the official extraction writes them: int64 [1, crops, 64] and a label [1] each."""
    codes = np.random.default_rng(seed).integers(0, 64, (count, crops, 64))
    for name in ("imagenet16_codes", "imagenet16_labels"):
        (root / name).mkdir(parents=True)
    for i in range(count):
        np.save(root / "imagenet16_codes" / f"{i}.npy", codes[i : i + 1])
        np.save(root / "imagenet16_labels" / f"{i}.npy", np.array([i % 3]))
    return codes


def test_the_official_files_are_imported(tokenizer: Path, tmp_path: Path):
    first, second = write_npy(tmp_path / "a"), write_npy(tmp_path / "b", seed=1)
    roots = [tmp_path / "a", tmp_path / "b"]
    import_npy(roots, "llamagen", tokenizer, 16, ["cat", "dog", "emu"], tmp_path / "tokens", 2, Pace(Console()))
    data = read_token_set(tmp_path / "tokens")
    np.testing.assert_array_equal(data.tokens, np.concatenate([first, second], axis=1))
    assert data.labels.tolist() == [0, 1, 2, 0, 1]
    assert data.meta.augmentations == ("a/flips/0", "a/flips/1", "b/flips/0", "b/flips/1")
    np.save(tmp_path / "a" / "imagenet16_codes" / "0.npy", first[:1] ^ 1)  # made again, where it was
    with pytest.raises(ConfigError, match=r"holds another token set \(contents of images differs\)"):
        import_npy(roots, "llamagen", tokenizer, 16, ["cat", "dog", "emu"], tmp_path / "tokens", 2, Pace(Console()))


def test_official_folders_of_different_lengths_are_refused(tokenizer: Path, tmp_path: Path):
    write_npy(tmp_path / "a"), write_npy(tmp_path / "b", count=4)
    roots = [tmp_path / "a", tmp_path / "b"]
    with pytest.raises(ConfigError, match="--npy: the folders hold 5 and 4 images; expected the same"):
        import_npy(roots, "llamagen", tokenizer, 16, list("xyz"), tmp_path / "tokens", 2, Pace(Console()))
    assert not (tmp_path / "tokens").exists()


def harm(root: Path, kind: str) -> None:
    codes, labels = root / "imagenet16_codes", root / "imagenet16_labels"
    if kind == "no codes":
        codes.rename(root / "codes")
    elif kind == "a gap":
        (codes / "2.npy").unlink()
    elif kind == "torn":
        (codes / "3.npy").write_bytes((codes / "3.npy").read_bytes()[:60])
    elif kind == "no label":
        (labels / "3.npy").unlink()
    elif kind == "another size":
        np.save(codes / "3.npy", np.zeros((1, 2, 81), np.int64))
    elif kind == "no codes in it":
        np.save(codes / "3.npy", np.zeros((1, 0), np.int64))
    elif kind == "no number":
        np.save(labels / "3.npy", np.array(1.0))
    elif kind == "an object":
        np.save(codes / "0.npy", np.array([{}]), allow_pickle=True)
    elif kind == "another codebook":
        np.save(codes / "3.npy", np.full((1, 2, 64), 64))
    elif kind == "another class":
        np.save(labels / "3.npy", np.array([3]))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no codes", r"expected one folder \*_codes and one \*_labels"),
        ("a gap", r"expected 0\.npy, 1\.npy, \.\.\. without gaps; found 4"),
        ("torn", r"3\.npy: not readable"),
        ("no label", r"3\.npy: not readable"),
        ("another size", r"3\.npy: \[1, 2, 81\]; expected 2 crops of 64 codes in all"),
        ("no codes in it", r"3\.npy: int64 \[1, 0\]; expected an array of integers"),
        ("no number", r"3\.npy: float64 \[\]; expected an array of integers"),
        ("an object", r"0\.npy: not readable \(Object arrays cannot be loaded"),
        ("another codebook", r"3\.npy: code 64 is not in the codebook of 64"),
        ("another class", r"3\.npy: label \[3\]; expected one below 3"),
    ],
)
def test_official_files_that_do_not_fit_are_one_line(tokenizer: Path, tmp_path: Path, kind: str, message: str):
    write_npy(tmp_path / "a")
    harm(tmp_path / "a", kind)
    with pytest.raises(ConfigError, match=message) as error:
        import_npy([tmp_path / "a"], "llamagen", tokenizer, 16, list("xyz"), tmp_path / "tokens", 2, Pace(Console()))
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no finished token set here"):
        read_token_set(tmp_path / "tokens")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "t"], "give either IMAGES or --npy FOLDER"),
        (["PHOTOS", "--npy", "PHOTOS", "--out", "t"], "give either IMAGES or --npy FOLDER"),
        (
            ["--npy", "PHOTOS", "--family", "var", "--tokenizer", "TOKENIZER", "--out", "t"],
            "--npy: the official code of var leaves no tokens in .npy files",
        ),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--max-unreadable", "-1"], "'--max-unreadable'"),
        (["PHOTOS"], "nothing to make: give --out FOLDER, --reference FILE.npz, or both"),
        (["PHOTOS", "--out", "t"], "--out needs --tokenizer FILE"),
        (["PHOTOS", "--reference", "r.npz"], "--reference needs IMAGES and --features FILE"),
        (["PHOTOS", "--reference", "r.txt", "--features", "f.pth"], "expected a file that ends in .npz"),
        (
            ["PHOTOS", "--reference", "r.npz", "--features", "f.pth"],
            "f.pth: no such file; score.features must name the FID",
        ),
        (["PHOTOS", "--tokenizer", "none.pt", "--out", "t"], "none.pt: no such checkpoint file"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--image-size", "15"], "multiple of the tokenizer's 2"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--augment", "rotate"], "unknown augmentation 'rotate'"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--classes", "none.txt"], "none.txt: No such file"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--part-images", "0"], "'--part-images'"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "TOKENIZER"], "is a file; expected a folder"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--features", "f"], "--features is for --reference"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--classes", "TOKENIZER"], "not UTF-8 text"),
        (
            ["PHOTOS", "--features", "f", "--reference", "r.npz", "--classes", "c.txt"],
            "--classes does nothing without --out; leave it out, or give --out",
        ),
        (["PHOTOS", "--features", "f", "--reference", "r.npz", "--part-images", "9"], "--part-images does nothing"),
        (
            ["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--reference-size", "512"],
            "--reference-size does nothing without --reference",
        ),
        (["--npy", "PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--gpus", "2"], "--gpus does nothing without"),
        (
            ["PHOTOS", "--tokenizer", "TOKENIZER", "--out", "t", "--classes", "c.txt", "--numeric-classes"],
            "--numeric-classes sorts the classes that are found, and --classes lists them",
        ),
        (["nowhere", "--tokenizer", "TOKENIZER", "--out", "t"], "nowhere: no such folder or file"),
        (["", "--tokenizer", "TOKENIZER", "--out", "t"], "an empty path: is a variable such as $IMAGES not set?"),
        (["PHOTOS", "--tokenizer", "TOKENIZER", "--out", ""], "an empty path: is a variable such as $IMAGES not set?"),
        (["nope://x", "--tokenizer", "TOKENIZER", "--out", "t"], "nope://x: not a path or URI"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    arguments: list[str], message: str, photos: Path, tokenizer: Path, tmp_path: Path, capsys
):
    with chdir(tmp_path):
        assert_refused(prepare.main, arguments, message, capsys, PHOTOS=photos, TOKENIZER=tokenizer)
