"""Compiled data parallel training of networks whose activations write in place."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import dreluop
from tests.distributed.processes import on_processes
from tests.distributed.tensors import full_tensor

# A layer fills a bucket of one MiB, the smallest that DDP cuts a graph at.
WIDTH = 512


def network(inplace: bool) -> nn.Sequential:
    torch.manual_seed(0)
    blocks: list[nn.Module] = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), dreluop.DReLU(WIDTH, init=0.3, inplace=inplace, save="output")),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), dreluop.DReLU(1, init=0.2, inplace=inplace, save="mask")),
        nn.Sequential(nn.Linear(WIDTH, WIDTH), dreluop.SReLU(0.1, inplace=inplace)),
    ]
    return nn.Sequential(*blocks, nn.Linear(WIDTH, 4))


def assert_gradients_of_eager(model: nn.Module, run: nn.Module, processes: int, rank: int) -> None:
    data = torch.randn(8, WIDTH, generator=torch.Generator().manual_seed(1))
    eager = network(False)
    eager(data).square().mean().backward()
    run(data.chunk(processes)[rank]).square().mean().backward()
    for (name, one), other in zip(model.named_parameters(), eager.parameters(), strict=True):
        got: Tensor = full_tensor(one.grad)
        torch.testing.assert_close(got, other.grad, msg=lambda text, name=name: f"{name}: {text}")


@on_processes(1, 2)
@pytest.mark.parametrize("form", ["opaque", "decompose"])
def test_the_buckets_of_ddp_cut_the_graph(form: str) -> None:
    torch.compiler.reset()
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    model = DistributedDataParallel(network(True), bucket_cap_mb=1)
    with dreluop.compile_mode(form):  # type: ignore[arg-type]
        assert_gradients_of_eager(model, torch.compile(model, backend="aot_eager"), ranks, rank)


@on_processes(2)
def test_fully_sharded() -> None:
    torch.compiler.reset()
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    model = network(True)
    mesh = init_device_mesh("cpu", (ranks,))
    for block in model:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    assert_gradients_of_eager(model, torch.compile(model, backend="aot_eager"), ranks, rank)
