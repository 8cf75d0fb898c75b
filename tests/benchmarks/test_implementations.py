from __future__ import annotations

from functools import partial

import pytest
import torch
import torch._dynamo
from torch import Tensor

import dreluop
from benchmarks.harness import implementations as c
from dreluop._internal.shapes import broadcast_shape
from dreluop.backends import reference, selection
from tests.support import oracle
from tests.support.backends import INTERPRETED

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
    implementation
    for implementation in c.EVERY
    if not implementation.compiled
    and implementation.is_installed
    and (implementation is not c.OURS_TRITON or INTERPRETED)
]
LEARNING = [implementation for implementation in EAGER if implementation.fixed_cap is None]
EXACT = [implementation for implementation in LEARNING if implementation.exact]
IN_PLACE = [implementation for implementation in EXACT if implementation.inplace is not None]
FIXED = [implementation for implementation in EAGER if implementation.fixed_cap is not None]
COMPILED = [implementation for implementation in c.EVERY if implementation.compiled]


def name_of(implementation: c.Implementation) -> str:
    return implementation.name


def inputs(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    shape, cap_shape = SHAPES[name]
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator, dtype=dtype)
    if name == "channels-last":
        x = x.contiguous(memory_format=torch.channels_last)
    return x, torch.rand(cap_shape, generator=generator, dtype=dtype) + 0.2


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", SHAPES)
class TestValues:
    @pytest.mark.parametrize("implementation", EXACT, ids=name_of)
    def test_new(self, implementation: c.Implementation, name: str, dtype: torch.dtype) -> None:
        x, cap = inputs(name, dtype)
        y = implementation.ready()(x, cap, 1)
        torch.testing.assert_close(y, reference.capped_relu(x, cap), rtol=0, atol=0, check_stride=True)
        implementation.check(y, x, cap)

    @pytest.mark.parametrize("implementation", IN_PLACE, ids=name_of)
    def test_in_place(self, implementation: c.Implementation, name: str, dtype: torch.dtype) -> None:
        x, cap = inputs(name, dtype)
        expected = reference.capped_relu(x, cap)
        assert implementation.inplace is not None
        y = implementation.inplace(x, cap, 1)
        assert y is x
        torch.testing.assert_close(x, expected, rtol=0, atol=0, check_stride=True)

    @pytest.mark.parametrize("implementation", EXACT, ids=name_of)
    def test_fp32_cap_is_rounded_to_the_dtype_of_x(
        self, implementation: c.Implementation, name: str, dtype: torch.dtype
    ) -> None:
        x, cap = inputs(name, dtype)
        cap = cap.float() * 1.001
        y = implementation.ready()(x, cap, 1)
        torch.testing.assert_close(y, reference.capped_relu(x, cap), rtol=0, atol=0)

    def test_pact_rounds(self, name: str, dtype: torch.dtype) -> None:
        x, cap = inputs(name, dtype)
        y = c.PACT.ready()(x, cap, 1)
        c.PACT.check(y, x, cap)
        # The bound that it is given is not slack by orders of magnitude.
        assert not torch.equal(y, reference.capped_relu(x, cap))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", LEARNING, ids=name_of)
def test_gradients(implementation: c.Implementation, name: str) -> None:
    x, cap = inputs(name, torch.float64)
    grad = torch.randn_like(x)
    capped = x >= cap.reshape(broadcast_shape(x.shape, cap.shape, 1))
    assert capped.any() and not capped.all(), "the caps must take part"
    expected = oracle.grad_x(grad, x, cap), oracle.grad_cap(grad, x, cap)[0]
    x.requires_grad_()
    cap.requires_grad_()
    found = torch.autograd.grad(implementation.ready()(x, cap, 1), implementation.inputs(x, cap), grad)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("inplace", [False, True])
@pytest.mark.parametrize("implementation", FIXED, ids=name_of)
def test_fixed_caps(implementation: c.Implementation, inplace: bool) -> None:
    assert implementation.fixed_cap is not None
    x, cap = inputs("layer", torch.float64)
    x *= 8
    m = torch.full_like(cap, implementation.fixed_cap)
    assert (x > m).any()
    implementation.check(implementation.ready()(x, cap, 1), x, cap)
    if inplace:
        assert implementation.inplace is not None
        assert torch.equal(implementation.inplace(x.clone(), cap, 1), oracle.forward(x, m))
        return
    x.requires_grad_()
    grad = torch.randn_like(x)
    y = implementation.ready()(x, cap, 1)
    assert torch.equal(y, oracle.forward(x.detach(), m))
    (dx,) = torch.autograd.grad(y, implementation.inputs(x, cap), grad)
    assert torch.equal(dx, oracle.grad_x(grad, x.detach(), m))


# Shares of the gradient: to x and to the cap where x == cap, and to x where x == 0 (implementations' docstring).
TIES = {
    c.RELU_MINIMUM.name: (0.5, 0.5, 0),
    c.CLAMP.name: (1, 0, 1),
    c.WHERE.name: (0, 1, 0),
    c.PACT.name: (0.5, 0.5, 0.5),
    c.BREVITAS.name: (1, 0, 1),
    c.OURS.name: (0, 1, 0),
    c.OURS_MASK.name: (0, 1, 0),
    c.OURS_TRITON.name: (0, 1, 0),
    c.REFERENCE.name: (0, 1, 0),
}


@pytest.mark.parametrize("implementation", LEARNING, ids=name_of)
def test_gradients_at_ties(implementation: c.Implementation) -> None:
    x = torch.tensor([[1.0, 0.0]], requires_grad=True)
    cap = torch.ones(2, requires_grad=True)
    dx, dcap = torch.autograd.grad(implementation.ready()(x, cap, 1), (x, cap), torch.ones(1, 2))
    assert (dx[0, 0], dcap[0], dx[0, 1]) == TIES[implementation.name]
    assert dcap[1] == 0


@pytest.mark.parametrize("implementation", FIXED, ids=name_of)
def test_fixed_caps_at_ties(implementation: c.Implementation) -> None:
    x = torch.tensor([[implementation.fixed_cap, 0.0]], requires_grad=True)
    (dx,) = torch.autograd.grad(implementation.ready()(x, torch.ones(2), 1), x, torch.ones(1, 2))
    assert torch.equal(dx, torch.zeros(1, 2))


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("implementation", [one for one in EXACT if one.bias_and_residual], ids=name_of)
def test_bias_and_residual_are_added_first(implementation: c.Implementation, name: str) -> None:
    x, cap = inputs(name, torch.float64)
    bias = torch.randn(cap.shape if cap.ndim > 1 else x.shape[1:2], dtype=torch.float64)
    residual = torch.randn_like(x)
    for more in ({"bias": bias}, {"residual": residual}, {"bias": bias, "residual": residual}):
        expected = reference.capped_relu(x, cap, 1, **more)
        torch.testing.assert_close(implementation.ready()(x, cap, 1, **more), expected, rtol=0, atol=0)


@pytest.mark.parametrize("implementation", [one for one in EAGER if not one.bias_and_residual], ids=name_of)
def test_others_refuse_bias_and_residual(implementation: c.Implementation) -> None:
    x, cap = inputs("layer", torch.float32)
    with pytest.raises(TypeError, match="residual"):
        implementation.ready()(x, cap, 1, residual=x)


@pytest.mark.parametrize("implementation", EAGER, ids=name_of)
def test_wrong_values_are_found(implementation: c.Implementation) -> None:
    x, cap = inputs("channel", torch.bfloat16)
    y = implementation.ready()(x, cap, 1)
    implementation.check(y, x, cap)
    y = y.clone()
    y[0, 0, 0, 0] += 0.25
    with pytest.raises(ValueError, match="wrong values: not timed"):
        implementation.check(y, x, cap)


def test_the_reference_is_ours_by_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(dreluop, "capped_relu", lambda *_, **__: seen.append(selection._chosen.name))
    for implementation in (c.OURS, c.REFERENCE, c.OURS_TRITON):
        implementation.call(torch.ones(1), torch.ones(1))
    assert seen == [None, "reference", "triton"]


def test_implementations_from_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    here = c.BREVITAS.is_installed
    assert c.installed((c.OURS.name, c.BREVITAS.name)) == (c.OURS.name, c.BREVITAS.name)[: 1 + here]
    assert set(c.versions()) == ({"brevitas"} if here else set())
    monkeypatch.setattr(c.importlib.util, "find_spec", lambda name: None)
    assert c.installed((c.OURS.name, c.BREVITAS.name)) == (c.OURS.name,)
    assert c.versions() == {}


@pytest.mark.parametrize("implementation", COMPILED, ids=name_of)
def test_compiled_implementations_compile_what_they_are_called(
    implementation: c.Implementation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    c.forget_compiled([implementation.name])
    eager = c.IMPLEMENTATIONS[implementation.name.removeprefix("torch.compile ")]
    x, cap = inputs("channel", torch.float32)
    x.requires_grad_()
    cap.requires_grad_()
    grad = torch.randn_like(x)
    y, expected = implementation.ready()(x, cap, 1), eager.ready()(x, cap, 1)
    assert torch.equal(y, expected)
    found, wanted = (torch.autograd.grad(of, (x, cap), grad) for of in (y, expected))
    torch.testing.assert_close(found, wanted)


def test_compiled_implementation_agrees() -> None:
    x, cap = inputs("neuron", torch.float32)
    y = c.COMPILED.ready()(x, cap, 1)
    torch.testing.assert_close(y, reference.capped_relu(x, cap), rtol=0, atol=0)


def test_compiled_implementation_serves_more_shapes_than_torch_recompiles_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    for size in range(2, torch._dynamo.config.recompile_limit + 4):
        x, cap = torch.randn(3, size), torch.rand(size)
        c.forget_compiled([c.COMPILED.name])
        torch.testing.assert_close(c.COMPILED.ready()(x, cap, 1), reference.capped_relu(x, cap), rtol=0, atol=0)


def test_caps_below_zero() -> None:
    x, _ = inputs("channel", torch.float32)
    cap = torch.full((5,), -0.5)
    zero = torch.zeros_like(x)
    for implementation in (c.RELU_MINIMUM, c.OURS, c.REFERENCE):
        torch.testing.assert_close(implementation.call(x, cap), zero, rtol=0, atol=0)
    torch.testing.assert_close(c.clamp_tensor(x, cap), zero - 0.5, rtol=0, atol=0)
    torch.testing.assert_close(c.where_form(x, cap), torch.where(x > 0, -0.5, zero), rtol=0, atol=0)


def test_channel_dimension_is_passed_on() -> None:
    x = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0))
    cap = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    for implementation in EXACT:
        torch.testing.assert_close(implementation.call(x, cap, -1), reference.capped_relu(x, cap, -1), rtol=0, atol=0)
