"""Several processes that train one head, started by torchrun: each takes a share of a step's sequences, and FSDP2
shards the head's weights, gradients and optimiser state among them.

Every process reads the same data and holds the frozen backbone; the loss of a step is that of one process up to
rounding. Checkpoints hold whole tensors, so a run may go on with another number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard

from bebop.errors import UserError
from bebop.models.policy import MTPHead, Policy
from bebop.models.record import build_head
from bebop.training.sharding import whole_tensor

Value = TypeVar("Value")
PATIENCE = timedelta(days=1)
"""How long processes wait for one another: the first one may have rollouts to play."""


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """The processes of a run, and which of them this is."""

    rank: int = 0
    size: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def device(self, chosen: torch.device) -> torch.device:
        """This process's own GPU where ``chosen`` is a kind of device alone."""
        if chosen.type != "cuda" or chosen.index is not None:
            return chosen
        return torch.device(
            "cuda", int(os.environ.get("LOCAL_RANK", "0")) if self.size > 1 else torch.cuda.current_device()
        )

    def share(self, values: Sequence[Value]) -> Sequence[Value]:
        """Those that are this process's to work on."""
        return values[self.rank :: self.size]

    def gather(self, value: Value) -> list[Value]:
        """Every process's value, in their order; each must ask."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def first(self, make: Callable[[], Value], made: Value | None = None) -> Value:
        """What ``make`` returns, called in the main process before the others call it, or take ``made`` instead."""
        result = make() if self.is_main else None
        if self.size > 1:
            dist.barrier()
        if result is None:
            result = make() if made is None else made
        return result


ALONE = World()


@contextmanager
def training_world(device_type: str) -> Iterator[World]:
    """The world that torchrun made, or this process alone."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ALONE
        return
    if device_type == "cuda":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group("nccl" if device_type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(rank=dist.get_rank(), size=size)
    finally:
        dist.destroy_process_group()


class HeadShards:
    """The head's parameters, sharded where there are several processes.

    FSDP gathers and scatters around the forward of a module, and a head is applied several times before its backward
    pass; so what is sharded is a module around the whole unroll.
    """

    def __init__(self, policy: Policy, world: World) -> None:
        assert policy.head is not None
        self.world = world
        self.head = policy.head
        self._policy = policy
        self._sharded: FSDPModule | None = None
        self._module = _Unrolling(policy.head)
        if world.size > 1:
            mesh = init_device_mesh(policy.device.type, (world.size,))
            self._sharded = fully_shard(self._module, mesh=mesh, reshard_after_forward=False)

    def run(self, unroll: Callable[[], Value]) -> Value:
        """What ``unroll``, which applies the head, returns; its tensors lead back to the sharded parameters."""
        return self._module(unroll) if self._sharded is not None else unroll()

    def backward(self, loss: Tensor, *, is_last: bool) -> None:
        """Add up gradients; with the step's last loss they are summed over the processes.

        FSDP divides by their number, which is taken back.
        """
        if self._sharded is not None:
            self._sharded.set_requires_gradient_sync(is_last)
            self._sharded.set_reshard_after_backward(is_last)
        (loss * self.world.size).backward()

    def whole(self) -> Policy:
        """The policy with a head of whole tensors; every process must ask."""
        if self._sharded is None:
            return self._policy
        state = {name: whole_tensor(one) for name, one in self.head.state_dict().items()}
        head = build_head(self.head.contract, self.head.config, dtype=torch.float32, device=self._policy.device)
        head.load_state_dict(state)
        return replace(self._policy, head=head)


class _Unrolling(nn.Module):
    """What FSDP wraps: the head as a child, and a forward that may use it as often as it likes."""

    def __init__(self, head: MTPHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, unroll: Callable[[], Any]) -> Any:
        return unroll()


def check_share(world: World, per_step: int, optimiser: str) -> None:
    """UserError where a process would have nothing to do, or the optimiser needs whole matrices."""
    if per_step < world.size:
        raise UserError(f"data.per_step={per_step} leaves some of {world.size} processes without a sequence; raise it")
    if world.size > 1 and optimiser == "muon":
        raise UserError("muon orthogonalises whole matrices, which several processes do not have; use adamw")
