"""What several tests share: one tiny real base, made once; studies on it; one local Ray."""

import json
import logging
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from fcntl import LOCK_EX, flock
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cca_ray.cluster.session import start_ray
from cca_ray.config import Pretrain, StudyConfig
from cca_ray.data.labelled_images import LabelledImages, digits
from cca_ray.models.official import build_tokenizer, save_official
from cca_ray.space_file import parse
from cca_ray.training.small_base import BaseFiles, build_base, with_files
from tests import processes
from tests.golden.weights import checkpoint

# Of the property-based tests (tests/README.md): every run tries the same few examples; `--hypothesis-profile=nightly`
# others each time, and many.
settings.register_profile("few", max_examples=30, derandomize=True, database=None, deadline=None)
settings.register_profile("nightly", max_examples=10_000, database=None, deadline=None)
settings.load_profile("few")

# What helpers find wrong is shown as in a test's own file: with what was compared.
pytest.register_assert_rewrite(
    "tests.commands", "tests.official_studies", "tests.real_studies", "tests.tracking.servers"
)

os.environ["CCA_RAY_PRETENDED_GPUS"] = "1"  # the suite computes on the CPU, on a machine with cards too

GOLDEN = Path(__file__).parent / "golden"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With CCA_RAY_NO_SKIPS=1 a test that is skipped has failed, unless a GPU is all that it wants."""
    report = yield
    if os.environ.get("CCA_RAY_NO_SKIPS") == "1" and report.skipped and not hasattr(report, "wasxfail"):
        reason = report.longrepr[-1] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        if "GPU" not in reason:
            report.outcome, report.longrepr = "failed", f"{reason}: and CCA_RAY_NO_SKIPS=1 asks for every test"
    return report


# Two test processes share two cores, with all that they start: more threads would only wait, spinning, for one another.
os.environ["OMP_NUM_THREADS"] = "1"


def pytest_itemcollected(item: pytest.Item) -> None:
    """Whatever test computes on a card waits until no other does, be it in tests/gpu or a promise of all families."""
    if isinstance(item, pytest.Function) and item.get_closest_marker("gpu"):
        item.fixturenames = ["card_alone", *item.fixturenames]  # its own: the other forms of a test share a list


@pytest.fixture
def card_alone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A card for one test at a time, of all processes of this run: memory and speed are measured there."""
    run = tmp_path_factory.getbasetemp()
    shared = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    with (shared / "card").open("w") as lock:
        flock(lock, LOCK_EX)
        yield


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_silence_left() -> Iterator[None]:
    """Were the log turned off by one test, later ones would miss what it says, in some orders."""
    yield
    assert logging.root.manager.disable == 0


@pytest.fixture(autouse=True)
def no_process_left() -> Iterator[None]:
    yield
    processes.end_all()


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / name) as content:
        return dict(content)


def golden_state(content: dict[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """The official weights behind a golden file's numbers."""
    return checkpoint(json.loads(str(content["manifest"])), float(content["std"]))


def largest_tensor(run: Callable[[], object]) -> int:
    """How many numbers the largest tensor has that `run` makes, on the way too."""
    largest = 0

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            largest = max([largest, *(t.numel() for t in tree_leaves(out) if isinstance(t, torch.Tensor))])
            return out

    with Watch():
        run()
    return largest


def some_digits(count: int = 240) -> LabelledImages:
    data = digits()
    return LabelledImages(data.images[:count], data.labels[:count], data.class_names)


TINY = Pretrain(codebook_size=32, tokenizer_width=8, tokenizer_epochs=30, feature_epochs=4, epochs=2, batch=48)


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the three bases below are made: anew in each run, once for all its processes.

    benchmarks/mutants.py, which runs much, keeps them.
    """
    run = tmp_path_factory.getbasetemp()
    shared = run.parent if "PYTEST_XDIST_WORKER" in os.environ else run
    folder = Path(os.environ.get("CCA_RAY_TEST_BASES") or shared / "bases")
    folder.mkdir(exist_ok=True)
    return folder


def make_base(family: str, size: str, settings: Pretrain, folder: Path) -> BaseFiles:
    """By one process at a time; the next finds it there."""
    with (folder / "lock").open("w") as lock:
        flock(lock, LOCK_EX)
        return build_base(some_digits(), "digits", family, size, settings, folder, lambda what, done, total: None)


@pytest.fixture(scope="session")
def base_files(bases: Path) -> BaseFiles:
    """A real base, barely trained, on 240 digits."""
    return make_base("llamagen", "S", TINY, bases)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights: codes that differ are all that is needed. 2 pixels a token, 64 codes."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("tokenizer") / "vq.pt"
    small = dict(codebook_size=64, ch=8, ch_mult=(1, 2), num_res_blocks=1, z_channels=16, norm_groups=8)
    save_official(build_tokenizer("llamagen", **small), path)
    return path


@pytest.fixture(scope="session")
def var_files(bases: Path) -> BaseFiles:
    """The same in the second family."""
    return make_base("var", "M", TINY.model_copy(update={"tokenizer_epochs": 10}), bases)


@pytest.fixture(scope="session")
def rar_files(bases: Path) -> BaseFiles:
    """The same in the third family."""
    return make_base("rar", "S", TINY.model_copy(update={"tokenizer_epochs": 10}), bases)


def tiny_space() -> dict[str, Any]:
    """The content of a small search space: 240 images, 10 steps, scored at half and at the end."""
    return {
        "base": {"family": "llamagen", "size": "S", "embedded": "digits"},
        "train": {"beta": 0.1, "global_batch": 24, "ema_decay": 0.5, "learning_rate": 1e-3},
        "search": {
            "space": {"lambda": {"low": 0.5, "high": 10}, "learning_rate": {"low": 1e-4, "high": 1e-2}},
            "trials": 3,
        },
        "control": {"learning_rates": [1e-3]},
        "rungs": [{"at": 0.5, "samples": 60}, {"at": 1.0, "samples": 80}],
        "score": {"samples": 80, "guidance_scales": [1.5], "finalists": 2},
    }


MakeStudy = Callable[..., StudyConfig]
TINY_BASES = {"llamagen": ("S", "base_files"), "var": ("M", "var_files"), "rar": ("S", "rar_files")}


@pytest.fixture
def make_study(request: pytest.FixtureRequest) -> MakeStudy:
    """A tiny study on the shared base of a family; keyword arguments are merged into its sections."""

    def make(name: str = "tiny", family: str = "llamagen", **sections: Any) -> StudyConfig:
        content, (size, fixture) = tiny_space(), TINY_BASES[family]
        content["base"] |= {"family": family, "size": size}
        files = request.getfixturevalue(fixture)
        for key, value in sections.items():
            content[key] = {**content[key], **value} if isinstance(value, dict) and key in content else value
        return with_files(parse(content, name, f"{name}.yaml"), files)

    return make


@contextmanager
def apart() -> Iterator[None]:
    """A cluster that begins here writes itself down in a folder of its own: `ray.init()` joins that of the usual one.

    Short, for the names of sockets are.
    """
    with pytest.MonkeyPatch.context() as patch, TemporaryDirectory(prefix="ray-", dir="/tmp") as folder:
        patch.setenv("RAY_TMPDIR", folder)
        yield


@pytest.fixture(scope="session")
def ray_here() -> Iterator[None]:
    """A local Ray for the tests that need one."""
    import ray

    start_ray()
    yield
    ray.shutdown()


@pytest.fixture
def no_ray_here() -> Iterator[None]:
    """For a verb that starts Ray in this process: `ray_here` makes room, and is there again afterwards."""
    import ray

    was_here = ray.is_initialized()
    ray.shutdown()
    yield
    ray.shutdown()
    if was_here:
        start_ray()
