"""The processes that torchrun starts: one per GPU, or several on a CPU; a single one without it."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

EVALUATION_TIMEOUT = timedelta(days=7)


@dataclass(frozen=True)
class DistributedContext:
    """This process's rank among the processes that train one model together."""

    rank: int = 0
    world_size: int = 1
    control: "dist.ProcessGroup | None" = None  # on the host, for what is not a gradient

    @property
    def is_main(self) -> bool:
        """Whether this process prints, logs, evaluates and saves."""
        return self.rank == 0

    def local_batch_size(self, batch_size: int) -> int:
        """Return how many images of each effective batch this process trains on.

        Raises ValueError if that is not an even number: MixUp pairs neighbours.
        """
        if self.world_size > 1 and batch_size % (2 * self.world_size):
            raise ValueError(
                f"--cfg.batch_size={batch_size} cannot be split into even parts for {self.world_size} processes: "
                f"use a multiple of {2 * self.world_size}"
            )
        return batch_size // self.world_size

    def broadcast(self, value: Any) -> Any:
        """Return the main process's value in every process; all have to call it."""
        box = [value]
        if self.world_size > 1:
            dist.broadcast_object_list(box, src=0, group=self.control)
        return box[0]

    def all_reduce_any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process; all have to call it."""
        if self.world_size == 1:
            return flag
        raised = torch.tensor(float(flag))
        dist.all_reduce(raised, dist.ReduceOp.MAX, group=self.control)
        return bool(raised)

    def all_reduce_min(self, value: torch.Tensor) -> torch.Tensor:
        """Return the minimum over all processes; all have to call it."""
        if self.world_size > 1:
            value = value.clone()
            dist.all_reduce(value, dist.ReduceOp.MIN)
        return value

    def all_reduce_mean(self, value: torch.Tensor) -> torch.Tensor:
        """Return the mean over all processes; all have to call it."""
        if self.world_size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.world_size


@contextmanager
def init_distributed(device: torch.device) -> Iterator[DistributedContext]:
    """Join the process group of torchrun; without torchrun, yield a context of one process."""
    if int(os.environ.get("WORLD_SIZE", 1)) <= 1:
        yield DistributedContext()
        return
    dist.init_process_group(dist.get_default_backend_for_device(device))
    try:
        # The other processes wait here while the main one evaluates, for longer than the 10 minutes after which NCCL
        # takes a process for dead. torchrun ends them all if one really dies.
        control = dist.new_group(backend="gloo", timeout=EVALUATION_TIMEOUT)
        yield DistributedContext(dist.get_rank(), dist.get_world_size(), control)
    finally:
        dist.destroy_process_group()
