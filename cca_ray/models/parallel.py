"""A model over several workers: DDP or FSDP2, activation checkpointing; whole weights in and out.

Precision is autocast's under either strategy, so a loss does not depend on which was used.
"""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from cca_ray.cluster.device import local_device
from cca_ray.cluster.placement import autocast, precision
from cca_ray.errors import first_line, is_out_of_memory
from cca_ray.models.base import Model
from cca_ray.models.dropout import Dropout
from cca_ray.models.likelihood import Scorer
from cca_ray.placement_config import Placement

if TYPE_CHECKING:  # most of a second, which a process that only scores does not spend
    from torch.distributed.tensor import DTensor

LOG = logging.getLogger(__name__)
T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """This process among the workers of a trial."""

    rank: int = 0
    world: int = 1
    device: torch.device = field(default_factory=local_device)

    def sum(self, values: Tensor) -> Tensor:
        if self.world > 1:
            dist.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Every worker's value, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def agreed(self, work: Callable[[], T]) -> T:
        """What this worker's own part of some work comes to, in which the workers do not meet.

        A ValueError of one is raised by all: the others would wait for it, where they meet next, for half an hour.
        """
        if self.world == 1:
            return work()
        outcome: T | ValueError
        try:
            outcome = work()
        except ValueError as error:
            outcome = error
        told = self.gather(first_line(outcome) if isinstance(outcome, ValueError) else "")
        if said := next(filter(None, told), ""):
            raise ValueError(said)
        assert not isinstance(outcome, ValueError)
        return outcome


@dataclass(frozen=True)
class Passes:
    """What the forward passes of training are like."""

    rows: int  # sequences
    dropout: float = 0.0


COMPILES = dict[tuple[object, ...], bool]()  # what was tried in this process, and whether it worked
TRIED_BLOCKS = 2  # the second is what finds a block that is another program for every place in the stack


def can_compile(model: Model, placement: Placement, device: torch.device, passes: Passes) -> bool:
    """Whether torch.compile takes this model's blocks here, there and back: as much as a compiler, a version can fail.

    Tried once a process, on copies of two blocks; the real ones are then the same program, which is compiled already.
    Memory that runs out says nothing of that, and is raised.
    """
    trained = is_trained(model)
    recomputed = placement.activation_checkpointing
    key = (type(model), model.config, precision(placement, device), device, trained, recomputed, passes)
    if key not in COMPILES:
        try:
            run_compiled(model, placement, device, passes)
        except Exception as error:  # of many kinds
            if is_out_of_memory(error):
                raise
            said = f"{type(error).__name__}: {first_line(error)}"
            LOG.warning("placement.compile is off: torch.compile fails on the blocks of this model here: %s", said)
            COMPILES[key] = False
        else:
            COMPILES[key] = True
    return COMPILES[key]


def run_compiled(model: Model, placement: Placement, device: torch.device, passes: Passes) -> None:
    """A step of training of the model with its first two blocks alone, compiled."""
    rest = model.stack[TRIED_BLOCKS:]
    few = deepcopy(model, {id(block): nn.Identity() for block in rest})
    del few.stack[TRIED_BLOCKS:]
    few.to(device)
    for block in few.stack:
        block.compile()
    condition = model.takes.blank(passes.rows, device)
    tokens = torch.zeros(passes.rows, model.config.block_size, dtype=torch.int64, device=device)
    keys = torch.arange(passes.rows, dtype=torch.int32, device=device)
    dropout = Dropout(passes.dropout, keys) if passes.dropout else None
    with torch.set_grad_enabled(is_trained(model)), autocast(placement, device):
        hidden = few.hidden(condition, tokens, dropout)
    if is_trained(model):
        hidden.sum().backward()


def is_trained(model: nn.Module) -> bool:
    return any(parameter.requires_grad for parameter in model.parameters())


def distribute(model: Model, placement: Placement, group: Group, passes: Passes) -> nn.Module:
    """The model's `Scorer`, on this worker's device, ready for such forward passes of training.

    FSDP moves and cuts one layer at a time, straight from the memory-mapped file: no worker ever holds a whole
    model of its own.
    """
    trained = is_trained(model)
    if placement.activation_checkpointing and trained:  # a frozen model keeps none, and would not compile
        for number, layer in enumerate(model.stack):
            model.stack[number] = checkpoint_wrapper(layer)
    if placement.compile and can_compile(model, placement, group.device, passes):
        for layer in model.stack:  # all alike, so that one compilation serves them all
            layer.compile()
    scorer = Scorer(model)
    if group.world > 1 and placement.strategy == "fsdp":
        shard(scorer, precision(placement, group.device), group)
        return scorer
    scorer.to(group.device)
    if group.world == 1 or not trained:
        return scorer
    # Gradients are views of the buckets in which they are exchanged: 4 bytes a parameter less.
    return DistributedDataParallel(scorer, broadcast_buffers=False, gradient_as_bucket_view=True)


def shard(scorer: Scorer, kind: torch.dtype, group: Group) -> None:
    """Cut the model over the workers, in place (FSDP2), for passes in this precision."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(group.device.type, (group.world,))
    # Weights are gathered in bfloat16, their gradients are summed in float32. What goes in stays as it is.
    as_autocast = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
    for layer in scorer.model.stack:
        for part in of_matrices(layer) if kind == torch.bfloat16 else ():
            fully_shard(part, mesh=mesh, mp_policy=as_autocast)
        fully_shard(layer, mesh=mesh)  # the rest of it
    fully_shard(scorer, mesh=mesh)  # what is left: embeddings, last norm, head


def of_matrices(layer: nn.Module) -> list[nn.Module]:
    """Those parts of a block that hold nothing but layers of matrix products, whose weights autocast rounds anyway.

    Norms and temperatures are kept as they are: a loss must not depend on the strategy.
    """
    block = getattr(layer, "_checkpoint_wrapped_module", layer)
    own = {id(p) for module in block.modules() if isinstance(module, nn.Linear) for p in module.parameters()}
    weights = {part: {id(p) for p in part.parameters()} for part in block.children()}
    return [part for part, ids in weights.items() if ids and ids <= own]


def gradients_wait(scorer: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Hold back the workers' exchange of gradients until the last micro-batch.

    Not with FSDP, which would then keep whole gradients: what it is used to avoid.
    """
    return scorer.no_sync() if wanted and isinstance(scorer, DistributedDataParallel) else nullcontext()


def is_parted(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether it is cut over the workers."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """This worker's part."""
    return tensor.to_local() if is_parted(tensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every worker."""
    return tensor.full_tensor() if is_parted(tensor) else tensor


def parted(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut, and placed, as `like` is."""
    tensor = tensor.to(like.device)
    if not is_parted(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor, like.device_mesh, like.placements, src_data_rank=None)


Weights = dict[str, Tensor]  # by the parameters' official names; parted as the model is


def weights_of(model: nn.Module) -> Weights:
    """The model's own parameters, not copies."""
    return {name.replace("_checkpoint_wrapped_module.", ""): p.detach() for name, p in model.named_parameters()}


@torch.no_grad()
def whole_model(model: Model, weights: Weights, device: torch.device) -> Model:
    """An unwrapped model for sampling, with these weights in place of the model's own; every worker gets one."""
    plain = model.unfilled()
    state = {name: whole(weights.get(name, tensor)) for name, tensor in model.state_dict().items()}
    plain.load_state_dict(state, assign=True)
    return plain.requires_grad_(False).eval().to(device)


@torch.no_grad()
def for_sampling(model: Model, placement: Placement, group: Group) -> Model:
    """The same model on this worker's device, what a checkpoint holds of it in the precision of the placement.

    Its `exact` tensors stay in float32, and so do tables that it computes itself and codes of its tokenizer.
    """
    kind = precision(placement, group.device)
    for name, tensor in model.state_dict(keep_vars=True).items():  # parameters, and buffers that they are added to
        if tensor.is_floating_point() and not name.endswith(model.exact):
            tensor.data = tensor.data.to(group.device, kind)
    return model.to(group.device)


def state_of(model: nn.Module, optimizer: Optimizer) -> tuple[dict[str, Any], dict[str, Any]]:
    """Whole states of model and optimizer, by parameter name: the same file whatever the strategy. On rank 0."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return get_state_dict(model, optimizer, options=options)


def restore(model: nn.Module, optimizer: Optimizer, states: tuple[Mapping[str, Any], Mapping[str, Any]]) -> None:
    """Take up what `state_of` returned, in place, parted as this model is."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    weights, moments = states
    set_state_dict(
        model,
        optimizer,
        model_state_dict=dict(weights),
        optim_state_dict=dict(moments),
        options=StateDictOptions(full_state_dict=True),
    )
