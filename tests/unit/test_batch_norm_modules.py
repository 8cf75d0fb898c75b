"""BatchNormDReLU1d, 2d and 3d: state, statistics, copies, and what they refuse."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import dreluop
from dreluop import BatchNormDReLU1d, BatchNormDReLU2d, BatchNormDReLU3d, adaptive
from dreluop.caps.inspection import freeze_caps, set_caps

KINDS = {
    1: (BatchNormDReLU1d, nn.BatchNorm1d),
    2: (BatchNormDReLU2d, nn.BatchNorm2d),
    3: (BatchNormDReLU3d, nn.BatchNorm3d),
}


def batch(dimensions: int, seed: int = 0) -> Tensor:
    return torch.randn(5, 4, *[3] * dimensions, generator=torch.Generator().manual_seed(seed))


def apart(norm: nn.Module, cap: Tensor, x: Tensor, residual: Tensor | None = None) -> Tensor:
    y: Tensor = norm(x) if residual is None else norm(x) + residual
    return dreluop.capped_relu(y, cap)


@pytest.mark.parametrize(
    "options", [{}, {"momentum": None}, {"track_running_stats": False}, {"affine": False}], ids=str
)
@pytest.mark.parametrize("dimensions", KINDS)
def test_trains_as_batch_norm_and_activation_apart(dimensions: int, options: dict[str, Any]) -> None:
    ours, theirs = KINDS[dimensions]
    fused, norm = ours(4, init=0.7, **options), theirs(4, **options)
    norm.load_state_dict({key: value for key, value in fused.state_dict().items() if key != "cap"})
    for step in range(3):
        x, residual = batch(dimensions, step), batch(dimensions, 10 + step)
        torch.testing.assert_close(fused(x), apart(norm, fused.cap, x))
        torch.testing.assert_close(fused(x, residual), apart(norm, fused.cap, x, residual))
    fused.eval()
    norm.eval()
    torch.testing.assert_close(fused(x), apart(norm, fused.cap, x))
    state = fused.state_dict()
    assert set(state) == {*norm.state_dict(), "cap"}
    for key, value in norm.state_dict().items():
        torch.testing.assert_close(state[key], value)


def test_learns_by_sgd_as_apart() -> None:
    fused, norm = BatchNormDReLU2d(4, init=0.7), nn.BatchNorm2d(4)
    cap = nn.Parameter(torch.full((4,), 0.7))
    ours = torch.optim.SGD(fused.parameters(), 0.1)
    theirs = torch.optim.SGD([*norm.parameters(), cap], 0.1)
    for step in range(3):
        for optimizer, y in ((ours, fused(batch(2, step))), (theirs, apart(norm, cap, batch(2, step)))):
            optimizer.zero_grad()
            y.square().sum().backward()
            optimizer.step()
    for name, value in (("weight", norm.weight), ("bias", norm.bias), ("cap", cap)):
        torch.testing.assert_close(getattr(fused, name), value)


def test_is_a_batch_norm_with_a_cap_that_the_tools_find() -> None:
    model = nn.Sequential(BatchNormDReLU2d(4, init=2.0), BatchNormDReLU2d(4, init=1.0, num_parameters=1))
    assert isinstance(model[0], nn.BatchNorm2d)
    assert dreluop.cap_penalty(model, 0.5).item() == 0.5 * (4 * 4 + 1)
    assert model[1].penalty(0.5).item() == 0.5
    weights, caps = dreluop.param_groups(model, lr=0.1)
    assert [len(group["params"]) for group in (weights, caps)] == [4, 2]
    assert freeze_caps(model) == ["0", "1"]
    set_caps(model, 1)
    assert model[0].cap.tolist() == [1.0] * 4
    with torch.no_grad():
        model[0].cap.neg_()
    freeze_caps(model, False)
    dreluop.project_caps(model, 0.25)
    assert model[0].cap.tolist() == [0.25] * 4
    assert repr(model[0]) == f"BatchNormDReLU2d({nn.BatchNorm2d(4).extra_repr()}, init=2)"


def test_copies_saves_and_resets() -> None:
    module = BatchNormDReLU1d(4, init=0.5)
    module(batch(1))
    stored = io.BytesIO()
    torch.save(module.state_dict(), stored)
    stored.seek(0)
    other = BatchNormDReLU1d(4)
    other.load_state_dict(torch.load(stored))
    x = batch(1, 1)
    assert torch.equal(other.eval()(x), copy.deepcopy(module).eval()(x))
    with torch.no_grad():
        module.cap.fill_(3)
    module.reset_parameters()
    assert module.cap.tolist() == [0.5] * 4
    assert module.running_mean.tolist() == [0.0] * 4


def test_refusals() -> None:
    with pytest.raises(TypeError, match="convert_sync_batchnorm: got a BatchNormDReLU2d"):
        nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(nn.ReLU(), BatchNormDReLU2d(4)))
    with pytest.raises(TypeError, match=r"torch.jit.script: got a BatchNormDReLU1d"):
        torch.jit.script(BatchNormDReLU1d(4))
    with pytest.raises(ValueError, match="expected 4D input"):
        BatchNormDReLU2d(4)(batch(1))
    with pytest.raises(ValueError, match="one value per channel"):
        BatchNormDReLU2d(4)(torch.ones(1, 4, 1, 1))
    with pytest.raises(ValueError, match="num_parameters: got 3; expected 1, or num_features, 4"):
        BatchNormDReLU2d(4, num_parameters=3)
    with pytest.raises(TypeError, match="num_parameters: got bool"):
        BatchNormDReLU2d(4, num_parameters=True)
    with pytest.raises(TypeError, match="num_features: got float"):
        BatchNormDReLU2d(8.0)
    with pytest.raises(TypeError, match=r"dtype: got dtype torch\.int32"):
        BatchNormDReLU2d(4, dtype=torch.int32)
    with pytest.raises(ValueError, match="init: got 0"):
        BatchNormDReLU2d(4, init=0)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("other", [None, torch.float64], ids=str)
def test_pre_activation(training: bool, other: torch.dtype | None) -> None:
    module, norm = BatchNormDReLU2d(4).train(training), nn.BatchNorm2d(4).train(training)
    before = copy.deepcopy(module.state_dict())
    x, residual = batch(2), batch(2, 1).to(other or torch.float32)
    torch.testing.assert_close(module.pre_activation(x), norm(x).detach())
    torch.testing.assert_close(module.pre_activation(x, residual), (norm(x) + residual).detach())
    assert not module.pre_activation(x).requires_grad
    # Not even by 0 times what is infinite.
    module.pre_activation(torch.full_like(x, torch.inf))
    assert all(torch.equal(value, before[key]) for key, value in module.state_dict().items())


def test_no_channels_as_in_torch() -> None:
    assert BatchNormDReLU1d(0).cap.shape == nn.BatchNorm1d(0).weight.shape
    with pytest.raises(ValueError, match="num_features: got -1; expected at least 0"):
        BatchNormDReLU1d(-1)


@pytest.mark.parametrize("how", ["parametrized", "subclass"])
def test_remove_caps_refuses_what_it_does_not_know(how: str) -> None:
    class Other(BatchNormDReLU2d):
        def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
            return super().forward(x) * 2

    module = Other(4) if how == "subclass" else BatchNormDReLU2d(4)
    if how == "parametrized":
        parametrize.register_parametrization(module, "cap", nn.Identity())
        adaptive.remove_caps(module)
        parametrize.register_parametrization(module, "weight", nn.Identity())
    message = "a forward of its own" if how == "subclass" else "parametrizations of more than its cap"
    with pytest.raises(TypeError, match=message):
        adaptive.remove_caps(module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_running_statistics_of_half_types_are_rounded_once(dtype: torch.dtype) -> None:
    ours, apart = BatchNormDReLU2d(1).to(dtype), nn.BatchNorm2d(1).to(dtype)
    # A variance of 90,000 is beyond float16.
    x = (torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * 300).to(dtype)
    ours(x), apart(x)
    torch.testing.assert_close(ours.running_var, apart.running_var)
    torch.testing.assert_close(ours.running_mean, apart.running_mean)


def test_backward_of_inference_after_a_training_step() -> None:
    module = BatchNormDReLU1d(4).eval()
    x = torch.randn(5, 4, requires_grad=True)
    y = module(x)
    expected = torch.autograd.grad(y.sum(), x, retain_graph=True)
    module.train()(torch.randn(5, 4))
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], expected[0])


def test_compiled_and_exported() -> None:
    module = BatchNormDReLU2d(4, init=0.7)
    x = batch(2)
    exported = torch.export.export(module.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), module(x))
    module.train()
    compiled = torch.compile(copy.deepcopy(module), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
