"""DDP, FSDP2, tensor and sequence parallelism train capped networks as one process does, the penalty counted once."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_module, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from torch.nn import functional as F  # noqa: N812
from torch.nn.parallel import DistributedDataParallel

import dreluop
from dreluop.surgery import replace_activations
from tests.distributed.processes import on_processes
from tests.distributed.tensors import full_tensor, mesh_of

# Large, so that a penalty counted twice, or by half, cannot hide.
BALANCER = 2.0
STEPS = 3
BATCH, INPUTS, HIDDEN, OUTPUTS = 8, 12, 8, 4


class Network(nn.Module):
    """Caps per channel, then one for a layer; the penalty fused into the second, if so asked."""

    def __init__(self, fused: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(INPUTS, HIDDEN, dtype=torch.float64)
        self.channels = dreluop.DReLU(HIDDEN, init=0.5, dtype=torch.float64)
        self.second = nn.Linear(HIDDEN, HIDDEN, dtype=torch.float64)
        self.layer = dreluop.DReLU(1, init=0.25, dtype=torch.float64)
        self.last = nn.Linear(HIDDEN, OUTPUTS, dtype=torch.float64)
        self.fused = fused

    def forward(self, x: Tensor) -> Any:
        x = self.second(self.channels(self.first(x)))
        if not self.fused:
            return self.last(self.layer(x))
        x, penalty = dreluop.capped_relu(x, self.layer.cap, balancer=BALANCER)
        return self.last(x), penalty


def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = (BATCH, INPUTS), (BATCH, OUTPUTS)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)  # type: ignore[return-value]


def shard_of_batch(ranks: int, rank: int) -> tuple[Tensor, Tensor]:
    x, y = data()
    return x.chunk(ranks)[rank], y.chunk(ranks)[rank]


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    output = model(x)
    if not isinstance(output, tuple):
        return F.mse_loss(output, y) + full_tensor(dreluop.cap_penalty(model, BALANCER))
    output, penalty = output
    channels = next(module for name, module in model.named_modules() if name.endswith("channels"))
    return F.mse_loss(output, y) + penalty + full_tensor(channels.penalty(BALANCER))


def trained(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The gradients of the first step, and the parameters after the last."""
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0625)
    gradients: list[Tensor] = []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss_of(model, *batch).backward()
        if step == 0:
            gradients = [full_tensor(parameter.grad).clone() for parameter in model.parameters()]
        optimizer.step()
    return gradients, [full_tensor(parameter.detach()) for parameter in model.parameters()]


def assert_as_in_one_process(model: nn.Module, one_process: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    names = [name for name, _ in one_process.named_parameters()]
    for got, want in zip(trained(model, batch), trained(one_process, data()), strict=True):
        for name, one, other in zip(names, got, want, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12, msg=lambda text, name=name: f"{name}: {text}")


@on_processes(2, 4)
@pytest.mark.parametrize("fused", (False, True))
def test_data_parallel(fused: bool) -> None:
    network = Network(fused)
    # Each process adds the whole penalty to the mean loss of its shard; DDP's mean over the processes keeps both right.
    model = DistributedDataParallel(copy.deepcopy(network))
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    assert_as_in_one_process(model, network, shard_of_batch(ranks, rank))


class Normalized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)
        self.bn1, self.bn2 = nn.BatchNorm1d(HIDDEN), nn.BatchNorm1d(HIDDEN)
        self.last = nn.Linear(HIDDEN, OUTPUTS)
        self.double()

    def forward(self, x: Tensor) -> Any:
        x = F.relu(self.bn1(self.first(x)))
        return self.last(F.relu(self.bn2(self.second(x)) + x))


@on_processes(2)
def test_data_parallel_with_caps_in_batch_norms() -> None:
    torch.manual_seed(0)
    apart = Normalized()
    fused = copy.deepcopy(apart)
    replace_activations(apart, init=0.5)
    assert len(replace_activations(fused, init=0.5, fuse="batch_norm").in_batch_norms) == 2
    rank = torch.distributed.get_rank()
    trained_models = [DistributedDataParallel(model) for model in (apart, fused)]
    results = [trained(model, shard_of_batch(2, rank)) for model in trained_models]
    # The caps stand in another order among the parameters.
    for got, want in zip(*results, strict=True):
        assert sorted(t.double().norm().item() for t in got) == pytest.approx(
            sorted(t.double().norm().item() for t in want), rel=1e-8
        )
    torch.testing.assert_close(fused.bn2.running_var, apart.bn2.running_var, rtol=1e-9, atol=1e-12)


def sharded_fully(network: nn.Module, mesh: DeviceMesh) -> nn.Module:
    model = copy.deepcopy(network)
    if not model.fused:
        fully_shard(model.channels, mesh=mesh)
    fully_shard(model.second, mesh=mesh)
    return fully_shard(model, mesh=mesh)


@on_processes(2, 4)
@pytest.mark.parametrize("fused", (False, True))
def test_fully_sharded(fused: bool) -> None:
    network = Network(fused)
    ranks, rank = torch.distributed.get_world_size(), torch.distributed.get_rank()
    model = sharded_fully(network, mesh_of(ranks))
    assert isinstance(model.channels.cap, DTensor)
    assert model.channels.cap.placements == (Shard(0),)
    assert_as_in_one_process(model, network, shard_of_batch(ranks, rank))


@on_processes(2)
def test_the_penalty_before_the_forward() -> None:
    network = Network()
    model = sharded_fully(network, mesh_of(2))
    x, y = shard_of_batch(2, torch.distributed.get_rank())
    penalty = dreluop.cap_penalty(model, BALANCER).full_tensor()
    (penalty + F.mse_loss(model(x), y)).backward()
    loss_of(network, *data()).backward()
    for got, want in zip(model.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(full_tensor(got.grad), want.grad)


@on_processes(4)
def test_sharded_in_replicas() -> None:
    network = Network()
    model = sharded_fully(network, mesh_of(2, 2))
    assert model.channels.cap.placements == (Replicate(), Shard(0))
    assert_as_in_one_process(model, network, shard_of_batch(4, torch.distributed.get_rank()))


@on_processes(2)
def test_a_model_made_without_memory_gets_its_caps_once_it_is_sharded() -> None:
    with torch.device("meta"):
        model = Network()
    model = sharded_fully(model, mesh_of(2))
    model.to_empty(device="cpu")
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    assert torch.equal(model.channels.cap.full_tensor(), torch.full((HIDDEN,), 0.5, dtype=torch.float64))
    assert torch.equal(model.layer.cap.full_tensor(), torch.full((1,), 0.25, dtype=torch.float64))


def shard_caps(name: str, module: nn.Module, mesh: DeviceMesh) -> None:
    cap = distribute_tensor(module.cap.detach(), mesh, [Shard(0)], src_data_rank=None)
    module.register_parameter("cap", nn.Parameter(cap))


CAPS: dict[str, Callable[[nn.Module, DeviceMesh], nn.Module]] = {
    "sharded": lambda module, mesh: distribute_module(module, mesh, shard_caps),
    "replicated": distribute_module,
}


def in_tensor_parallel(network: Network, mesh: DeviceMesh, caps: str) -> Network:
    """first and channels by columns, second by rows, and the layer's cap on every process."""
    model = copy.deepcopy(network)
    plan = {
        "first": ColwiseParallel(use_local_output=False),
        "second": RowwiseParallel(use_local_output=False),
        "last": ColwiseParallel(output_layouts=Replicate()),
    }
    parallelize_module(model, mesh, plan)
    CAPS[caps](model.channels, mesh)
    distribute_module(model.layer, mesh)
    return model


@on_processes(2, 4)
@pytest.mark.parametrize("fused", (False, True))
@pytest.mark.parametrize("caps", CAPS)
def test_tensor_parallel(caps: str, fused: bool) -> None:
    network = Network(fused)
    model = in_tensor_parallel(network, mesh_of(torch.distributed.get_world_size()), caps)
    if fused:
        # The penalty of a DTensor cap is a DTensor.
        model.register_forward_hook(lambda module, x, output: (output[0], output[1].full_tensor()))
    assert_as_in_one_process(model, network, data())


@on_processes(4)
@pytest.mark.parametrize("caps", CAPS)
def test_fully_sharded_tensor_parallel(caps: str) -> None:
    network = Network()
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("batch", "columns"))
    model = in_tensor_parallel(network, mesh["columns"], caps)
    for module in (model.channels, model.second, model):
        fully_shard(module, mesh=mesh["batch"])
    assert model.channels.cap.device_mesh.ndim == 2
    assert_as_in_one_process(model, network, shard_of_batch(2, mesh["batch"].get_local_rank()))


@on_processes(2, 4)
def test_sequence_parallel() -> None:
    mesh = mesh_of(torch.distributed.get_world_size())
    network = nn.Sequential(
        nn.LayerNorm(6, dtype=torch.float64), dreluop.DReLU(6, init=0.5, dim=-1, dtype=torch.float64)
    )
    model = parallelize_module(
        copy.deepcopy(network), mesh, {"0": SequenceParallel(), "1": SequenceParallel(use_local_output=False)}
    )
    x = torch.randn(3, 8, 6, dtype=torch.float64)
    target = torch.randn(3, 8, 6, dtype=torch.float64)
    (F.mse_loss(network(x), target) + dreluop.cap_penalty(network, BALANCER)).backward()
    y = model(distribute_tensor(x, mesh, [Shard(1)]))
    assert y.placements == (Shard(1),)
    (F.mse_loss(y.full_tensor(), target) + dreluop.cap_penalty(model, BALANCER).full_tensor()).backward()
    for got, want in zip(model.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(full_tensor(got.grad), want.grad)


@on_processes(2)
def test_a_loss_of_one_process_plus_a_sharded_penalty_is_refused() -> None:
    model = fully_shard(Network(), mesh=mesh_of(2), reshard_after_forward=True)
    x, y = shard_of_batch(2, torch.distributed.get_rank())
    try:
        (F.mse_loss(model(x), y) + dreluop.cap_penalty(model, BALANCER)).backward()
    except RuntimeError as error:
        assert "mixed torch.Tensor and DTensor" in str(error), error
    else:
        raise AssertionError("no error")
