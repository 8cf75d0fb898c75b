"""Train a capped network on several processes, and check it against one:

    torchrun --nproc-per-node 2 examples/distributed_fsdp2.py [--engine ddp]

Each process trains on its part of every batch under FSDP2 (or DDP), and beside it the same network on whole batches
alone. Both must have the same gradients and parameters. float64 keeps rounding from hiding a wrong gradient.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

import dreluop
from dreluop.distributed import full_tensor
from dreluop.surgery import calibrate_caps

BATCH_SIZE = 64
STEPS = 20
BALANCER = 0.01
# Relative to the largest value. Rounding stays below it; a penalty that is counted twice does not.
TOLERANCE = 1e-9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--engine", choices=("fsdp2", "ddp"), default="fsdp2")
    engine = parser.parse_args().engine
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        compare(engine)
    finally:
        dist.destroy_process_group()


def compare(engine: str) -> None:
    processes, rank = dist.get_world_size(), dist.get_rank()
    torch.manual_seed(0)  # the same data and weights in every process
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), dreluop.DReLU(64), nn.Linear(64, 4)).double()
    x, label = make_data()
    # Calibrate before distributing: surgery and calibration take ordinary models.
    calibrate_caps(model, [x], progress=False)
    alone, together = copy.deepcopy(model), distributed(model, engine)
    optimizers = [make_optimizer(network) for network in (alone, together)]

    for step in range(STEPS):
        batch = torch.randperm(len(x))[:BATCH_SIZE]
        part = batch.chunk(processes)[rank]
        loss = train_step(alone, optimizers[0], x[batch], label[batch])
        train_step(together, optimizers[1], x[part], label[part])
        gradients = [[full_tensor(p.grad) for p in network.parameters()] for network in (together, alone)]
        check("gradients", *gradients)
        if rank == 0 and step % 5 == 0:
            print(f"step {step:3}  loss {loss:.6f}", flush=True)
    parameters = [[full_tensor(p.detach()) for p in network.parameters()] for network in (together, alone)]
    check("parameters", *parameters)
    if rank == 0:
        print(f"{engine}, {processes} processes: the same as one process (within {TOLERANCE:g})")


def distributed(model: nn.Sequential, engine: str) -> nn.Module:
    if engine == "ddp":
        return DistributedDataParallel(copy.deepcopy(model))
    model = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for layer in model:
        if any(True for _ in layer.parameters()):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def make_optimizer(model: nn.Module) -> torch.optim.Optimizer:
    optimizer = torch.optim.Adam(dreluop.param_groups(model, lr=1e-3, cap_lr=1e-2))
    dreluop.project_caps_after_step(optimizer, model)
    return optimizer


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, label: Tensor) -> float:
    optimizer.zero_grad()
    # Under FSDP2 the penalty is a DTensor; full_tensor makes it an ordinary one, and leaves an ordinary one alone.
    loss = F.cross_entropy(model(x), label) + full_tensor(dreluop.cap_penalty(model, BALANCER))
    loss.backward()
    optimizer.step()
    return loss.item()


def make_data(samples: int = 512) -> tuple[Tensor, Tensor]:
    """Points in 20 dimensions, labeled by the nearest of four random centers."""
    centers = torch.randn(4, 20, dtype=torch.float64)
    x = torch.randn(samples, 20, dtype=torch.float64)
    return x, torch.cdist(x, centers).argmin(1)


def check(what: str, got: Iterable[Tensor], expected: Iterable[Tensor]) -> None:
    for one, other in zip(got, expected, strict=True):
        deviation = (one - other).abs().max() / other.abs().max().clamp(min=1e-300)
        if deviation > TOLERANCE:
            raise SystemExit(f"{what}: {deviation:.1e} away from those of one process; expected at most {TOLERANCE:g}")


if __name__ == "__main__":
    main()
