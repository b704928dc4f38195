"""A small base: the same for the same settings, whatever interrupts the making of it, and under which names it lies."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cca_ray.config import Pretrain, StudyConfig
from cca_ray.data.labelled_images import digits
from cca_ray.data.tokens import to_input
from cca_ray.evaluation.features import extract, load_extractor
from cca_ray.models.official import load_tokenizer
from cca_ray.training.small_base import NETWORKS, BaseFiles, build_base, files_of
from tests.conftest import TINY, some_digits
from tests.networks import embedded, places
from tests.processes import begin

SETTINGS = TINY.model_copy(
    update=dict(tokenizer_epochs=4, feature_epochs=4, epochs=30, batch=16, dropout=0.1, validation=0.2, variants=2)
)


def build(root: Path, say: bool = False) -> tuple[BaseFiles, dict[str, int]]:
    """A base of 64 digits, and at which step the training of each network began or went on."""
    first: dict[str, int] = {}

    def progress(what: str, done: int, total: int) -> None:
        first.setdefault(what, done)
        if say:
            print(what, done, flush=True)

    data = some_digits(64)
    return build_base(data, "digits", "llamagen", "S", SETTINGS, root, progress, keep_every_s=0), first


PROGRAM = (
    "import sys, torch; from pathlib import Path; from tests.training.test_small_base import build; "
    "torch.set_num_threads(1); build(Path(sys.argv[1]), say=True)"
)


def kill_at(line: str, root: Path) -> None:
    process = begin([sys.executable, "-c", PROGRAM, str(root)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert any(said.strip() == line for said in process.stdout)
    process.kill()
    assert process.wait(20) == -signal.SIGKILL


def weights(file: Path) -> list[torch.Tensor]:
    return list(torch.load(file)["model"].values())


@pytest.mark.timeout(180)
def test_a_base_whose_making_was_killed_three_times_is_the_same(tmp_path: Path):
    whole, _ = build(tmp_path / "whole")
    root = tmp_path / "killed"
    for line in ("tokenizer 5", "feature network 6", "llamagen S 90"):
        kill_at(line, root)
        assert len(list(root.rglob("*.training"))) == 1
    files, first = build(root)
    assert set(first) == {"llamagen S"}
    assert first["llamagen S"] >= 90
    for name in ("tokenizer", "features", "checkpoint"):
        pairs = zip(weights(getattr(files, name)), weights(getattr(whole, name)), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs), name
    assert not list(root.rglob("*.training"))


def test_settings_that_are_off_leave_the_names_of_earlier_bases():
    def named(**settings: float) -> str:
        made = Pretrain.model_validate({**TINY.model_dump(), **settings})
        return files_of(some_digits(), "digits", "llamagen", "S", made, Path()).checkpoint.name

    assert named() == named(validation=0.0, ema_decay=0.0, variants=1)
    assert len({named(), named(validation=0.1), named(ema_decay=0.1), named(variants=2), named(epochs=3)}) == 5
    assert set(Pretrain().content) == {  # those of version 0.1.0
        "image_size", "downsample", "codebook_size", "code_dim", "tokenizer_width", "tokenizer_epochs",
        "feature_epochs", "epochs", "batch", "learning_rate", "null_ratio", "dropout", "seed",
    }  # fmt: skip


def test_bases_of_two_seeds_are_models_of_the_same_tokens_measured_alike(tmp_path: Path):
    settings = TINY.model_copy(update=dict(tokenizer_epochs=1, feature_epochs=1, epochs=1))
    made = dict[int, dict[str, str]]()
    for seed in (0, 1):
        root = tmp_path / str(seed)  # nothing is shared
        own = settings.model_copy(update={"seed": seed})
        files = build_base(some_digits(64), "digits", "llamagen", "S", own, root, lambda what, done, total: None)
        assert files == files_of(some_digits(64), "digits", "llamagen", "S", own, root)
        made[seed] = {
            str(path.relative_to(root)): str([[*map(float, w.flatten())] for w in weights(path)])
            for path in (files.tokenizer, files.features, files.checkpoint)
        }
    assert len(made[0].keys() & made[1].keys()) == 2
    assert all(made[0][name] == made[1][name] for name in made[0].keys() & made[1].keys())
    first, second = (files[name] for files in made.values() for name in files if "S-" in name)
    assert first != second


def test_the_networks_that_come_with_the_project_are_those_of_the_shipped_search_spaces():
    """If not: `python -m tests.networks`, and README's table anew."""
    wanted = {file for config in embedded() for file in (places(config).tokenizer, places(config).features)}
    assert wanted == set(NETWORKS.rglob("*.pt"))


@pytest.mark.parametrize("config", embedded(), ids=lambda config: config.name)
def test_a_network_that_comes_with_the_project_knows_digits(config: StudyConfig):
    data, files = digits(), places(config)
    classes = extract(load_extractor(files.features), torch.from_numpy(data.images)).probabilities
    assert classes is not None
    assert (classes.argmax(1).numpy() == data.labels).mean() > 0.97
    tokenizer, pixels = load_tokenizer(config.base.family, files.tokenizer), to_input(data.images)
    with torch.no_grad():
        error = (tokenizer.decode(tokenizer.encode(pixels)) - pixels).square().mean()
    assert error < 0.1 * pixels.var()


def test_a_base_of_digits_takes_the_networks_that_come_with_the_project(tmp_path: Path):
    (config,) = (config for config in embedded() if config.name == "digits_s")
    made = set[str]()
    quick = config.pretrain.model_copy(update={"epochs": 1})  # of the model, which does not come with it
    files = build_base(digits(), "digits", "llamagen", "tiny", quick, tmp_path, lambda what, *_: made.add(what))
    assert made == {"llamagen tiny"}
    shipped = places(config)
    assert files.tokenizer.read_bytes() == shipped.tokenizer.read_bytes()
    assert files.features.read_bytes() == shipped.features.read_bytes()
    assert files.reference.exists()
