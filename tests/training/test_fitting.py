"""The schedule of a small network's training, its best weights, and how it goes on after it was cut short."""

import math
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cca_ray.training.fitting import COOLING, Fit, HeldOut, Hooks, Keeping, Recipe, batches

X, Y = torch.randn(22, 3, generator=torch.Generator().manual_seed(1)), torch.arange(22.0)[:, None] / 10
RECIPE = Recipe(count=22, batch=5, epochs=15, learning_rate=0.05, seed=3)  # four steps an epoch


def network() -> nn.Linear:
    made = nn.Linear(3, 1)
    nn.init.ones_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def loss_on(net: nn.Module, index: Tensor) -> Tensor:
    return F.mse_loss(net(X[index]), Y[index])


class Watched:
    """A training, the rate of each of its steps, and what it said of its held-out loss: `script`, epoch by epoch."""

    def __init__(
        self, recipe: Recipe = RECIPE, script: list[float] | None = None, path: Path | None = None, stop: int = 0
    ):
        self.network, self.stop = network(), stop
        self.rates: list[float] = []
        self.totals: list[int] = []
        self.notes: list[str] = []
        self.seen: list[dict[str, Tensor]] = []  # weights whose held-out loss was asked for

        def held_out(net: nn.Module) -> float:
            self.seen.append({name: t.clone() for name, t in net.state_dict().items()})
            assert script is not None
            return script[self.fit.position.step // 4 - 1]

        self.fit = Fit(
            self.network,
            lambda index, step: loss_on(self.network, index),
            recipe,
            HeldOut(held_out, patience=3) if script else None,
            keeping=Keeping(path, every_s=0) if path else None,
        )

    def progress(self, step: int, total: int) -> None:
        self.rates.append(self.fit.optimizer.param_groups[0]["lr"])
        self.totals.append(total)
        if self.stop and step == self.stop:
            raise KeyboardInterrupt

    def run(self) -> "Watched":
        self.fit.run(Hooks(self.progress, self.notes.append))
        return self


def same(a: nn.Module, b: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, b[name]) for name, tensor in a.state_dict().items())


def plain(recipe: Recipe) -> nn.Module:
    """The same training written down anew, with nothing held out and nothing kept."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05)
    generator, step, total = torch.Generator().manual_seed(recipe.seed), 0, recipe.epochs * 4
    for _ in range(recipe.epochs):
        order = torch.randperm(recipe.count, generator=generator)
        for start in range(0, 20, 5):
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * min(1.0, (step + 1) / 20) * (1 - step / total)
            optimizer.zero_grad()
            loss_on(net, order[start : start + 5]).backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
    return net


def test_without_more_it_is_adamw_with_a_rate_that_goes_to_zero():
    done = Watched().run()
    assert same(done.network, plain(RECIPE).state_dict())
    assert done.totals == [60] * 60
    assert done.rates[-1] == pytest.approx(0.05 / 60)


def test_batches_begin_at_any_step():
    assert RECIPE.steps == 60
    whole = batches(22, 5, seed=3)
    first = [next(whole) for _ in range(30)]
    for start in (0, 3, 4, 17):
        later = batches(22, 5, 3, start)
        assert all(torch.equal(next(later), index) for index in first[start:])


def test_the_weights_with_the_lowest_held_out_loss_are_kept():
    done = Watched(script=[3, 2, 1, 2, 2, 0.5, *[2] * 2, *[3] * 7, *[4] * 5]).run()
    assert same(done.network, done.seen[5])
    assert done.notes[0] == "validation loss 3.000"
    assert done.notes[6] == "validation loss 2.000, lowest 0.500 after epoch 6"


def test_what_has_not_become_better_for_long_goes_back_to_its_best_and_is_annealed():
    """The lowest loss is that of epoch 5, step 20; three epochs later, after step 32, it ends: 4 steps of 0.2 x 20."""
    done = Watched(script=[9, 8, 7, 6, 5, 6, 6, 6, 4]).run()
    assert len(done.rates) == 36
    assert done.totals[30:] == [60, 36, 36, 36, 36, 36]
    at_best = 0.05 * (1 - 20 / 60)
    assert done.rates[32:] == pytest.approx([at_best, at_best * 3 / 4, at_best / 2, at_best / 4])
    assert done.notes[-1] == "validation loss 4.000, ends early"
    assert same(done.network, done.seen[-1])
    away = max(float((done.seen[8][name] - t).abs().max()) for name, t in done.seen[4].items())
    assert 0 < away < 4 * at_best * 1.5  # four small steps from the best weights, not from those of step 32


def test_an_early_annealing_is_a_fifth_of_what_led_to_the_best():
    script = [*range(100, 60, -1), *[200] * 3]  # the best is of epoch 40, step 160
    done = Watched(Recipe(22, 5, 100, 0.05, 3), [*script, *[150] * 8]).run()
    assert len(done.rates) == 43 * 4 + round(COOLING * 160)
    assert same(done.network, done.seen[39])  # annealing did not help here


def test_averaged_weights_are_validated_kept_and_need_no_annealing():
    recipe = Recipe(22, 5, 15, 0.05, 3, ema_decay=0.9)
    done = Watched(recipe, [9, 8, 7, 8, 8, 8]).run()
    assert len(done.rates) == 24
    assert same(done.network, done.seen[2])
    alone = Watched(recipe)
    mean = alone.network.weight.detach().clone()
    now = []

    def follow(step: int, total: int) -> None:
        kept = min(0.9, step / (9 + step))
        mean.mul_(kept).add_(alone.network.weight.detach(), alpha=1 - kept)
        now.append(alone.network.weight.detach().clone())

    alone.fit.run(Hooks(follow))
    torch.testing.assert_close(alone.network.weight.detach(), mean)
    assert not torch.equal(alone.network.weight, now[-1])


@pytest.mark.parametrize("decay", [0.0, 0.8])
@pytest.mark.parametrize("stop", [1, 13, 33, 35])
def test_a_training_that_was_cut_short_goes_on_to_the_same_weights(tmp_path: Path, stop: int, decay: float):
    """Step 33 and 35 are in the early annealing, or come after the end of averaged weights."""
    recipe, script = Recipe(22, 5, 15, 0.05, 3, decay), [9.0, 8, 7, 6, 5, 6, 6, 6, 4]
    whole = Watched(recipe, script).run()
    path = tmp_path / "kept.training"
    with suppress(KeyboardInterrupt):
        Watched(recipe, script, path, stop).run()
    assert path.exists() == (stop > 1)  # kept after the step before
    second = Watched(recipe, script, path).run()
    assert same(second.network, whole.network.state_dict())
    assert len(second.rates) < len(whole.rates) or stop == 1


def test_a_damaged_file_is_told(tmp_path: Path):
    path = tmp_path / "kept.training"
    path.write_bytes(b"PK\x03\x04 no")
    with pytest.raises(ValueError, match=r"kept\.training: damaged; delete it to start this training over"):
        Watched(path=path).run()


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_training_that_diverged_is_told(loss: float):
    with pytest.raises(ValueError, match=r"the validation loss is .* after 8 steps: use a smaller learning rate"):
        Watched(script=[1.0, loss]).run()


@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_what_is_held_out_is_scored_as_it_will_be_sampled(ema_decay: float):
    """A plug-in's network may have layers that mix the rows of a batch while they train, and count what they saw."""
    net, modes = nn.Sequential(nn.BatchNorm1d(3), network()), list[bool]()
    recipe = replace(RECIPE, epochs=2, ema_decay=ema_decay)

    def held_out(some: nn.Module) -> float:
        modes.append(some.training)
        return -float(len(modes))  # the last weights are the best

    def loss_of(index: Tensor, step: int) -> Tensor:
        assert net.training
        return loss_on(net, index)

    fit = Fit(net, loss_of, recipe, HeldOut(held_out))
    fit.run(Hooks(lambda step, steps: None))
    assert modes == [False, False]
    assert all(map(torch.equal, fit.averaged.buffers(), net.buffers()))
    assert all(counted.any() for counted in net.buffers())
