from __future__ import annotations

from functools import partial

import pytest
import torch
import torch._dynamo
from torch import Tensor

from benchmarks.kernels import contenders as c
from dreluop.backends import reference
from dreluop.granularity import broadcast_shape
from tests.conftest import INTERPRETED

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SHAPES = {
    "layer": ((3, 5, 4, 7), (1,)),
    "channel": ((3, 5, 4, 7), (5,)),
    "channels-last": ((3, 5, 4, 7), (5,)),
    "neuron": ((6, 9), (9,)),
    "neuron-image": ((3, 5, 4, 7), (5, 4, 7)),
}
# Triton's takes part where its kernels are interpreted, in a process of its own (make test-triton).
EAGER = [
    contender
    for contender in c.CONTENDERS.values()
    if not contender.compiled and (contender is not c.OURS_TRITON or INTERPRETED)
]


def inputs(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape, cap_shape = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    if name == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.rand(cap_shape, generator=generator, dtype=dtype) + 0.2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("contender", EAGER, ids=lambda contender: contender.name)
class TestEagerContenders:
    def test_value(self, contender: c.Contender, name: str, dtype: torch.dtype) -> None:
        x, cap = inputs(name, dtype)
        y = contender.ready()(x, cap, 1)
        torch.testing.assert_close(y, reference.forward(x, cap), rtol=0, atol=0, check_stride=True)

    def test_value_in_place(self, contender: c.Contender, name: str, dtype: torch.dtype) -> None:
        x, cap = inputs(name, dtype)
        expected = reference.forward(x, cap)
        assert contender.inplace is not None
        y = contender.inplace(x, cap, 1)
        assert y is x
        torch.testing.assert_close(x, expected, rtol=0, atol=0, check_stride=True)

    def test_fp32_cap_is_rounded_to_the_dtype_of_x(self, contender: c.Contender, name: str, dtype: torch.dtype) -> None:
        x, cap = inputs(name, dtype)
        cap = cap.float() * 1.001
        y = contender.ready()(x, cap, 1)
        torch.testing.assert_close(y, reference.forward(x, cap), rtol=0, atol=0)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("contender", EAGER, ids=lambda contender: contender.name)
def test_gradients(contender: c.Contender, name: str) -> None:
    x, cap = inputs(name, torch.float64)
    grad = torch.randn_like(x)
    capped = x >= cap.reshape(broadcast_shape(x.shape, cap.shape, 1))
    assert capped.any() and not capped.all(), "the caps must take part"
    expected = reference.backward(grad, reference.forward(x, cap), cap, 1, (), True, True, None, None)[:2]
    x.requires_grad_()
    cap.requires_grad_()
    found = torch.autograd.grad(contender.ready()(x, cap, 1), (x, cap), grad)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("contender", EAGER, ids=lambda contender: contender.name)
def test_bias_and_residual_are_added_first(contender: c.Contender, name: str) -> None:
    x, cap = inputs(name, torch.float64)
    bias = torch.randn(cap.shape if cap.ndim > 1 else x.shape[1:2], dtype=torch.float64)
    residual = torch.randn_like(x)
    for more in ({"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
        expected = reference.forward(x, cap, 1, **more)
        torch.testing.assert_close(contender.ready()(x, cap, 1, **more), expected, rtol=0, atol=0)


def test_compiled_contender_agrees() -> None:
    x, cap = inputs("neuron", torch.float32)
    y = c.COMPILED.ready()(x, cap, 1)
    torch.testing.assert_close(y, reference.forward(x, cap), rtol=0, atol=0)


def test_compiled_contender_serves_more_shapes_than_torch_recompiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for size in range(2, torch._dynamo.config.recompile_limit + 4):
        x, cap = torch.randn(3, size), torch.rand(size)
        torch.testing.assert_close(c.COMPILED.ready()(x, cap, 1), reference.forward(x, cap), rtol=0, atol=0)


def test_only_relu_minimum_is_right_for_negative_caps() -> None:
    x, _ = inputs("channel", torch.float32)
    cap = torch.full((5,), -0.5)
    zero = torch.zeros_like(x)
    torch.testing.assert_close(c.relu_minimum(x, cap), zero, rtol=0, atol=0)
    torch.testing.assert_close(c.ours(x, cap), zero, rtol=0, atol=0)
    torch.testing.assert_close(c.clamp_tensor(x, cap), zero - 0.5, rtol=0, atol=0)


def test_channel_dimension_is_passed_on() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    cap = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    for contender in EAGER:
        torch.testing.assert_close(contender.call(x, cap, -1), reference.forward(x, cap, -1), rtol=0, atol=0)
