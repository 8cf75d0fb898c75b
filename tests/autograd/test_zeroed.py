"""``above="zero"`` and ``nan="zero"``: values and derivatives of ``dreluop.capped_relu``, by every road."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, functionalize, grad, hessian, jacfwd, jacrev, jvp, vmap

import dreluop
from dreluop import capped_relu
from dreluop.adaptive import smooth_forward, surrogate_backward
from tests.support import oracle
from tests.support.backends import fast_path_or_skip
from tests.support.cases import DTYPES, dtype_id, special_values

FORMS: dict[str, dict[str, Any]] = {
    "above": {"above": "zero"},
    "nan": {"nan": "zero"},
    "both": {"above": "zero", "nan": "zero"},
}
by_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
CAP_SHAPES = {"layer": (), "channel": (4,), "neuron": (4, 3)}
by_cap = pytest.mark.parametrize("cap_shape", CAP_SHAPES.values(), ids=CAP_SHAPES)


def zeroed_by(form: dict[str, Any]) -> int:
    return ("above" in form) * oracle.ABOVE + ("nan" in form) * oracle.NAN


def formula(x: Tensor, cap: Tensor, form: dict[str, Any]) -> Tensor:
    """The rule of x and a cap without NaN, in differentiable torch."""
    m = oracle.spread(cap, x, 1).to(x.dtype)
    inside = (x > 0) & ((x <= m) if "above" in form else (x < m))
    at_cap = torch.where((x >= m) & (m > 0), m, 0)
    return torch.where(inside, x, torch.zeros_like(x) if "above" in form else at_cap)


def apart_from_edges(cap_shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Where the rule is smooth: nothing within 0.05 of 0 or of a cap."""
    cap = torch.linspace(0.5, 1.5, max(1, math.prod(cap_shape)), dtype=dtype).reshape(cap_shape)
    x = torch.randn(5, 4, 3, dtype=dtype) + 0.5
    m = oracle.spread(cap, x, 1)
    x = torch.where((x.abs() < 0.05) | ((x - m).abs() < 0.05), x + 0.1, x)
    return x, cap


@pytest.mark.parametrize("given", ["nothing", "bias", "residual", "bias and residual"])
@pytest.mark.parametrize("save", ["output", "mask"])
@pytest.mark.parametrize("inplace", [False, True])
@by_cap
@by_form
@pytest.mark.parametrize("dtype", DTYPES, ids=dtype_id)
def test_values_and_gradients(
    both_nodes: None,
    dtype: torch.dtype,
    form: dict[str, Any],
    cap_shape: tuple[int, ...],
    inplace: bool,
    save: Any,
    given: str,
) -> None:
    zeroed = zeroed_by(form)
    cap = (torch.rand(cap_shape) + 0.5).to(dtype)
    if cap.ndim:
        cap.view(-1)[1], cap.view(-1)[2] = torch.nan, torch.inf
    x = torch.cat([torch.randn(48), special_values(dtype).double(), torch.ones(3)]).to(dtype).reshape(6, 4, 3)
    x[0, :, 0] = cap.view(-1)[: 4 if cap.ndim else 1] if cap.ndim < 2 else cap[:, 0]
    bias_shape = cap_shape if len(cap_shape) > 1 else (4,)
    bias = torch.randn(bias_shape).to(dtype) if "bias" in given else None
    residual = torch.randn(x.shape).to(dtype) if "residual" in given else None
    total = oracle.fused_sum(x, bias, residual)
    leaves = [t.clone().requires_grad_() for t in (x, cap, bias, residual) if t is not None]
    given_x = leaves[0] * 1 if inplace else leaves[0]
    added = dict(
        zip([n for n, t in (("bias", bias), ("residual", residual)) if t is not None], leaves[2:], strict=True)
    )
    y = capped_relu(given_x, leaves[1], inplace=inplace, save=save, **added, **form)
    assert (y is given_x) == inplace
    oracle.assert_same_bits(y, oracle.forward(total, cap, 1, zeroed))
    upstream = torch.randn(x.shape).to(dtype)
    dx, dcap, *others = torch.autograd.grad(y, leaves, upstream)
    expected = oracle.grad_x(upstream, total, cap, 1, zeroed)
    oracle.assert_same_bits(dx, expected)
    oracle.assert_grad_cap(dcap, upstream, total, cap, 1, zeroed)
    if "above" in form:
        assert torch.equal(dcap, torch.zeros_like(cap))
    if residual is not None:
        oracle.assert_same_bits(others[-1], expected)
    if bias is not None:
        sums = oracle.grad_bias(upstream, total, cap, bias, 1, zeroed)
        oracle.assert_sum(others[0], *sums, oracle.accumulator(upstream, bias))


@by_form
@pytest.mark.parametrize("cap_needs", [False, True])
def test_the_fast_path_serves_them(form: dict[str, Any], cap_needs: bool) -> None:
    fast_path_or_skip()
    x, cap = torch.randn(3, 4, requires_grad=True), torch.rand(4, requires_grad=cap_needs)
    y = capped_relu(x, cap, **form)
    assert type(y.grad_fn).__name__ == "CappedReLUBackward"
    y.sum().backward()
    assert x.grad is not None and (cap.grad is not None) == cap_needs


@by_form
def test_the_penalty_alone_moves_the_cap(both_nodes: None, form: dict[str, Any]) -> None:
    x, cap = torch.full((3, 4), 5.0, requires_grad=True), torch.rand(4, requires_grad=True)
    y, penalty = capped_relu(x, cap, balancer=0.5, **form)
    (dcap,) = torch.autograd.grad(y.sum() + 3 * penalty, cap)
    through_y = 0 if "above" in form else 3.0
    assert torch.allclose(dcap, 3 * cap.detach() + through_y)


@by_form
def test_nothing_positive_is_lost_under_an_infinite_cap(both_nodes: None, form: dict[str, Any]) -> None:
    x = torch.tensor([[math.inf, 1.0, -1.0]], requires_grad=True)
    cap = torch.full((3,), math.inf, requires_grad=True)
    y = capped_relu(x, cap, **form)
    assert y.tolist() == [[math.inf, 1, 0]]
    dx, dcap = torch.autograd.grad(y, (x, cap), torch.ones(1, 3))
    # Without "above", x = cap = inf is capped.
    assert dx.tolist() == [[1 if "above" in form else 0, 1, 0]]
    assert dcap.tolist() == [0 if "above" in form else 1, 0, 0]


@by_form
@by_cap
@pytest.mark.parametrize("save", ["output", "mask"])
def test_gradcheck(both_nodes: None, form: dict[str, Any], cap_shape: tuple[int, ...], save: Any) -> None:
    x, cap = (t.requires_grad_() for t in apart_from_edges(cap_shape))
    bias = torch.zeros(cap_shape if len(cap_shape) > 1 else (4,), dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, cap: Tensor, bias: Tensor) -> Any:
        return capped_relu(x, cap, save=save, bias=bias, residual=x * 0, balancer=0.3, **form)

    assert torch.autograd.gradcheck(call, (x, cap, bias))
    assert torch.autograd.gradgradcheck(call, (x, cap, bias))


@by_form
@by_cap
def test_derivatives_of_transforms(form: dict[str, Any], cap_shape: tuple[int, ...]) -> None:
    x, cap = apart_from_edges(cap_shape)

    def ours(x: Tensor, cap: Tensor) -> Tensor:
        return capped_relu(x, cap, **form)

    def wanted(x: Tensor, cap: Tensor) -> Tensor:
        return formula(x, cap, form)

    tangents = torch.randn_like(x), torch.randn_like(cap)
    for got, want in zip(jvp(ours, (x, cap), tangents), jvp(wanted, (x, cap), tangents), strict=True):
        assert torch.equal(got, want)
    for jacobian, which in itertools.product((jacrev, jacfwd), (0, 1)):
        assert torch.equal(jacobian(ours, which)(x, cap), jacobian(wanted, which)(x, cap))
    for dims in ((0, None), (None, 0), (0, 0)):
        batch = [t if d is None else torch.stack([t, t * 1.3, t - 0.2]) for t, d in zip((x, cap), dims, strict=True)]
        assert torch.equal(vmap(ours, dims)(*batch), vmap(wanted, dims)(*batch))
        gradients = [
            vmap(grad(lambda x, cap, f=f: f(x, cap).square().sum(), (0, 1)), dims)(*batch) for f in (ours, wanted)
        ]
        for got, want in zip(*gradients, strict=True):
            torch.testing.assert_close(got, want)
    assert torch.equal(functionalize(ours)(x, cap), wanted(x, cap))
    small = x[:1, :1], cap.reshape(-1)[0]
    got, want = (hessian(lambda x, cap, f=f: (f(x, cap) ** 3).sum(), (0, 1))(*small) for f in (ours, wanted))
    for row, wanted_row in zip(got, want, strict=True):
        for one, wanted_one in zip(row, wanted_row, strict=True):
            torch.testing.assert_close(one, wanted_one)


@by_form
def test_derivatives_at_edges_and_nan_in_transforms(form: dict[str, Any]) -> None:
    """Inside transforms too a tie or NaN has the derivative that the rule says, and not torch's."""
    zeroed = zeroed_by(form)
    values = special_values(torch.float64)
    x, cap = (t.flatten() for t in torch.meshgrid(values, values, indexing="ij"))
    x = x[None]
    one = torch.ones_like(x)
    want = oracle.grad_x(one, x, cap, 1, zeroed)
    _, pullback = torch.func.vjp(lambda x: capped_relu(x, cap, **form), x)
    assert torch.equal(pullback(one)[0], want)
    assert torch.equal(jvp(lambda x: capped_relu(x, cap, **form), (x,), (one,))[1], want)
    got = functionalize(grad(lambda x: torch.where(torch.isfinite(y := capped_relu(x, cap, **form)), y, 0).sum()))(x)
    finite = oracle.forward(x, cap, 1, zeroed).isfinite()
    assert torch.equal(got[finite], want[finite])


@by_form
@pytest.mark.parametrize("name", ["above", "nan"])
def test_unknown_words_are_refused(both_nodes: None, form: dict[str, Any], name: str) -> None:
    expected = '"cap" or "zero"' if name == "above" else '"propagate" or "zero"'
    for wrong in ("zeros", None, 0, True):
        with pytest.raises(ValueError, match=f"{name}: got {wrong!r}; expected {expected}"):
            capped_relu(torch.zeros(2), 1.0, **{**form, name: wrong})
        with pytest.raises(ValueError, match=f"{name}: got {wrong!r}; expected {expected}"):
            dreluop.DReLU(**{**form, name: wrong})


@pytest.mark.parametrize("attack", ["straight_through", "soft"])
def test_surrogates_refuse_what_is_zeroed_above(attack: Any) -> None:
    x = torch.randn(3, 4, requires_grad=True)
    with surrogate_backward(attack), pytest.raises(ValueError, match='above: got "zero" inside surrogate_backward'):
        capped_relu(x, 1.0, above="zero")
    with smooth_forward(), pytest.raises(ValueError, match='above: got "zero" inside smooth_forward'):
        capped_relu(x, 1.0, above="zero", nan="zero")
    with surrogate_backward(attack):
        # Without a gradient to x there is nothing to replace.
        capped_relu(x.detach(), 1.0, above="zero")


@pytest.mark.parametrize("attack", ["straight_through", "soft", "smooth"])
@pytest.mark.parametrize("inplace", [False, True])
def test_surrogates_give_nan_no_gradient(attack: Any, inplace: bool) -> None:
    model = dreluop.DReLU(4, 1.0, inplace=inplace, nan="zero")
    with torch.no_grad():
        model.cap[3] = torch.nan
    clean = torch.randn(6, 4)
    broken = clean.clone()
    broken[::2, 1] = torch.nan
    results = []
    for given in (broken, clean):
        x = given.clone().requires_grad_()
        std = None if attack == "straight_through" else 1.0
        with smooth_forward(std=std) if attack == "smooth" else surrogate_backward(attack, std=std):
            y = model(x * 1)
        assert y.isfinite().all() and torch.equal(y[:, 3], torch.zeros(6))
        results.append((y, *torch.autograd.grad(y.sum(), (x, model.cap))))
    for got, want in zip(results[0][:2], results[1][:2], strict=True):
        assert torch.equal(got[::2, 1], torch.zeros(3))
        assert torch.equal(got[:, [0, 2, 3]], want[:, [0, 2, 3]]) and torch.equal(got[1::2, 1], want[1::2, 1])
    assert results[0][1].isfinite().all() and torch.equal(results[0][1][:, 3], torch.zeros(6))
    assert results[0][2].isfinite().all() and results[0][2][3] == 0


@by_form
def test_a_module_in_functional_call(form: dict[str, Any]) -> None:
    module = dreluop.DReLU(4, 0.7, **form)
    x = torch.randn(5, 4)
    want = capped_relu(x, torch.full((4,), 0.9), **form)
    assert torch.equal(functional_call(module, {"cap": torch.full((4,), 0.9)}, (x,)), want)
