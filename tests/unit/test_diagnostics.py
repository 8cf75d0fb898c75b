"""SaturationMonitor: what it measures, when, what it writes, and when it warns."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from dreluop import DReLU, SReLU
from dreluop.diagnostics import SaturationMonitor, SaturationWarning
from dreluop.surgery import cap_summary, replace_activations, set_caps
from tests.surgery.models import ResidualBlock


def network(init: float = 1.0) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 6), DReLU(6, init=init), nn.Linear(6, 3), SReLU(0.5))


def test_a_snapshot_is_what_the_step_saw() -> None:
    model, x = network(), torch.randn(50, 4)
    with SaturationMonitor(model) as monitor:
        model(x)
    want = cap_summary(model, [x], progress=False)
    assert monitor.latest is not None
    assert monitor.latest.layers == want.layers
    assert str(want) in str(monitor)
    assert str(monitor).startswith("step 1\nlayer ")


@pytest.mark.parametrize("inplace", [True, False])
def test_a_fused_sum_is_measured_before_it_is_capped(inplace: bool) -> None:
    model = ResidualBlock(6, 3, inplace)
    replace_activations(model, init=0.5)
    x = torch.randn(5, 6, 4, 4)
    sums = model.bn3(model.conv3(model.relu_1(model.conv2(model.relu(model.conv1(x)))))) + x
    with SaturationMonitor(model) as monitor:
        model(x)
    row = monitor.latest.layers[2]
    assert row.name == "relu_2"
    assert row.capped == pytest.approx((sums >= 0.5).double().mean().item())
    std = sums.transpose(0, 1).flatten(1).std(1, correction=0)
    assert row.cap_over_std == pytest.approx((0.5 / std).median().item(), rel=1e-4)


def test_a_sum_that_broadcasts_is_measured_whole() -> None:
    model = ResidualBlock(6, 3, False)
    replace_activations(model, init=0.5)
    layer, x, residual = model.relu_2, torch.randn(4, 6, 3, 3), torch.randn(4, 6, 1, 1)
    want = (x + residual >= 0.5).double().mean().item()
    with SaturationMonitor(layer) as monitor:
        layer(x, residual)
    assert monitor.latest.layers[0].capped == pytest.approx(want)


def test_only_every_nth_training_step_is_measured() -> None:
    model = network()
    monitor = SaturationMonitor(model, every=3)
    for _ in range(7):
        model(torch.randn(5, 4))
        model.eval()(torch.randn(5, 4))
        model.train()
    assert [snapshot.step for snapshot in monitor.history] == [1, 4, 7]
    assert monitor.step == 7


def test_measuring_changes_nothing() -> None:
    model, x = network(), torch.randn(50, 4, requires_grad=True)
    want = model(x)
    (gradient,) = torch.autograd.grad(want.square().sum(), x)
    with SaturationMonitor(model):
        got = model(x)
        (other,) = torch.autograd.grad(got.square().sum(), x)
    assert torch.equal(got, want)
    assert torch.equal(gradient, other)


def test_close_takes_every_hook_off() -> None:
    model = network()
    monitor = SaturationMonitor(model)
    monitor.close()
    model(torch.randn(5, 4))
    assert (monitor.step, monitor.latest, str(monitor)) == (0, None, "nothing measured yet")
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_forward_that_fails_leaves_no_half_step() -> None:
    model = network()
    monitor = SaturationMonitor(model, every=1)
    with pytest.raises(RuntimeError):
        model(torch.randn(5, 3))
    model(torch.randn(5, 4))
    assert [len(snapshot.layers) for snapshot in monitor.history] == [2]


def test_a_model_that_is_a_capped_layer_itself() -> None:
    model = DReLU(3, init=0.5)
    with pytest.warns(SaturationWarning, match="the model 100%"), SaturationMonitor(model, every=1) as monitor:
        model(torch.ones(2, 3))
        model(torch.ones(2, 3))
    assert [snapshot.layers[0].capped for snapshot in monitor.history] == [1, 1]


class Writer:
    def __init__(self) -> None:
        self.scalars: dict[str, tuple[float, int]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag] = (value, step)


def test_writer_and_log() -> None:
    model, writer, lines = network(), Writer(), list[str]()
    monitor = SaturationMonitor(model, every=2, writer=writer, tag="caps", log=lines.append)
    for _ in range(3):
        model(torch.randn(5, 4))
    first, second = monitor.latest.layers
    assert writer.scalars["caps/1/capped"] == (first.capped, 3)
    assert writer.scalars["caps/3/cap_max"] == (0.5, 3)
    assert len(writer.scalars) == 16
    assert [line.split(":")[0] for line in lines] == ["step 1", "step 3"]
    assert lines[-1] == monitor.latest.line
    assert f"capped {(first.capped + second.capped) / 2:.1%}" in lines[-1]


def warnings_of(model: nn.Module, x: torch.Tensor, steps: int = 5, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught, SaturationMonitor(model, every=1, **options):
        warnings.simplefilter("always")
        for _ in range(steps):
            model(x)
    assert all(one.category is SaturationWarning for one in caught)
    return [str(one.message) for one in caught]


def test_a_healthy_network_is_not_warned_of() -> None:
    assert warnings_of(nn.Sequential(DReLU(64, init=1.5)), torch.randn(100, 64)) == []


def test_masking_is_warned_of_once() -> None:
    x = torch.randn(100, 4)
    x[:6] = 9
    (message,) = warnings_of(nn.Sequential(nn.Identity(), DReLU(4, init=3.0)), x.abs() * 0.5)[:1]
    assert "step 1: more than 5 % of the samples have no live unit" in message
    assert message.endswith("(gradient masking): 1 6%")
    x[:1] = 0.5
    assert warnings_of(nn.Sequential(DReLU(4, init=3.0)), x.abs() * 0.5) == []


def test_idle_caps_are_warned_of_once_and_after_patience() -> None:
    model = nn.Sequential(DReLU(64, init=100.0))
    x = torch.randn(100, 64)
    assert warnings_of(model, x, steps=2) == []
    (message,) = warnings_of(model, x, steps=9)
    assert message.startswith("step 3: no cap has capped anything in 3 measured steps: a plain ReLU network so far")
    assert warnings_of(model, x, steps=3, patience=4) == []


def test_dead_caps_and_the_step_regime_are_warned_of() -> None:
    model = nn.Sequential(DReLU(64, init=1.5))
    with torch.no_grad():
        model[0].cap[3] = 0
    (message,) = warnings_of(model, torch.randn(100, 64))
    assert message == (
        "step 1: caps <= 0: they give 0 and get no gradient; clamp them to a small positive floor: 0"
    )  # fmt: skip
    set_caps(model, 0.05)
    masking, step_regime = warnings_of(model, torch.randn(100, 64))
    assert "(gradient masking)" in masking
    assert step_regime.startswith("step 1: cap / std(x) is below 0.1: the layer is a step function: 0 0.0")


def test_a_cap_of_zero_on_a_constant_hides_no_step_function() -> None:
    model = nn.Sequential(DReLU(3, init=0.001))
    with torch.no_grad():
        model[0].cap[0] = 0
    x = torch.randn(100, 3)
    x[:, 0] = 1
    assert any("step function" in text for text in warnings_of(model, x))


def compiled_in_place() -> nn.Module:
    model = network()
    model.compile()
    return model


def on_two_devices() -> nn.Module:
    model = nn.DataParallel(network())
    model.device_ids = [0, 1]
    return model


COMPILED = "model: got a compiled module"
BAD: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no_caps": (lambda: SaturationMonitor(nn.Linear(2, 2)), ValueError, "model: got a Linear without any DReLU"),
    "no_model": (lambda: SaturationMonitor(3), TypeError, "model: got int; expected a torch.nn.Module"),
    "every": (lambda: SaturationMonitor(network(), every=0), ValueError, "every: got 0; expected at least 1"),
    "every_type": (lambda: SaturationMonitor(network(), every=2.0), TypeError, "every: got float; expected an int"),
    "patience": (lambda: SaturationMonitor(network(), patience=0), ValueError, "patience: got 0; expected at least 1"),
    "writer": (lambda: SaturationMonitor(network(), writer=3), TypeError, "writer: got int; expected an object with"),
    "log": (lambda: SaturationMonitor(network(), log="x"), TypeError, "log: got str; expected a function of a string"),
    "compiled": (lambda: SaturationMonitor(torch.compile(network())), ValueError, COMPILED),
    "compiled in place": (lambda: SaturationMonitor(compiled_in_place()), ValueError, COMPILED),
    "compiled inside": (lambda: SaturationMonitor(nn.Sequential(torch.compile(network()))), ValueError, COMPILED),
    "several devices": (lambda: SaturationMonitor(on_two_devices()), ValueError, "model: got a DataParallel on 2"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_argument(name: str) -> None:
    call, error, message = BAD[name]
    with pytest.raises(error, match=message):
        call()


def test_log_may_be_a_loggers_method(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with caplog.at_level(logging.INFO), SaturationMonitor(model, log=logging.getLogger("caps").info):
        model(torch.randn(5, 4))
    assert "step 1: off" in caplog.text
