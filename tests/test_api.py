"""What `import cca_ray` gives: quick, the same whoever imported what before, in the words of the command line."""

import inspect
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

import cca_ray
from cca_ray.cluster.stopping import interrupt
from cca_ray.reporting.outcome import Found
from cca_ray.terminal.calling import Verb
from cca_ray.training.small_base import BaseFiles
from tests.commands import write_space
from tests.studies import make_study, summary_of

ROOT = Path(__file__).resolve().parents[1]
# Of a verb's main, what its function does without: it prints nothing that a program would read, and returns it.
ONLY_TYPED = {"set_": "settings", "dry_run": None, "as_json": None, "verify": None, "trial": None}


def python(program: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *options, "-c", program], capture_output=True, text=True, check=True)


def test_the_import_is_light_and_does_nothing():
    done = python("import sys; import cca_ray; print(*sys.modules)")
    ours = [name for name in done.stdout.split() if name.startswith("cca_ray")]
    assert ours == ["cca_ray"]
    assert not {"torch", "ray", "mlflow", "optuna", "numpy", "pydantic", "pandas"} & set(done.stdout.split())


def test_opening_a_study_imports_neither_torch_nor_ray():
    done = python("import sys; import cca_ray; cca_ray.open, cca_ray.Study; print(*sys.modules)")
    assert "cca_ray.opened" in done.stdout.split()
    assert not {"torch", "ray", "mlflow", "pandas"} & set(done.stdout.split())


def test_a_verb_is_its_module_and_is_called_whoever_imported_it_before(monkeypatch: pytest.MonkeyPatch):
    by_import, by_its_folder = import_module("cca_ray.sample"), cca_ray.sample
    monkeypatch.delattr(cca_ray, "sample")  # as before the first import
    verbs: list[Any] = [by_import, by_its_folder, cca_ray.sample]
    assert verbs == [by_import] * 3
    assert by_import.main.__module__ == "cca_ray.sample"
    for verb in verbs:
        with pytest.raises(cca_ray.ConfigError, match=r"digit_s: no such search-space file; did you mean digits_s\?"):
            verb("digit_s")


@pytest.mark.parametrize("name", cca_ray.__all__)
def test_every_public_name_is_there(name: str):
    assert name in dir(cca_ray)
    found = getattr(cca_ray, name)
    assert callable(found) or isinstance(found, str)
    if name != "__version__":
        assert (found._function if isinstance(found, Verb) else found).__doc__


def test_what_is_not_there_is_told_as_of_any_module():
    with pytest.raises(AttributeError, match="module 'cca_ray' has no attribute 'tunes'"):
        cca_ray.tunes  # noqa: B018


@pytest.mark.parametrize("name", cca_ray.VERBS)
def test_a_verb_has_the_words_and_the_defaults_of_its_command(name: str):
    verb = import_module(f"cca_ray.{name}")
    command, function = inspect.signature(verb.main).parameters, inspect.signature(verb).parameters
    words = {word: ONLY_TYPED.get(word, word) for word in command}
    assert {word for word in words.values() if word} | {"quiet"} == set(function)
    for word, parameter in command.items():
        if parameter.default not in (None, Path("runs")) and words[word] and word != "spaces":
            assert function[words[word]].default == parameter.default, word
    assert all(parameter.annotation is not inspect.Parameter.empty for parameter in function.values())


def test_a_verb_is_sent_to_other_processes_by_its_name():
    assert pickle.loads(pickle.dumps(cca_ray.train)) is cca_ray.train


@pytest.mark.parametrize(
    ("verb", "given", "said"),
    [
        ("tune", {"trials": 0}, "trials: expected at least 1, not 0"),
        ("tune", {"minutes": float("nan")}, "minutes: expected at least 0.01, not nan"),
        ("tune", {"seed": -1}, "seed: expected at least 0, not -1"),
        ("tune", {"trials": "many"}, "trials: input should be a valid integer"),
        ("tune", {"settings": {"train.bete": 1}}, "train.bete: unknown key; allowed: "),
        ("tune", {"settings": "train.beta=1"}, "settings: expected a mapping, such as {'train.beta': 0.05}"),
        ("tune", {"settings": {"train.beta": object()}}, "is not a number, word, list or mapping"),
        ("tune", {"name": "it's"}, "--name it's: letters, digits"),
        ("tune", {"storage": "s3://user:geheim@bucket/runs"}, "storage: s3://...@bucket/runs: the URI has credentials"),
        ("sample", {"count": 0}, "count: expected at least 1, not 0"),
        ("sample", {"guidance_scale": float("inf")}, "guidance_scale: inf: expected a number from 0 to"),
        ("sample", {"out": "grid.jpg"}, "--out grid.jpg: expected a file that ends in .png"),
        ("evaluate", {"samples": 1}, "samples: expected at least 2, not 1"),
        ("evaluate", {"checkpoint": "a.pt", "npz": "b.npz"}, "--checkpoint and --npz: give one of them"),
        ("pretrain", {"ema_decay": 1.0}, "ema_decay: expected at most 0.9999, not 1"),
        ("pretrain", {"family": "gan"}, "--family gan: one of llamagen, var, rar"),
        ("prepare", {}, "give either IMAGES or --npy FOLDER"),
        ("prepare", {"images": Path("photos"), "augment": "flip"}, "augment: input should be a valid list"),
        ("train", {"space": Path("nowhere/mine.yaml")}, "nowhere/mine.yaml: no such search-space file"),
    ],
)
def test_a_mistake_is_an_exception_of_one_line(
    verb: str, given: dict[str, object], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cca_ray.ConfigError) as error:
        getattr(cca_ray, verb)(**given)
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert "geheim" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_an_argument_that_there_is_not_is_pythons_own_error():
    with pytest.raises(TypeError, match="trails"):
        cca_ray.tune(trails=3)


def test_settings_are_those_of_the_command_line(tmp_path: Path, base_files: BaseFiles):
    space = write_space(tmp_path, base_files)
    with pytest.raises(cca_ray.ConfigError, match=r"score\.top_k"):
        cca_ray.sample(space, settings={"score.top_k": np.float64(0.5)})
    for settings in ({"score.top_k": np.int64(3)}, ["score.top_k=3"]):
        greedy = cca_ray.sample(space, count=20, settings=settings, quiet=True)
        assert (greedy.images != cca_ray.sample(space, count=20, quiet=True).images).any()


def test_samples_are_returned_and_shown(tmp_path: Path, base_files: BaseFiles, capsys: pytest.CaptureFixture[str]):
    space, npz = write_space(tmp_path, base_files), tmp_path / "all.npz"
    made = cca_ray.sample(space, count=420, quiet=True)
    assert made.images.shape == (420, 8, 8, 3)
    assert made.labels.tolist() == [i % 10 for i in range(420)]
    assert made._repr_png_().startswith(b"\x89PNG")
    written = cca_ray.sample(space, count=420, npz=npz, quiet=True)
    assert (len(written.images), len(written.labels)) == (400, 400)
    assert (np.load(npz)["arr_0"][:400] == written.images).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.npz", "tiny.yaml"]
    assert capsys.readouterr() == ("", "")


def test_a_fine_tuning_returns_its_weights_and_its_scores_which_evaluate_finds_again(
    tmp_path: Path, base_files: BaseFiles
):
    space = write_space(tmp_path, base_files)
    tuned = cca_ray.train(space, lambda_=3, lr=2e-3, out=tmp_path / "out", quiet=True)
    assert tuned.weights == tmp_path / "out" / "model.pt"
    assert [(score.step, score.samples) for score in tuned.scores] == [(5, 60), (10, 80)]
    found = cca_ray.evaluate(space, tuned.weights, samples=80, quiet=True)
    assert found.values["fid"] == pytest.approx(tuned.scores[-1].values["fid"])


def test_the_environment_names_the_storage_as_for_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CCA_RAY_STORAGE", str(tmp_path / "file"))
    with pytest.raises(cca_ray.ConfigError, match=r"file: cannot be written: it is a file$"):
        cca_ray.tune("digits_s", quiet=True)
    monkeypatch.setenv("CCA_RAY_STORAGE", "s3://user:geheim@bucket/runs")
    with pytest.raises(cca_ray.ConfigError, match=r"storage: .* the URI has credentials"):
        cca_ray.tune("digits_s", quiet=True)


@pytest.mark.parametrize(("no_report", "left"), [("", ""), ("no space left", ""), ("", "3 entries wait for MLflow")])
def test_a_search_returns_its_study_or_says_what_is_missing(
    no_report: str, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    heard = list[object]()

    def search(folder: Path, *more: object) -> Found:
        heard.append(more[-1])
        make_study(folder)
        return Found(folder, [summary_of()], None if no_report else folder, "mlflow ui", no_report, left)

    monkeypatch.setattr(import_module("cca_ray.tune"), "search", search)
    monkeypatch.chdir(tmp_path)
    if no_report or left:
        with pytest.raises(cca_ray.Incomplete, match=rf"runs/digits_s-seed3: {no_report or left}$"):
            cca_ray.tune("digits_s", seed=3, quiet=True)
        study = cca_ray.open("runs/digits_s-seed3")
    else:
        study = cca_ray.tune("digits_s", seed=3, quiet=True)
    assert study.best["digits_s"].final
    assert heard == [interrupt]  # a second Ctrl-C does not end the process
    assert capsys.readouterr() == ("", "")


def readme() -> str:
    """Its program, on the tests' tiny base."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    small = program.replace('tune("digits_s", trials=8', 'tune("./digits_s.yaml", trials=2')
    assert small != program
    return small


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_readmes_program_is_interrupted_and_continued_in_a_thread(
    tmp_path: Path, base_files: BaseFiles, no_ray_here: None, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    space, folder = write_space(tmp_path, base_files, "digits_s"), tmp_path / "runs" / "digits_s"
    before, names = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)], dict[str, Any]()
    monkeypatch.chdir(tmp_path)

    def press() -> None:
        """Ctrl-C, once the first trial is at work."""
        while not list(folder.glob("trials/*/*")):
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        exec(readme(), names)
    stopped = cca_ray.open(folder)
    assert stopped.state == "stopped"
    with ThreadPoolExecutor(1) as pool:
        pool.submit(exec, readme(), names).result()
    assert stopped.state == names["study"].state == "finished"
    said = capsys.readouterr().out
    assert re.search(r"found \d of 3 trials ended.*, [12] interrupted and resumed", said)
    assert re.search(r"digits_s: (✓ better|≈ equal|✗ WORSE)", said)
    assert stopped.trials["state"].tolist() == ["COMPLETE"] * 3
    assert stopped.best["digits_s"].final
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before
    assert not ray.is_initialized()
    labels = [i % 10 for i in range(4)]  # of the README, and of a balanced sample
    by_hand = cca_ray.sample(space, folder / "digits_s" / "winner.pt", count=len(labels), quiet=True)
    assert (names["images"] == by_hand.images).all()
