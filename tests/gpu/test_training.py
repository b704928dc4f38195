"""Steps of training that the CPU never waits for, and FSDP2 with NCCL: a checkpoint written and taken up again."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from benchmarks.gpu.made import Here, Shape, model_of
from benchmarks.gpu.training import trial
from cca_ray.config import Rung, Train
from cca_ray.models.base import Model
from cca_ray.models.likelihood import Scorer
from cca_ray.models.parallel import Group, Passes, distribute, local, weights_of
from cca_ray.placement_config import Placement
from cca_ray.training.checkpoint import Progress, Settings, Writer, resume, save_checkpoint
from cca_ray.training.step import train_step
from tests.gpu.places import OnCard, Place

WARM, STEPS = 2, 10
B = Shape("llamagen_b")


@pytest.mark.parametrize("space", ["llamagen_b", "var_d16"])
def test_ten_steps_wait_for_nothing(place: Place, space: str):
    """A step that waited would leave the card idle while the CPU makes the next ones ready. With EMA and dropout."""
    settings = ("train.ema_decay=0.99", "train.dropout=0.1")
    with trial(Shape(space), place.here, *settings, steps=WARM + STEPS) as loop:
        for step in range(WARM):
            train_step(loop, step)
        with place.without_waiting():
            sums = [train_step(loop, step) for step in range(WARM, WARM + STEPS)]
        assert torch.stack(sums).isfinite().all()


def test_what_waits_is_noticed(place: Place):
    tensor = torch.ones(3, device=place.device)
    with place.without_waiting(), pytest.raises(RuntimeError, match=r"wait|synchroniz"):
        tensor.sum().item()
    assert tensor.sum().item() == 3


SETTINGS = Settings(train=Train(), base="", tokens="", rungs=(Rung(at=1, samples=2),), protocol="", precision="float32")


class Half:
    """A model parted over the workers, its optimizer and its EMA."""

    def __init__(self, shape: Shape, group: Group):
        self.group, self.model = group, model_of(shape, group.device)
        self.scorer = self.parted(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-3, fused=True)
        self.ema = {name: tensor.clone() for name, tensor in weights_of(self.model).items()}

    def parted(self, model: Model) -> nn.Module:
        """`distribute` leaves what one worker has whole: here FSDP2 parts it over that one."""
        if self.group.world > 1:
            return distribute(model, Placement(workers=self.group.world, strategy="fsdp"), self.group, Passes(4))
        mesh, scorer = init_device_mesh(self.group.device.type, (1,)), Scorer(model)
        for layer in model.stack:
            fully_shard(layer, mesh=mesh)
        fully_shard(scorer, mesh=mesh)
        return scorer

    def step(self) -> float:
        c, device = self.model.config, self.group.device
        labels = torch.arange(4, device=device) + self.group.rank
        tokens = torch.arange(4 * c.block_size, device=device).view(4, -1) * 7 % c.vocab_size
        loss = -self.scorer(labels, tokens).mean()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        for name, tensor in weights_of(self.model).items():
            self.ema[name].lerp_(tensor, 0.5)
        return float(self.group.sum(loss.detach()))

    def state(self) -> list[Tensor]:
        """All of it, this worker's part: weights, EMA, both moments."""
        weights = list(weights_of(self.model).values())
        moments = [self.optimizer.state[p][key] for p in self.model.parameters() for key in ("exp_avg", "exp_avg_sq")]
        return [local(tensor) for tensor in [*weights, *self.ema.values(), *moments]]


def round_trip(rank: int, world: int, here: Here, shape: Shape, folder: Path) -> None:
    """One of the workers: two steps, a checkpoint, another trial that takes it up; then both go on alike."""
    cuda = here.device.type == "cuda"
    device = torch.device("cuda", rank) if cuda else here.device
    if cuda:
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if cuda else "gloo", f"file://{folder / 'ranks'}", rank=rank, world_size=world)
    try:
        group, path = Group(rank, world, device), folder / "checkpoint.pt"
        first, second = Half(shape, group), Half(shape, group)
        first.step(), first.step()
        with Writer() as writer:
            save_checkpoint(path, first.model, first.ema, first.optimizer, Progress(2), SETTINGS, group, writer)
            writer.wait()
        dist.barrier()
        assert resume(path, second.model, second.ema, second.optimizer, SETTINGS, ()).step == 2
        for before, after in zip(first.state(), second.state(), strict=True):
            assert torch.equal(before, after)
        assert second.step() == pytest.approx(first.step(), rel=1e-5)
    finally:
        dist.destroy_process_group()


def test_a_parted_trial_is_written_and_taken_up_again(place: Place, tmp_path: Path):
    """By one worker, as NCCL's only rank."""
    round_trip(0, 1, place.here, B.at(place.here), tmp_path)


@pytest.mark.gpu
@pytest.mark.timeout(600)
def test_a_trial_parted_over_two_cards_is_written_and_taken_up_again(card: OnCard, tmp_path: Path):
    if torch.cuda.device_count() < 2:
        pytest.skip("wants a second GPU")
    torch.multiprocessing.spawn(round_trip, (2, card.here, B, tmp_path), nprocs=2)
