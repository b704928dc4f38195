"""The training recipe, step by step, beside the same arithmetic written out by hand."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cca_ray.config import StudyConfig
from cca_ray.data.pairs import Batch, plan_epoch
from cca_ray.evaluation.scoring import load_base, load_tokens
from cca_ray.models.base import Model
from cca_ray.training.step import batch_loss, train_step
from tests.conftest import MakeStudy, golden
from tests.training.recipe import (
    BATCH,
    BETA,
    BETA1,
    BETA2,
    CLIP,
    DECAY,
    EMA,
    EPSILON,
    LAMBDA,
    NULL_RATIO,
    RATE,
    RECIPE,
    WARMUP,
    prepared,
)

MICRO, STEPS = 8, 3


def logps(model: Model, labels: Tensor, tokens: Tensor) -> Tensor:
    return model(labels, tokens).log_softmax(-1).gather(-1, tokens[..., None]).squeeze(-1).sum(1)


@dataclass
class ByHand:
    """The same run in plain arithmetic: every worker, micro-batch and library's optimizer left out."""

    model: Model
    base: Model
    first: dict[str, Tensor]  # Adam's moments, in float64 as all that follows a gradient
    second: dict[str, Tensor]
    ema: dict[str, Tensor]

    @staticmethod
    def of(config: StudyConfig) -> "ByHand":
        model = load_base(config)
        start = {name: p.detach().double() for name, p in model.named_parameters()}
        zeros = {name: torch.zeros_like(p) for name, p in start.items()}
        return ByHand(model, load_base(config).requires_grad_(False), dict(zeros), dict(zeros), dict(start))

    def loss(self, pairs: "Pairs") -> Tensor:
        tokens, labels, negative = pairs.tokens, pairs.labels, pairs.negative
        gap = logps(self.model, labels, tokens) - logps(self.base, labels, tokens)
        other = logps(self.model, negative, tokens) - logps(self.base, negative, tokens)
        pushed = -LAMBDA * logsigmoid(-BETA * other)
        pulled = -logsigmoid(BETA * other)
        second = torch.where(pairs.null | (labels == negative), pulled, pushed)
        return (-logsigmoid(BETA * gap) + second).mean() / LAMBDA

    def step(self, t: int, loss: Tensor) -> float:
        """Clip, AdamW and EMA of step t = 0, 1, ...; the gradient's norm."""
        names, parameters = zip(*self.model.named_parameters(), strict=True)
        found = [gradient.double() for gradient in torch.autograd.grad(loss, parameters)]
        norm = float(sum(gradient.square().sum() for gradient in found)) ** 0.5
        rate = RATE * min(1.0, (t + 1) / WARMUP)
        mean = min(EMA, (1 + t) / (10 + t))
        with torch.no_grad():
            for name, parameter, gradient in zip(names, parameters, found, strict=True):
                clipped = gradient * min(1.0, CLIP / norm)
                self.first[name] = BETA1 * self.first[name] + (1 - BETA1) * clipped
                self.second[name] = BETA2 * self.second[name] + (1 - BETA2) * clipped**2
                unbiased = self.second[name] / (1 - BETA2 ** (t + 1))
                move = self.first[name] / (1 - BETA1 ** (t + 1)) / (unbiased.sqrt() + EPSILON)
                now = parameter.double() * (1 - rate * DECAY) - rate * move  # decay of all, biases and gains too
                self.ema[name] = mean * self.ema[name] + (1 - mean) * now
                parameter.copy_(now)
        return norm


@dataclass(frozen=True)
class Pairs:
    """The pairs of a step of the first epoch."""

    tokens: Tensor
    labels: Tensor
    negative: Tensor
    null: Tensor

    @staticmethod
    def of(config: StudyConfig, null_label: int, t: int) -> "Pairs":
        data = load_tokens(config.data.tokens)
        plan = plan_epoch(data.labels, data.meta.crops, null_label, NULL_RATIO, config.train.seed, 0)
        images = plan.order[t * BATCH : (t + 1) * BATCH]
        tokens = data.tokens[images, plan.crops[images]].astype(np.int64)
        kinds = (tokens, plan.labels[images], plan.negative_labels[images], plan.null[images])
        return Pairs(*(torch.from_numpy(kind) for kind in kinds))


@pytest.mark.parametrize("family", ["llamagen", "var", "rar"])
def test_three_steps_are_those_written_out_by_hand(make_study: MakeStudy, tmp_path: Path, family: str):
    config = make_study(family=family, train=RECIPE)
    loop, hand, norms = prepared(config, tmp_path, micro_batch=MICRO), ByHand.of(config), []
    for t in range(STEPS):
        expected = hand.loss(Pairs.of(config, loop.model.null_label, t))
        norms.append(hand.step(t, expected))
        assert train_step(loop, t)[0].item() == pytest.approx(expected.item(), rel=1e-4)
        assert loop.ema is not None
        for name, parameter in loop.model.named_parameters():
            # In the mean: where a gradient is nothing but rounding, Adam takes its sign for a direction.
            by_hand = hand.model.get_parameter(name)
            assert (parameter - by_hand).abs().mean() < 1e-3 * RATE, name
            assert (loop.ema[name] - hand.ema[name]).abs().mean() < 1e-3 * RATE, name
    assert min(norms) > 2 * CLIP  # else the clip would hide


def test_the_gradient_is_that_of_the_mean_over_the_global_batch(make_study: MakeStudy, tmp_path: Path):
    """Without a clip, warm-up and EMA: Adam forgets how long a gradient is, but its first moment shows it."""
    config = make_study(train={**RECIPE, "clip": 0.0, "ema_decay": 0.0, "warmup_steps": 0})
    loop, hand = prepared(config, tmp_path, micro_batch=MICRO), ByHand.of(config)
    names, parameters = zip(*hand.model.named_parameters(), strict=True)
    gradients = torch.autograd.grad(hand.loss(Pairs.of(config, loop.model.null_label, 0)), parameters)
    train_step(loop, 0)
    assert loop.ema is None
    assert loop.optimizer.param_groups[0]["lr"] == RATE  # all of it from the first step on
    for name, gradient in zip(names, gradients, strict=True):
        moment = loop.optimizer.state[loop.model.get_parameter(name)]["exp_avg"]
        torch.testing.assert_close(moment, (1 - BETA1) * gradient, rtol=1e-3, atol=1e-6, msg=name)


class Recorded(nn.Module):
    """A scorer whose log-likelihoods are the official loop's: those of the true conditions, then of the negative."""

    def __init__(self, content: dict[str, np.ndarray], whose: str):
        super().__init__()
        self.values = nn.Parameter(torch.from_numpy(np.concatenate([content[f"{whose}_pos"], content[f"{whose}_neg"]])))

    def forward(self, labels: Tensor, tokens: Tensor, dropout: None = None, places: None = None) -> Tensor:
        assert labels.shape == self.values.shape
        return self.values


@pytest.mark.parametrize(("beta", "lambda_"), [(0.02, 0.5), (0.02, 50.0), (0.5, 1.0), (0.5, 1000.0)])
def test_a_batch_has_the_official_loss_and_gradients(
    make_study: MakeStudy, tmp_path: Path, beta: float, lambda_: float
):
    content = golden("objectives.npz")
    loop = prepared(make_study(train={**RECIPE, "beta": beta, "lambda": lambda_}), tmp_path)
    scorer, loop.frozen = Recorded(content, "policy"), Recorded(content, "ref").requires_grad_(False)
    loop.scorer = scorer
    labels, negative, null = (torch.from_numpy(content[k]) for k in ("labels", "negative_labels", "uncond_mask"))
    losses, logged = batch_loss(loop, Batch(torch.arange(12), torch.zeros(12, 16).long(), labels, negative, null), 0)
    losses.mean().backward()
    key = f"cca_b{beta}_l{lambda_}"
    np.testing.assert_allclose(losses.mean().item(), content[key], rtol=1e-5)
    np.testing.assert_allclose(logged[0] / 12, content[key], rtol=1e-5)
    expected = np.concatenate([content[f"{key}_gpos"], content[f"{key}_gneg"]])
    np.testing.assert_allclose(scorer.values.grad, expected, rtol=1e-4, atol=1e-8)
