"""``torch.set_default_device`` says where new tensors go, and nothing about those that are given."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dreluop import DReLU, SReLU, cap_penalty, capped_relu, project_caps, saturation, use_backend
from dreluop.adaptive import measure_std, smooth_forward, surrogate_backward
from dreluop.cli import selfcheck
from dreluop.diagnostics import SaturationMonitor
from dreluop.surgery import (
    calibrate_caps,
    cap_summary,
    insert_head,
    insert_stem,
    replace_activations,
    set_caps,
    to_torch,
)
from tests.support.devices import new_tensors_on_meta

pytestmark = pytest.mark.usefixtures("elsewhere")


@pytest.fixture
def elsewhere() -> Iterator[None]:
    with new_tensors_on_meta():
        yield


def on_cpu(make: Callable[[], Any]) -> Any:
    with torch.device("cpu"):
        return make()


def plain_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3))


def capped_network() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), DReLU(6), nn.Linear(6, 3))


def x_of(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, torch.Size(shape).numel(), device="cpu").reshape(shape)


def devices(model: nn.Module) -> set[str]:
    return {tensor.device.type for tensor in [*model.parameters(), *model.buffers()]}


@pytest.mark.parametrize("value", [0.5, {"1": 0.5}], ids=["number", "by name"])
def test_set_caps(value: Any) -> None:
    model = on_cpu(capped_network)
    assert set_caps(model, value) == ["1"]
    assert model[1].cap.tolist() == [0.5] * 6


def test_calibrate_and_summary() -> None:
    model = on_cpu(capped_network)
    calibrate_caps(model, [x_of(8, 5)], quantile=1.0, floor=1e-3)
    largest = model[0](x_of(8, 5)).detach().amax(0)
    alive = largest > 1e-3
    assert torch.equal(model[1].cap.detach()[alive], largest[alive])
    assert len(cap_summary(model).layers) == 1


@pytest.mark.parametrize("granularity", ["layer", "channel", "neuron"])
def test_replace_activations(granularity: Any) -> None:
    model = on_cpu(plain_network)
    replace_activations(model, granularity=granularity, example_input=x_of(2, 1, 4, 4))
    assert isinstance(model[1], DReLU)
    assert devices(model) == {"cpu"}
    assert model(x_of(2, 1, 4, 4)).device.type == "cpu"


def test_insert_head_and_stem() -> None:
    model = on_cpu(plain_network)
    insert_head(model, width=7)
    insert_stem(model, channels=2, granularity="neuron", example_input=x_of(2, 1, 4, 4))
    assert devices(model) == {"cpu"}
    assert model(x_of(2, 1, 4, 4)).device.type == "cpu"
    assert to_torch(model)(x_of(2, 1, 4, 4)).device.type == "cpu"


class Doubled(nn.Module):
    def forward(self, original: Tensor) -> Tensor:
        return 2 * original

    def right_inverse(self, cap: Tensor) -> Tensor:
        return cap / 2


@pytest.mark.parametrize("make", [lambda: DReLU(3, init=4.0), lambda: SReLU(4.0)], ids=["DReLU", "SReLU"])
@pytest.mark.parametrize("parametrized", [False, True])
def test_reset_parameters(make: Callable[[], Any], parametrized: bool) -> None:
    layer = on_cpu(make)
    if parametrized:
        parametrize.register_parametrization(layer, "cap", Doubled())
    for tensor in [*layer.parameters(), *layer.buffers()]:
        tensor.detach().fill_(9)
    layer.reset_parameters()
    assert set(layer.cap.tolist()) == {4.0}


@pytest.mark.parametrize("chosen", [None, "reference"])
@pytest.mark.parametrize("options", [{}, {"save": "mask"}, {"balancer": 0.1}], ids=["", "mask", "balancer"])
def test_functions(chosen: Any, options: dict[str, Any]) -> None:
    x = x_of(4, 5).requires_grad_()
    cap = torch.full((5,), 0.5, device="cpu", requires_grad=True)
    with use_backend(chosen):
        result = capped_relu(x, cap, bias=cap, **options)
        y = result[0] if isinstance(result, tuple) else result
        dx, dcap = torch.autograd.grad(y.sum(), (x, cap), create_graph=True)
        counts = saturation(x, cap)
        penalty = cap_penalty([cap], 0.1)
    assert {t.device.type for t in (y, dx, dcap, counts.off, counts.has_gradient, penalty)} == {"cpu"}
    project_caps(cap, 0.75)
    assert cap.tolist() == [0.75] * 5


def test_measuring_and_surrogates() -> None:
    model, x = on_cpu(capped_network), x_of(4, 5).requires_grad_()
    with SaturationMonitor(model, every=1) as monitor:
        model(x)
    assert monitor.latest is not None
    (std,) = measure_std(model, x).values()
    assert std.device.type == "cpu"
    for context in (surrogate_backward("soft"), surrogate_backward("soft", std=1.0), smooth_forward()):
        with context:
            (gradient,) = torch.autograd.grad(model(x).sum(), x)
        assert gradient.device.type == "cpu"


def test_selfcheck(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcheck, "FLOAT_DTYPES", {torch.float32})
    results = selfcheck.run()
    assert results
    assert all(result.agrees for result in results)
