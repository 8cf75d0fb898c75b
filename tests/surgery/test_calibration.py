from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks.robustness.models import dense_drelu, dense_relu
from dreluop import DReLU
from dreluop.surgery import calibrate_caps


def test_caps_are_the_quantile_of_each_neuron():
    model = dense_drelu(0)
    x = torch.rand(200, 784)
    z = model.head(model.body(x)).detach()
    expected = z.quantile(0.99, dim=0)
    alive = expected > 1e-3
    assert 64 < alive.sum() < 128
    calibrate_caps(model, [x])
    torch.testing.assert_close(model.activation.cap.detach()[alive], expected[alive])
    capped = (z[:, alive] > model.activation.cap[alive]).float().mean()
    assert 0 < capped <= 0.011


def test_dead_neurons_get_the_median_of_the_living():
    x = torch.tensor([[1.0, 2.0, 7.0, -1.0, 5e-4]]).expand(10, 5)
    layer = DReLU(5)
    calibrate_caps(nn.Sequential(layer), [x])
    assert layer.cap.tolist() == [1, 2, 7, 2, 2]


def test_a_wholly_dead_layer_gets_the_floor():
    layer = DReLU(3)
    calibrate_caps(nn.Sequential(layer), [-torch.ones(4, 3)], floor=0.25)
    assert layer.cap.tolist() == [0.25] * 3


def test_channel_layer_and_neuron_caps():
    x = torch.rand(50, 3, 4, 5) * torch.tensor([1.0, 2.0, 3.0]).reshape(3, 1, 1)
    for layer, expected in (
        (DReLU(3), x.transpose(0, 1).reshape(3, -1).quantile(0.9, dim=1)),
        (DReLU(1), x.flatten().quantile(0.9).reshape(1)),
        (DReLU((3, 4, 5)), x.quantile(0.9, dim=0)),
        (DReLU(5, dim=-1), x.reshape(-1, 5).quantile(0.9, dim=0)),
    ):
        calibrate_caps(nn.Sequential(layer), [x], quantile=0.9)
        torch.testing.assert_close(layer.cap.detach(), expected)


def test_later_layers_are_measured_with_the_old_caps_in_place():
    model = nn.Sequential(DReLU(1), DReLU(1))
    calibrate_caps(model, [torch.linspace(0, 1, 101).reshape(-1, 1)], quantile=0.5)
    assert [layer.cap.item() for layer in model] == pytest.approx([0.5, 0.5])


def test_nothing_else_changes():
    model = dense_drelu(0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    calibrate_caps(model, [torch.rand(20, 784)])
    assert model.training
    assert not model.activation._forward_pre_hooks
    assert model.activation.cap.requires_grad
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"activation.cap"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"quantile": 0.0}, r"quantile: got 0.0; expected a number in \(0, 1\]"),
        ({"quantile": 1.1}, "quantile: got 1.1"),
        ({"floor": 0.0}, "floor: got 0.0; expected a number > 0"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        calibrate_caps(dense_drelu(0), [torch.rand(2, 784)], **options)


def test_a_model_without_caps_is_refused():
    with pytest.raises(ValueError, match="model: got a DenseNetwork without any DReLU"):
        calibrate_caps(dense_relu(0), [torch.rand(2, 784)])


def test_a_cap_that_no_input_reaches_is_named():
    model = dense_relu(0)
    model.unused = DReLU()
    with pytest.raises(ValueError, match="its DReLU 'unused' is not reached"):
        calibrate_caps(model, [torch.rand(2, 784)])


def test_nan_is_refused():
    model = dense_drelu(0)
    with pytest.raises(RuntimeError, match="the pre-activations of 'activation' hold NaN"):
        calibrate_caps(model, [torch.full((2, 784), torch.nan)])
    assert (model.activation.cap == 100).all()
