from __future__ import annotations

import sys

import pytest
import torch
from torch import nn

from dreluop import DReLU
from dreluop.surgery import calibrate_caps
from studies.drelu_paper.models import dense_drelu, dense_relu


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


def test_batches_of_a_loader_count_together():
    x = torch.rand(100, 5) * torch.arange(1, 6)
    one, many = DReLU(5), DReLU(5)
    calibrate_caps(nn.Sequential(one), [x])
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.zeros(100)), batch_size=7)
    result = calibrate_caps(nn.Sequential(many), loader, progress=False)
    assert torch.equal(one.cap, many.cap)
    assert torch.equal(one.cap, x.quantile(0.99, dim=0))
    assert result.batches == 15
    (row,) = result.layers
    assert (row.caps, row.dead, row.exact) == (5, 0, True)
    assert row.capped == pytest.approx((x >= one.cap).float().mean().item())
    assert "exact" in str(result)


def test_many_values_go_into_bins_with_one_per_cent_of_error():
    x = torch.rand(600, 4, 25, 25) * torch.arange(1, 5).reshape(4, 1, 1)
    layer = DReLU(4)
    result = calibrate_caps(nn.Sequential(layer), x.split(50))
    assert not result.layers[0].exact
    expected = x.transpose(0, 1).flatten(1).sort(dim=1).values[:, int(0.99 * 375000)]
    torch.testing.assert_close(layer.cap.detach(), expected, rtol=0.0102, atol=0)
    assert result.layers[0].capped == pytest.approx(0.01, abs=0.01)


def test_residual_sums_are_calibrated_as_sums():
    from dreluop.surgery import replace_activations  # noqa: PLC0415
    from tests.surgery.models import ResidualBlock  # noqa: PLC0415

    model = ResidualBlock(6, 3, True).eval()
    x = torch.randn(4, 6, 5, 5)
    sums = model.bn3(model.conv3(model.relu(model.conv2(model.relu(model.conv1(x)))))) + x
    replace_activations(model)
    calibrate_caps(model, [x], quantile=1.0)
    torch.testing.assert_close(model.relu_2.cap.detach(), sums.transpose(0, 1).flatten(1).amax(1))


def test_batch_norm_and_modes_are_left_alone():
    model = nn.Sequential(nn.BatchNorm1d(3), DReLU(3), nn.Dropout())
    model[2].eval()
    before = model[0].running_mean.clone()
    calibrate_caps(model, [torch.randn(8, 3) + 5])
    assert torch.equal(model[0].running_mean, before)
    assert [module.training for module in model] == [True, True, False]


def test_unreached_caps_can_be_kept():
    model = dense_drelu(0)
    model.unused = DReLU(init=7.0)
    result = calibrate_caps(model, [torch.rand(20, 784)], unreached="keep")
    assert result.unreached == ("unused",)
    assert model.unused.cap.item() == 7
    assert "not reached, caps kept: unused" in str(result)


def test_other_batches_go_through_a_function():
    layer = DReLU(3)
    calibrate_caps(
        nn.Sequential(layer), [{"x": torch.ones(2, 3)}], forward=lambda model, batch: model(batch["x"]), progress=False
    )
    assert layer.cap.tolist() == [1, 1, 1]


BAD_LOADERS = {
    "tensor": (
        torch.rand(2, 784),
        TypeError,
        "loader: got a Tensor, which gives samples; expected an iterable of batches",
    ),
    "number": (3, TypeError, "loader: got int; expected an iterable of batches"),
    "empty": ([], ValueError, "loader: got no batch; expected at least one"),
    "dictionary": ([{"x": 1}], TypeError, "loader: got a batch of type dict; expected a tensor"),
}


@pytest.mark.parametrize("name", BAD_LOADERS)
def test_bad_loaders(name):
    loader, error, message = BAD_LOADERS[name]
    model = dense_drelu(0)
    with pytest.raises(error, match=message):
        calibrate_caps(model, loader, progress=False)
    assert (model.activation.cap == 100).all()


def test_other_bad_arguments():
    model = dense_drelu(0)
    with pytest.raises(TypeError, match="quantile: got str; expected a number"):
        calibrate_caps(model, [torch.rand(2, 784)], "0.9")
    with pytest.raises(ValueError, match=r"relative_error: got 0.7; expected a number in \(0, 0.5\]"):
        calibrate_caps(model, [torch.rand(2, 784)], relative_error=0.7)
    with pytest.raises(ValueError, match='unreached: got \'skip\'; expected "raise" or "keep"'):
        calibrate_caps(model, [torch.rand(2, 784)], unreached="skip")
    with pytest.raises(
        ValueError, match=r"max_bytes: 128 caps need 531968 bytes of histograms .* and 1000 are allowed"
    ):
        calibrate_caps(model, [torch.rand(2, 784)], max_bytes=1000)
    with pytest.raises(RuntimeError, match="the 1 quantile of the pre-activations of '0' is infinite"):
        calibrate_caps(nn.Sequential(DReLU()), [torch.full((2, 4), torch.inf)], quantile=1.0)
    assert (model.activation.cap == 100).all()


def test_progress_bar_and_what_happens_without_tqdm(capsys, monkeypatch):
    layer = nn.Sequential(DReLU(3))
    calibrate_caps(layer, [torch.ones(2, 3)] * 4, progress=True)
    assert "0/4" in capsys.readouterr().err
    calibrate_caps(layer, [torch.ones(2, 3)] * 4, progress=False)
    assert capsys.readouterr().err == ""
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="progress: True needs tqdm"):
        calibrate_caps(layer, [torch.ones(2, 3)], progress=True)
    calibrate_caps(layer, [torch.ones(2, 3)])
    assert capsys.readouterr().err == ""
