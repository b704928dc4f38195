"""A small base: the same for the same settings, whatever interrupts the making of it, and under which names it lies."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from cca_ray.config import Pretrain
from cca_ray.data.tokens import TokenSet, read_token_set
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.family import family_of
from cca_ray.models.official import load_tokenizer
from cca_ray.training.fitting import Hooks
from cca_ray.training.small_base import BaseFiles, build_base, files_of
from cca_ray.training.small_networks import Making, blank_model, split, train_model
from tests.conftest import TINY, some_digits
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


def test_an_embedded_base_is_trained_as_it_always_was(base_files: BaseFiles):
    """The loop written down anew: nothing held out, nothing averaged, the same draws in the same order."""
    settings = TINY.model_copy(update={"epochs": 3, "dropout": 0.2})
    data, tokenizer = read_token_set(base_files.tokens), load_tokenizer("llamagen", base_files.tokenizer)
    model = blank_model(family_of("llamagen"), "S", tokenizer, 10, 16)
    model.initialize(torch.Generator().manual_seed(0))
    codes, labels = torch.from_numpy(data.tokens[:, 0].astype(np.int64)), torch.from_numpy(data.labels)
    order, null = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
    batches = [index for _ in range(3) for index in torch.randperm(240, generator=order).split(48)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.05)
    for step, index in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = 2e-3 * min(1.0, (step + 1) / 20) * (1 - step / 15)
        conditions = torch.where(torch.rand(48, generator=null) < 0.1, 10, labels[index])
        logits = model(conditions, codes[index], Dropout(0.2, dropout_keys(index.numpy(), 0, step)))
        optimizer.zero_grad()
        F.cross_entropy(logits.flatten(0, 1), codes[index].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    making = Making(Hooks(lambda done, total: None))
    made = train_model(data, tokenizer, family_of("llamagen"), "S", settings, making)
    assert all(torch.equal(a, b) for a, b in zip(made.parameters(), model.parameters(), strict=True))


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


def test_what_is_held_out_is_decided_by_the_seed_and_its_variants_are_too():
    settings = TINY.model_copy(update={"variants": 3, "validation": 0.1})
    used, left_out = split(60, settings)
    assert len(left_out) == 2
    assert set(left_out) < set(range(20))
    assert sorted(used) == sorted(set(range(60)) - {i + n for i in left_out for n in (0, 20, 40)})
    assert [*left_out] == [*split(60, settings)[1]]
    assert any([*left_out] != [*split(60, settings.model_copy(update={"seed": seed}))[1]] for seed in (1, 2, 3))
    assert len(split(60, TINY)[0]) == 60
    assert len(split(3, TINY.model_copy(update={"validation": 0.9}))[0]) == 1


def test_no_gradient_comes_from_what_is_held_out(base_files: BaseFiles):
    settings = TINY.model_copy(update={"epochs": 1, "validation": 0.25})
    tokens, tokenizer = read_token_set(base_files.tokens), load_tokenizer("llamagen", base_files.tokenizer)

    def trained(data: TokenSet) -> tuple[list[torch.Tensor], list[str]]:
        notes: list[str] = []
        making = Making(Hooks(lambda done, total: None, notes.append))
        model = train_model(data, tokenizer, family_of("llamagen"), "S", settings, making)
        return [p.detach() for p in model.parameters()], notes

    def changed(index: np.ndarray) -> TokenSet:
        other = tokens.tokens.copy()
        other[index] = 31 - other[index]
        return TokenSet(tokens.labels, other, tokens.meta, "")

    used, left_out = split(len(tokens.labels), settings)
    (plain, said), (same, said_of_others), (other, _) = map(trained, (tokens, changed(left_out), changed(used[:9])))
    assert all(torch.equal(a, b) for a, b in zip(plain, same, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(plain, other, strict=True))
    assert len(said) == 1
    assert said != said_of_others


def test_a_validated_base_tells_held_out_digits_and_ends_before_it_knows_its_own_by_heart(base_files: BaseFiles):
    """A held-out token costs it less than the codes' own frequencies would."""
    settings = TINY.model_copy(update={"epochs": 500, "validation": 0.1, "learning_rate": 2e-2})
    data, tokenizer = read_token_set(base_files.tokens), load_tokenizer("llamagen", base_files.tokenizer)
    notes: list[str] = []
    steps: list[int] = []
    making = Making(Hooks(lambda done, total: steps.append(done), notes.append))
    train_model(data, tokenizer, family_of("llamagen"), "M", settings, making)
    frequencies = np.bincount(data.tokens.ravel(), minlength=32) / data.tokens.size
    entropy = -sum(f * np.log(f) for f in frequencies if f)
    assert min(float(note.split()[2].rstrip(",")) for note in notes) < entropy - 0.1
    assert notes[-1].endswith("ends early")
    assert steps[-1] < 500 * 4
