"""One process or many: each takes its share of every batch, and the gradients are those of the whole batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

# The first process evaluates while the others wait, for hours. If a process dies, torchrun ends the others.
WAIT = timedelta(days=30)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Processes:
    """This process among those of torchrun; by itself, rank 0 of 1. ``local`` is its rank on its machine."""

    rank: int = 0
    world: int = 1
    local: int = 0

    def share(self, x: Tensor, y: Tensor, device: torch.device) -> tuple[Tensor, Tensor, float]:
        """The rank-th of world runs of samples of a batch, and the weight of the mean of their losses.

        Runs, as a mixture is regular: every second sample may be of one kind. The weight makes DDP's mean over the
        processes the mean over the batch. A process without a sample of a small last batch takes the first one with
        weight 0, as all processes must run.
        """
        if self.world == 1:
            return x.to(device), y.to(device), 1.0
        own_x, own_y = (part.tensor_split(self.world)[self.rank] for part in (x, y))
        weight = len(own_y) * self.world / len(y)
        if not weight:
            own_x, own_y = x[:1], y[:1]
        return own_x.to(device), own_y.to(device), weight

    def wrap(self, model: nn.Module, device: torch.device) -> nn.Module:
        """The model as DistributedDataParallel; by itself, the model.

        On GPUs batch norms see the whole batch, on CPUs each process's share of it (torch has no other there).
        """
        if self.world == 1:
            return model
        on_gpu = device.type == "cuda"
        if on_gpu:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return DistributedDataParallel(model, device_ids=[device] if on_gpu else None)

    def total(self, value: Tensor) -> Tensor:
        """The sum over the processes."""
        if self.world > 1:
            distributed.all_reduce(value)
        return value

    def of_first(self, value: Value) -> Value:
        """What the first process has: what all must decide by, such as a loss that differs by rounding."""
        if self.world == 1:
            return value
        values = [value]
        distributed.broadcast_object_list(values, src=0)
        return values[0]

    def wait(self) -> None:
        if self.world > 1:
            distributed.barrier()


@contextmanager
def of_torchrun() -> Iterator[Processes]:
    """Join the process group that torchrun describes, and leave it at the end of the block.

    A process that ends without leaving aborts now and then, as the group's threads still run.
    """
    if "WORLD_SIZE" not in os.environ or "RANK" not in os.environ:
        raise RuntimeError("no RANK and WORLD_SIZE in the environment; start with torchrun, or without --distributed")
    distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo", timeout=WAIT)
    try:
        yield Processes(distributed.get_rank(), distributed.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))
    finally:
        distributed.destroy_process_group()
