"""The training of one network of a small base: its schedule, its best weights, and how it goes on after a kill.

The rate is annealed to zero, whatever happens: what a base still gains by annealing, plain fine-tuning would gain too,
and a control that profits from it says nothing. So an early end is an early annealing: see `Fit.stop_early`.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cca_ray.contracts import Contract
from cca_ray.data.pairs import steps_per_epoch
from cca_ray.errors import reading
from cca_ray.models.files import write_atomically
from cca_ray.models.parallel import weights_of
from cca_ray.storage.mirror import patiently
from cca_ray.training.ema import update_ema

WARMUP_STEPS = 20
PATIENCE = 5  # held-out losses in a row that are no better before training ends early
COOLING = 0.2  # of the steps up to the best weights: over so many the rate then goes to zero
KEEP_EVERY_S = 60.0


@dataclass(frozen=True)
class Recipe:
    """How a network is trained."""

    count: int  # images
    batch: int
    epochs: int
    learning_rate: float
    seed: int  # of the order
    ema_decay: float = 0.0  # of the weights that are kept; 0: off

    @property
    def steps_per_epoch(self) -> int:
        return steps_per_epoch(self.count, self.batch)

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass(frozen=True)
class HeldOut:
    """What the network is not trained on. `loss` of a network; asked for every so many `epochs`."""

    loss: Callable[[nn.Module], float]
    epochs: int = 1
    patience: int = PATIENCE


class Part(Protocol):
    """What a training changes beside the network's weights, such as a random stream."""

    def state(self) -> dict[str, Tensor]: ...
    def restore(self, state: Mapping[str, Tensor]) -> None: ...


@dataclass(frozen=True)
class Keeping:
    """Where a training is kept until it is done, and how often."""

    path: Path
    every_s: float = KEEP_EVERY_S


@dataclass(frozen=True)
class Hooks:
    """Who listens: after every step (steps done, steps in all), and to what there is to say of the held-out loss."""

    progress: Callable[[int, int], None]
    note: Callable[[str], None] = lambda text: None


class Cooling(Contract):
    """An early annealing: from this step on, in so many steps, from this rate to zero."""

    start: int
    steps: int
    rate: float


class Position(Contract):
    """How far a training is. `best_*`: of the lowest held-out loss; `worse`: how many in a row were not below it."""

    step: int = 0
    best_loss: float = math.inf
    best_step: int = 0
    worse: int = 0
    cooling: Cooling | None = None


@dataclass(frozen=True)
class Best:
    """The weights with the lowest held-out loss, and the optimizer's state with them while it may be wanted."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any] | None  # torch's own form


def batches(count: int, batch: int, seed: int, start: int = 0) -> Iterator[Tensor]:
    """Shuffled indices from step `start` on, epoch after epoch without end, full batches only."""

    def all_of_them() -> Iterator[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        for _ in numbers():
            order = torch.randperm(count, generator=generator)
            for step in range(steps_per_epoch(count, batch)):
                yield order[step * batch : (step + 1) * batch]

    return islice(all_of_them(), start, None)


def rate(recipe: Recipe, cooling: Cooling | None, step: int) -> float:
    """A short warm-up, then linearly to zero."""
    if cooling is not None:
        return cooling.rate * (1 - (step - cooling.start) / cooling.steps)
    return recipe.learning_rate * min(1.0, (step + 1) / WARMUP_STEPS) * (1 - step / recipe.steps)


class Fit:
    """A training at work: AdamW on `loss_of(indices, step)`, the loss on these images."""

    def __init__(
        self,
        network: nn.Module,
        loss_of: Callable[[Tensor, int], Tensor],
        recipe: Recipe,
        held_out: HeldOut | None = None,
        parts: Mapping[str, Part] | None = None,
        keeping: Keeping | None = None,
    ):
        self.network, self.loss_of, self.recipe = network, loss_of, recipe
        self.held_out, self.parts, self.keeping = held_out, dict(parts or {}), keeping
        self.optimizer = torch.optim.AdamW(
            network.parameters(), lr=recipe.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
        )
        self.averaged = deepcopy(network).requires_grad_(False) if recipe.ema_decay else network
        self.position = Position()
        self.best: Best | None = None
        self.kept_at = time.monotonic()

    @property
    def total(self) -> int:
        """Optimizer steps in all, as far as is known."""
        cooling = self.position.cooling
        return self.recipe.steps if cooling is None else cooling.start + cooling.steps

    def run(self, hooks: Hooks) -> None:
        """Train to the end, from where an earlier run was; the network has the best weights then."""
        self.resume()
        recipe, start = self.recipe, self.position.step
        for index in batches(recipe.count, recipe.batch, recipe.seed, start):
            if self.position.step >= self.total:
                break
            self.step(index)
            self.look(hooks.note)
            hooks.progress(self.position.step, self.total)
            if self.keeping and time.monotonic() - self.kept_at >= self.keeping.every_s:
                self.keep(self.keeping.path)
        if self.best is not None:
            self.network.load_state_dict(self.best.weights)
        elif self.averaged is not self.network:
            self.network.load_state_dict(self.averaged.state_dict())

    def step(self, index: Tensor) -> None:
        step = self.position.step
        for group in self.optimizer.param_groups:
            group["lr"] = rate(self.recipe, self.position.cooling, step)
        self.optimizer.zero_grad(set_to_none=True)
        self.loss_of(index, step).backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        if self.averaged is not self.network:
            update_ema(weights_of(self.averaged), self.network, self.recipe.ema_decay, step)
            for mine, now in zip(self.averaged.buffers(), self.network.buffers(), strict=True):
                mine.copy_(now)  # what layers count, such as a BatchNorm's statistics, is a mean already
        self.position = self.position.model_copy(update={"step": step + 1})

    def look(self, note: Callable[[str], None]) -> None:
        """At the held-out loss, if it is time: keep the weights if they are the best, end if they have long not been.

        ValueError if it is not finite.
        """
        before, step, spell = self.position, self.position.step, self.recipe.steps_per_epoch
        if self.held_out is None or (step % (self.held_out.epochs * spell) and step < self.total):
            return
        loss = self.held_out.loss(self.averaged.eval())
        self.averaged.train()
        if not math.isfinite(loss):
            raise ValueError(f"the validation loss is {loss:g} after {step} steps: use a smaller learning rate")
        if loss < before.best_loss:
            may_return = before.cooling is None and self.averaged is self.network
            moments = deepcopy(self.optimizer.state_dict()) if may_return else None
            self.best = Best({name: t.clone() for name, t in self.averaged.state_dict().items()}, moments)
            self.position = before.model_copy(update={"best_loss": loss, "best_step": step, "worse": 0})
        else:
            self.position = before.model_copy(update={"worse": before.worse + 1})
        if before.cooling is None and self.position.worse >= self.held_out.patience and step < self.total:
            self.stop_early()
        now = self.position
        lowest = "" if now.best_step == step else f", lowest {now.best_loss:.3f} after epoch {now.best_step // spell}"
        note(f"validation loss {loss:.3f}{lowest}{', ends early' * (now.cooling is not None)}")

    def stop_early(self) -> None:
        """Back to the best weights, and from their rate to zero in few steps. Averaged weights need no annealing."""
        now, best = self.position, self.best
        assert best is not None
        if self.averaged is not self.network:
            cooling = Cooling(start=now.step, steps=0, rate=0.0)
        else:
            assert best.optimizer is not None
            self.network.load_state_dict(best.weights)
            self.optimizer.load_state_dict(best.optimizer)
            self.best = Best(best.weights, None)
            steps = max(self.recipe.steps_per_epoch, round(COOLING * now.best_step))
            cooling = Cooling(start=now.step, steps=steps, rate=rate(self.recipe, None, now.best_step))
        self.position = now.model_copy(update={"cooling": cooling})

    def keep(self, path: Path) -> None:
        """Everything that the rest of the training depends on."""
        content = {
            "position": self.position.model_dump_json(),
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "averaged": self.averaged.state_dict() if self.averaged is not self.network else None,
            "best": vars(self.best) if self.best else None,
            "parts": {name: part.state() for name, part in self.parts.items()},
        }
        patiently(lambda: write_atomically(content, path))
        self.kept_at = time.monotonic()

    def resume(self) -> None:
        """Restore what `keep` wrote, if there is such a file. ValueError, naming it, if it is damaged."""
        if self.keeping is None or not self.keeping.path.exists():
            return
        with reading(self.keeping.path, "damaged; delete it to start this training over"):
            content = torch.load(self.keeping.path, map_location="cpu", weights_only=True)
            self.position = Position.model_validate_json(content["position"])
            self.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            if self.averaged is not self.network:
                self.averaged.load_state_dict(content["averaged"])
            self.best = Best(**content["best"]) if content["best"] else None
            for name, part in self.parts.items():
                part.restore(content["parts"][name])
