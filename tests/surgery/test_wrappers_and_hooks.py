"""Forwards and classes that others set, wrappers, and hooks: handled, reported or refused; never lost."""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize

from dreluop import DReLU
from dreluop.surgery import insert_head, replace_activations
from tests.surgery.helpers import open_caps
from tests.surgery.models import ResidualBlock, SharedBlock, Users


class Weighted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.weight = nn.Linear(3, 3), nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return functional.relu(self.linear(x) * self.weight)


def test_a_forward_set_on_the_instance_stays() -> None:
    patched, chain = nn.ReLU(), nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    patched.forward = lambda x: x * 2  # type: ignore[method-assign]
    chain.forward = types.MethodType(lambda self, x: self[1](self[0](x)) * 2, chain)  # type: ignore[method-assign]
    model = nn.Sequential(chain, patched)
    report = replace_activations(model, granularity="layer")
    assert not report.left
    assert [site.name for site in report.replaced] == ["0.1"]
    assert model[1] is patched
    x = torch.randn(2, 3)
    assert torch.equal(model(x), chain[0](x).relu() * 4)


def test_parametrized_weights_stay_so_and_a_parametrized_class_is_reported() -> None:
    model = nn.Sequential(Weighted(), Weighted())
    for block in model:
        parametrizations.weight_norm(block.linear)
    parametrize.register_parametrization(model[1], "weight", nn.Softplus())
    x = torch.randn(2, 3)
    want = model(x)
    report = replace_activations(model)
    assert [site.name for site in report.replaced] == ["0.relu"]
    assert [(one.module, one.reason) for one in report.remaining] == [
        ("1", "its class was made by torch.nn.utils.parametrize; apply surgery before")
    ]
    assert torch.equal(model(x), want)
    parametrize.remove_parametrizations(model[1], "weight")
    parametrize.remove_parametrizations(model[0].linear, "weight")
    assert model(x).shape == want.shape


def test_quantized_layers_that_hide_a_relu_are_reported() -> None:
    intrinsic = pytest.importorskip("torch.ao.nn.intrinsic")
    quantization = pytest.importorskip("torch.ao.quantization")
    fused = intrinsic.ConvReLU2d(nn.Conv2d(3, 4, 1), nn.ReLU())
    trained = intrinsic.qat.ConvReLU2d(4, 4, 1, qconfig=quantization.get_default_qat_qconfig())
    report = replace_activations(nn.Sequential(fused, trained))
    assert [site.name for site in report.replaced] == ["0.1"]
    assert [(one.module, one.reason) for one in report.remaining] == [("1", "it computes its ReLU inside")]


@pytest.mark.parametrize("change", [replace_activations, insert_head], ids=["replace", "head"])
@pytest.mark.usefixtures("process_group")
def test_sharded_modules_are_refused(change: Callable[[nn.Module], Any]) -> None:
    fsdp = pytest.importorskip("torch.distributed.fsdp")
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    fsdp.fully_shard(inner, mesh=torch.distributed.device_mesh.init_device_mesh("cpu", (1,)))
    model = nn.Sequential(inner)
    before = repr(model)
    with pytest.raises(ValueError, match="model: got one inside FSDPModule, which would not synchronize new caps"):
        change(model)
    assert repr(model) == before


@pytest.mark.parametrize("change", [replace_activations, insert_head], ids=["replace", "head"])
def test_compiled_parts_are_refused(change: Callable[[nn.Module], Any]) -> None:
    inner = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    itself = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    itself.compile(backend="eager")
    for model in (nn.Sequential(torch.compile(inner, backend="eager")), nn.Sequential(itself)):
        before = repr(model)
        with pytest.raises(ValueError, match="model: got a compiled module"):
            change(model)
        assert repr(model) == before


class Parallel(nn.DataParallel[nn.Module]):
    """A subclass that changes nothing."""


def test_data_parallel_inside_a_model() -> None:
    model = nn.Sequential(nn.DataParallel(nn.Sequential(nn.Linear(3, 4), nn.ReLU())), nn.Linear(4, 2))
    assert [site.name for site in replace_activations(model).replaced] == ["0.module.1"]
    assert model(torch.randn(2, 3)).shape == (2, 2)


def test_hooks_stay_and_their_handles_work() -> None:
    model = Users()
    seen: list[str] = []
    model.stages["low"][0].register_forward_hook(lambda *_: seen.append("block"))
    handle = model.stem[2].register_forward_hook(lambda *_: seen.append("stem"))
    replace_activations(model)
    model(torch.randn(2, 3, 6, 6))
    assert sorted(set(seen)) == ["block", "stem"]
    handle.remove()
    seen.clear()
    model(torch.randn(2, 3, 6, 6))
    assert seen.count("block") == 1
    assert not model.stem[2]._forward_hooks


def test_activations_do_not_share_hooks() -> None:
    model = ResidualBlock(6, 3, True)
    replace_activations(model)
    model.relu.register_forward_hook(lambda *_: None)
    assert not model.relu_1._forward_hooks


def test_data_parallel_wrapping() -> None:
    original = Users()
    model = nn.DataParallel(copy.deepcopy(original))
    report = replace_activations(model)
    assert all(site.name.startswith("module.") for site in report.sites)
    open_caps(model, report)
    x = torch.randn(2, 3, 6, 6)
    assert torch.equal(model(x), original(x))
    replica = model.module._replicate_for_data_parallel()
    assert type(replica) is type(model.module)


def test_distributed_wrapping_is_refused() -> None:
    distributed = torch.distributed
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        model = nn.Sequential(nn.parallel.DistributedDataParallel(nn.Sequential(nn.Linear(3, 3), nn.ReLU())))
    finally:
        distributed.destroy_process_group()
    with pytest.raises(ValueError, match="model: got one inside DistributedDataParallel, which would not synchronize"):
        replace_activations(model)


def test_full_backward_hooks_stay_full() -> None:
    seen: list[Any] = []
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    model[1].register_full_backward_hook(lambda module, inputs, outputs: seen.append((module, len(inputs))))
    model[1].register_full_backward_pre_hook(lambda module, outputs: seen.append("pre"))
    replace_activations(model)
    model(torch.randn(2, 3)).sum().backward()
    assert seen == ["pre", (model[1], 1)]
    with pytest.raises(RuntimeError, match="backward hooks"):
        model[1].register_backward_hook(lambda *_: None)


def test_hooks_get_what_they_got() -> None:
    seen: list[Tensor] = []
    model = ResidualBlock(6, 3, False)
    model.relu.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    handle = model.relu.register_forward_hook(lambda module, args, y: y.mul(2))
    x = torch.randn(2, 6, 5, 5)
    want = model(x)
    inputs, seen[:] = list(seen), []
    report = replace_activations(model)
    assert not report.fused
    notes = [site.reason for site in report.sites]
    assert notes[0] == ""
    assert notes[1] == "the activation's hooks run here too; their handles take them off the first call only"
    assert notes[2].startswith("not fused: the activation has hooks, which get the sum; the activation's hooks run")
    assert torch.equal(model(x), want)
    assert all(torch.equal(one, other) for one, other in zip(seen, inputs, strict=True))
    handle.remove()
    assert not model.relu._forward_hooks
    assert model.relu_1._forward_hooks


def test_a_block_with_hooks_is_called_as_before() -> None:
    calls: list[nn.Module] = []
    model = SharedBlock()
    model.block.register_forward_hook(lambda module, args, y: calls.append(module))
    replace_activations(model)
    model(torch.randn(2, 5))
    assert calls == [model.block] * 3


class Baseline(nn.Module):
    """One activation under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.second = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x)) if x.sum() > 0 else x


def test_an_activation_under_two_names_is_replaced_under_both() -> None:
    model = Baseline()
    assert [site.name for site in replace_activations(model, granularity="layer").replaced] == ["first", "second"]
    assert isinstance(model.second, DReLU)
