"""The parallel forms with one process: on CUDA with NCCL, where the pools of processes of the other tests have gloo."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import dreluop
from tests.distributed.tensors import full_tensor
from tests.distributed.test_training import BALANCER, CAPS, Network, data, in_tensor_parallel, sharded_fully, trained

by_fused = pytest.mark.parametrize("fused", [False, True], ids=["", "fused"])


@pytest.fixture
def mesh(device: torch.device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DeviceMesh]:
    """Of this process alone."""
    # One process needs no network, and a machine may have none.
    monkeypatch.setenv("NCCL_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        assert torch.distributed.get_backend() == backend
        yield init_device_mesh(device.type, (1,))
    finally:
        torch.distributed.destroy_process_group()


def network_on(device: torch.device, fused: bool) -> Network:
    torch.manual_seed(0)
    return Network(fused).to(device)


def assert_as_the_plain_model(model: nn.Module, plain: nn.Module, device: torch.device) -> None:
    batch: tuple[Tensor, Tensor] = tuple(t.to(device) for t in data())  # type: ignore[assignment]
    names = [name for name, _ in plain.named_parameters()]
    for got, want in zip(trained(model, batch), trained(plain, batch), strict=True):
        for name, one, other in zip(names, got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@by_fused
@pytest.mark.usefixtures("mesh")
def test_data_parallel(device: torch.device, fused: bool) -> None:
    network = network_on(device, fused)
    assert_as_the_plain_model(DistributedDataParallel(copy.deepcopy(network)), network, device)


@by_fused
def test_fully_sharded(device: torch.device, mesh: DeviceMesh, fused: bool) -> None:
    network = network_on(device, fused)
    model = sharded_fully(network, mesh)
    assert isinstance(model.channels.cap, DTensor)
    assert_as_the_plain_model(model, network, device)


@by_fused
@pytest.mark.parametrize("caps", CAPS)
def test_tensor_parallel(device: torch.device, mesh: DeviceMesh, caps: str, fused: bool) -> None:
    network = network_on(device, fused)
    model = in_tensor_parallel(network, mesh, caps)
    if fused:
        # The penalty of a DTensor cap is a DTensor.
        model.register_forward_hook(lambda module, x, output: (output[0], output[1].full_tensor()))
    assert_as_the_plain_model(model, network, device)


@pytest.mark.parametrize("of_x", [Shard(0), Shard(1), Replicate()], ids=str)
@pytest.mark.parametrize("save", ["output", "mask"])
def test_the_function_on_distributed_tensors(
    device: torch.device, mesh: DeviceMesh, save: str, of_x: Placement
) -> None:
    values = [t.to(device) for t in (torch.randn(8, 6, 4), torch.rand(6), torch.randn(6), torch.randn(8, 6, 4))]
    # Whoever holds whole channels may hold their caps too.
    of_cap = Shard(0) if of_x == Shard(1) else Replicate()
    placements = (of_x, of_cap, of_cap, of_x)

    def results(tensors: list[Tensor]) -> list[Tensor]:
        x, cap, bias, residual = leaves = [t.detach().requires_grad_() for t in tensors]
        y, penalty = dreluop.capped_relu(x, cap, save=save, balancer=BALANCER, bias=bias, residual=residual)
        (y.square().sum() + 3 * penalty).backward()
        return full_tensor([y.detach(), penalty.detach(), *(leaf.grad for leaf in leaves)])

    distributed = results([distribute_tensor(t, mesh, [p]) for t, p in zip(values, placements, strict=True)])
    for got, want in zip(distributed, results(values), strict=True):
        torch.testing.assert_close(got, want)
    penalty = BALANCER * values[1].square().sum()
    torch.testing.assert_close(distributed[1], penalty)
