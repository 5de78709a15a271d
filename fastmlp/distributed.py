"""The processes of torchrun: one for each GPU, or several on a CPU; one alone where nobody launched more."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist


@dataclass(frozen=True)
class DistributedContext:
    """This process among those that train one model together."""

    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """The one that prints, logs, evaluates and saves."""
        return self.rank == 0

    def local_batch_size(self, batch_size: int) -> int:
        """Images of each effective batch that this process trains on. Raises ValueError where that is no even number.

        MixUp pairs neighbours.
        """
        if self.world_size > 1 and batch_size % (2 * self.world_size):
            raise ValueError(
                f"--cfg.batch_size={batch_size} cannot be dealt to {self.world_size} processes in even parts: "
                f"use a multiple of {2 * self.world_size}"
            )
        return batch_size // self.world_size

    def broadcast(self, value: Any) -> Any:
        """What the first process has there; all have to call it."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def all_reduce_any(self, flag: bool) -> bool:
        """Whether it is so in any process; all have to call it."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(float(flag), device=_device())
        dist.all_reduce(raised, dist.ReduceOp.MAX)
        return bool(raised)

    def all_reduce_min(self, value: torch.Tensor) -> torch.Tensor:
        """The least over all processes; all have to call it."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """The mean over all processes; all have to call it."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size


@contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Joins the processes that torchrun started; alone without it."""
    if int(os.environ.get("WORLD_SIZE", 1)) <= 1:
        yield DistributedContext()
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield DistributedContext(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()


def _device() -> str:
    return "cuda" if dist.get_backend() == "nccl" else "cpu"
