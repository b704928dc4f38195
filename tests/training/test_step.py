"""What is around the recipe of a step: epochs, shares of workers, dropout, references, EMA and log."""

import math
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cca_ray.config import StudyConfig
from cca_ray.data.pairs import Batch, plan_epoch
from cca_ray.models.dropout import Dropout, dropout_keys
from cca_ray.models.parallel import Group
from cca_ray.training import step as training_step
from cca_ray.training.job import Job
from cca_ray.training.reference_logps import ReferenceTable
from cca_ray.training.setup import Loop, prepare
from cca_ray.training.step import Diverged, Log, batch_loss, reference_logps, train_step
from tests.conftest import MakeStudy
from tests.training.recipe import BETA1, RECIPE, prepared

CPU = torch.device("cpu")


def test_a_log_has_a_row_for_every_step_and_images_a_second():
    log = Log(Group(device=CPU))
    assert log.flush(24) == ((), 0.0)
    log.add(4, torch.tensor([1.0, 2.0]))
    log.add(5, torch.tensor([3.0, 4.0]))
    log.since = time.monotonic() - 100
    rows, rate = log.flush(24)
    assert rows == ((4, 1.0, 2.0), (5, 3.0, 4.0))
    assert rate == pytest.approx(2 * 24 / 100, rel=0.05)
    assert log.since > time.monotonic() - 50
    assert log.flush(24) == ((), 0.0)


def test_of_steps_that_took_no_time_the_rate_is_a_number():
    log = Log(Group(device=CPU))
    log.add(1, torch.ones(1))
    log.since = time.monotonic() + 100
    assert log.flush(24)[1] == pytest.approx(24e9)


@pytest.mark.parametrize(("value", "said"), [(math.nan, "1"), (math.inf, "1"), (-math.inf, "1")])
@pytest.mark.parametrize("column", [0, 1])
def test_whatever_is_logged_must_be_finite(value: float, said: str, column: int):
    log, row = Log(Group(device=CPU)), torch.ones(2)
    row[column] = value
    log.add(6, torch.ones(2))
    log.add(7, row)
    with pytest.raises(Diverged, match=f"the loss is {value if column == 0 else said} at step 7$"):
        log.flush(24)


class Seen(nn.Module):
    """A scorer that remembers what it was asked and what it said: some number for each condition and image."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(-0.1))
        self.labels: list[Tensor] = []
        self.tokens: list[Tensor] = []
        self.dropout: list[Dropout | None] = []
        self.answers: list[Tensor] = []

    def forward(
        self, labels: Tensor, tokens: Tensor, dropout: Dropout | None = None, places: Tensor | None = None
    ) -> Tensor:
        answer = self.scale * (labels + 0.01 * tokens.sum(1))
        self.labels.append(labels)
        self.tokens.append(tokens)
        self.dropout.append(dropout)
        self.answers.append(answer)
        return answer


@pytest.fixture
def loop(make_study: MakeStudy, tmp_path: Path) -> Loop:
    return prepared(make_study(train={**RECIPE, "epochs": 3}), tmp_path, micro_batch=8)


def a_batch(first: int = 0) -> Batch:
    """Four images of 16 tokens, the last one null-masked."""
    tokens = torch.arange(64).reshape(4, 16) % 32
    labels, negative, null = torch.tensor([1, 2, 3, 10]), torch.tensor([2, 3, 4, 10]), torch.tensor([0, 0, 0, 1]).bool()
    return Batch(torch.arange(first, first + 4), tokens, labels, negative, null)


@pytest.mark.parametrize("step", [0, 3, 9, 10, 19, 20])
def test_a_step_takes_the_pairs_of_its_own_epoch(loop: Loop, step: int):
    """Also the first one after a resume, in the middle of an epoch: 240 images are ten steps."""
    if step in (10, 20):
        train_step(loop, step - 1)
    seen = Seen()
    loop.scorer = seen
    train_step(loop, step)
    data, train = loop.data, loop.job.train
    plan = plan_epoch(data.labels, data.meta.crops, loop.model.null_label, train.null_ratio, train.seed, step // 10)
    images = plan.order[step % 10 * 24 :][:24]
    expected = data.tokens[images, plan.crops[images]].astype(np.int64)
    assert [tokens.shape for tokens in seen.tokens] == [(16, 16)] * 3  # micro-batches of 8, under two conditions each
    for half in (0, 1):
        np.testing.assert_array_equal(torch.cat([tokens.chunk(2)[half] for tokens in seen.tokens]), expected)
        conditions = (plan.labels, plan.negative_labels)[half][images]
        np.testing.assert_array_equal(torch.cat([labels.chunk(2)[half] for labels in seen.labels]), conditions)


def test_the_shares_of_two_workers_are_the_whole(make_study: MakeStudy, tmp_path: Path):
    """What they log adds up; the mean of their gradients, which DDP takes, is the gradient of one worker."""
    config = make_study(train={**RECIPE, "clip": 0.0})
    alone, *pair = (prepared(config, tmp_path, micro_batch=8) for _ in range(3))
    whole = train_step(alone, 0)
    for rank, loop in enumerate(pair):
        loop.group = Group(rank, 2, CPU)
    torch.testing.assert_close(sum(train_step(loop, 0) for loop in pair), whole)
    for name, parameter in alone.model.named_parameters():
        gradient = alone.optimizer.state[parameter]["exp_avg"] / (1 - BETA1)
        shares = [loop.optimizer.state[loop.model.get_parameter(name)]["exp_avg"] / (1 - BETA1) for loop in pair]
        torch.testing.assert_close(sum(shares) / 2, gradient, rtol=1e-3, atol=1e-6, msg=name)


def test_only_the_last_micro_batch_exchanges_gradients(loop: Loop, monkeypatch: pytest.MonkeyPatch):
    """Of several workers, which there are not here; of three micro-batches the first two wait."""
    waits: list[bool] = []

    def gradients_wait(scorer: nn.Module, wanted: bool) -> AbstractContextManager[None]:
        waits.append(wanted)
        return nullcontext()

    monkeypatch.setattr(training_step, "gradients_wait", gradients_wait)
    train_step(loop, 0)
    assert waits == [True, True, False]


def with_seen(config: StudyConfig, folder: Path, **train: Any) -> tuple[Loop, Seen]:
    """A loop whose model only listens."""
    loop = prepare(Job(config, config.train_with({**train, "reference": "live"}), folder), Group(device=CPU))
    seen = Seen()
    loop.scorer, loop.frozen = seen, Seen() if loop.objective.reference else None
    return loop, seen


@pytest.mark.parametrize(("objective", "halves"), [("cca", 2), ("finetune", 1)])
def test_dropout_is_by_image_seed_epoch_and_condition(
    make_study: MakeStudy, tmp_path: Path, objective: str, halves: int
):
    loop, seen = with_seen(make_study(), tmp_path, objective=objective, dropout=0.25, seed=7)
    batch = a_batch(first=30)
    batch_loss(loop, batch, 5)
    (dropout,) = seen.dropout
    assert dropout is not None
    assert dropout.rate == 0.25
    assert torch.equal(
        dropout.keys, torch.cat([dropout_keys(batch.index.numpy(), 7, 5, half) for half in range(halves)])
    )
    if loop.frozen is not None:
        assert loop.frozen.dropout == [None]  # the reference is scored as it is


@pytest.mark.parametrize("objective", ["cca", "finetune"])
def test_a_rate_of_0_is_no_dropout(make_study: MakeStudy, tmp_path: Path, objective: str):
    loop, seen = with_seen(make_study(), tmp_path, objective=objective)
    batch_loss(loop, a_batch(), 0)
    assert seen.dropout == [None]


def test_an_objective_without_pairs_takes_one_condition_and_no_reference(make_study: MakeStudy, tmp_path: Path):
    loop, seen = with_seen(make_study(), tmp_path, objective="finetune")
    batch = a_batch()
    losses, logged = batch_loss(loop, batch, 0)
    assert torch.equal(seen.labels[0], batch.labels)
    torch.testing.assert_close(losses, -seen.answers[0] / 16)  # a token of 16
    torch.testing.assert_close(logged, losses.sum().detach()[None])
    assert not logged.requires_grad


def test_a_table_gives_the_references_part(make_study: MakeStudy, tmp_path: Path):
    """Of the batch's epoch and images; both conditions, and the same reward as by hand."""
    loop, seen = with_seen(make_study(), tmp_path, beta=0.5)
    loop.table = ReferenceTable(torch.arange(90.0).reshape(3, 30), -torch.arange(90.0).reshape(3, 30))
    positive, negative = reference_logps(loop, a_batch(first=20), 2)
    assert positive is not None
    assert negative is not None
    assert (positive.tolist(), negative.tolist()) == ([80.0, 81.0, 82.0, 83.0], [-80.0, -81.0, -82.0, -83.0])
    _, logged = batch_loss(loop, a_batch(first=20), 2)
    gap, negative_gap = (seen.answers[0].detach() - torch.cat([positive, negative])).chunk(2)
    torch.testing.assert_close(
        logged[1:], torch.stack([(gap > negative_gap).float().sum(), (gap - negative_gap).sum()])
    )
