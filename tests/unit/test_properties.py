"""Random inputs: the operators against the oracle; the paper's Theorem 1 and Corollary 1 for S-ReLU, case by case.

The theorem (Sooksatra & Rivas, Mathematics 2024, 12, 3551, appendices A and B) compares |act(A) - act(A + B)| of ReLU
and S-ReLU in six cases. Its Table A1 prints |A - B| for ReLU in case 1; what follows from the definitions is |A + B|.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

import dreluop
from tests.support import oracle
from tests.support.cases import DTYPES

WIDE = st.integers(0, 40) | st.sampled_from([64, 67, 1025])
NARROW = st.integers(0, 5)
SPECIAL = (float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-40, -1.0)


@dataclasses.dataclass
class Drawn:
    x: Tensor
    cap: Tensor
    grad: Tensor
    dim: int


def random_layout(draw: st.DrawFn, values: Tensor, may_overlap: bool) -> Tensor:
    """The values in another order of dimensions, every one of them sliced or (if it may) expanded."""
    order = draw(st.permutations(range(values.ndim)))
    starts = [draw(st.integers(0, 2)) for _ in order]
    steps = [draw(st.integers(1, 3)) for _ in order]
    sizes = [values.shape[d] for d in order]
    buffer = torch.full([a + n * k for a, n, k in zip(starts, sizes, steps, strict=True)], 77.0, dtype=values.dtype)
    slices = tuple(slice(a, a + n * k, k) for a, n, k in zip(starts, sizes, steps, strict=True))
    laid_out = buffer[slices].permute([order.index(d) for d in range(values.ndim)])
    laid_out.copy_(values)
    for d in range(values.ndim):
        if may_overlap and values.shape[d] > 1 and draw(st.integers(0, 5)) == 0:
            laid_out = laid_out.narrow(d, 0, 1).expand(values.shape)
    return laid_out


@st.composite
def drawn(draw: st.DrawFn, may_overlap: bool = True) -> Drawn:
    ndim = draw(st.integers(0, 4))
    wide = draw(st.integers(0, max(ndim - 1, 0)))
    shape = [draw(WIDE if d == wide else NARROW) for d in range(ndim)]
    dtype, cap_dtype = draw(st.sampled_from(DTYPES)), draw(st.sampled_from(DTYPES))
    dim = draw(st.integers(-ndim, ndim - 1)) if ndim else 1
    kinds = ["scalar", "layer"] + (["channel"] if ndim else []) + (["neuron"] if ndim > 2 else [])
    kind = draw(st.sampled_from(kinds))
    cap_shape = (
        {"scalar": (), "layer": (1,), "neuron": tuple(shape[1:])}.get(kind) if kind != "channel" else (shape[dim],)
    )
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    cap = torch.randn(cap_shape, generator=generator).add_(0.7).to(cap_dtype)
    x = torch.randn(shape, generator=generator).to(dtype)
    # Coarse values tie with their caps, special ones meet both.
    if draw(st.booleans()):
        x, cap = (x.float() * 2).round().div(2).to(dtype), (cap.float() * 2).round().div(2).to(cap_dtype)
    for t in (x, cap):
        if t.numel() and draw(st.booleans()):
            t.view(-1)[draw(st.integers(0, t.numel() - 1))] = draw(st.sampled_from(SPECIAL))
    grad = torch.randn(shape, generator=generator).to(dtype)
    return Drawn(
        random_layout(draw, x, may_overlap),
        random_layout(draw, cap, True),
        random_layout(draw, grad, True),
        dim,
    )


@pytest.mark.slow
@given(drawn())
def test_forward_backward_tangent(backend, d: Drawn) -> None:
    y, mask, _ = backend.capped_relu_with_aux(d.x, d.cap, d.dim, True, None)
    oracle.assert_same_bits(y, oracle.forward(d.x, d.cap, d.dim))
    oracle.assert_same_bits(y, backend.capped_relu(d.x, d.cap, d.dim))
    assert y.stride() == torch.empty_like(d.x).stride()
    order = oracle.mask_order(y, d.cap)
    oracle.assert_same_bits(mask, oracle.mask(d.x, d.cap, d.dim, order))
    for saved, its_order in ((y, ()), (mask, order)):
        dx, dcap, _ = backend.capped_relu_backward(d.grad, saved, d.cap, d.dim, its_order, True, True, None, None)
        oracle.assert_same_bits(dx, oracle.grad_x(d.grad, d.x, d.cap, d.dim))
        oracle.assert_grad_cap(dcap, d.grad, d.x, d.cap, d.dim)
        tangent = backend.capped_relu_jvp(d.grad, d.cap, saved, d.cap, d.dim, its_order)
        oracle.assert_same_bits(tangent, oracle.tangent(d.grad, d.cap, d.x, d.cap, d.dim))


@pytest.mark.slow
@given(drawn(may_overlap=False))
def test_in_place(backend, d: Drawn) -> None:
    expected = oracle.forward(d.x, d.cap, d.dim)
    baseline = d.x.as_strided(d.x.shape, d.x.stride()).clone(memory_format=torch.preserve_format)
    mask = oracle.mask(d.x, d.cap, d.dim, oracle.mask_order(d.x, d.cap))
    backend.capped_relu_(baseline, d.cap, d.dim)
    oracle.assert_same_bits(baseline, expected)
    got, _ = backend.capped_relu_with_aux_(d.x, d.cap, d.dim, True, None)
    oracle.assert_same_bits(d.x, expected)
    oracle.assert_same_bits(got, mask)


@pytest.mark.slow
@given(drawn())
def test_saturation(backend, d: Drawn) -> None:
    assume(d.x.ndim > 0)
    for got, want in zip(
        backend.cap_saturation(d.x, d.cap, d.dim), oracle.saturation(d.x, d.cap, d.dim), strict=True
    ):  # fmt: skip
        oracle.assert_same_bits(got, want)


@given(drawn(may_overlap=False), st.sampled_from(["output", "mask"]), st.booleans(), st.booleans())
def test_public_function(d: Drawn, save: str, inplace: bool, with_penalty: bool) -> None:
    x, cap = d.x.detach().clone().requires_grad_(), d.cap.detach().clone().requires_grad_()
    hidden = x * 1
    result = dreluop.capped_relu(
        hidden, cap, dim=d.dim, save=save, inplace=inplace, balancer=0.5 if with_penalty else None
    )
    y = result[0] if with_penalty else result
    oracle.assert_same_bits(y, oracle.forward(d.x, d.cap, d.dim))
    y.backward(d.grad)
    oracle.assert_same_bits(x.grad, oracle.grad_x(d.grad, d.x, d.cap, d.dim))
    oracle.assert_grad_cap(cap.grad, d.grad, d.x, d.cap, d.dim)


# Multiples of 2^-10 up to 2^10: every sum and difference below is exact in fp32, so "<=" needs no tolerance.
UNIT = 2.0**-10
POSITIVE = st.integers(1, 2**20).map(lambda n: n * UNIT)
NOT_NEGATIVE = st.integers(0, 2**20).map(lambda n: n * UNIT)


def at_most(m: float) -> st.SearchStrategy[float]:
    """0 < value <= m."""
    return st.integers(1, int(m / UNIT)).map(lambda n: n * UNIT)


@dataclasses.dataclass
class Perturbed:
    """Clean pre-activation A, perturbed pre-activation A + B, cap m."""

    clean: float
    perturbed: float
    m: float


def pair(clean: Callable[[float], st.SearchStrategy[float]], perturbed: Callable[[float], st.SearchStrategy[float]]):
    return POSITIVE.flatmap(lambda m: st.builds(Perturbed, clean(m), perturbed(m), st.just(m)))


def off(m: float) -> st.SearchStrategy[float]:
    return NOT_NEGATIVE.map(lambda a: -a)


def above(m: float) -> st.SearchStrategy[float]:
    return POSITIVE.map(lambda a: m + a)


def not_above(m: float) -> st.SearchStrategy[float]:
    return off(m) | at_most(m)


def a_plus_b(p: Perturbed) -> float:
    return abs(p.perturbed)


def b(p: Perturbed) -> float:
    return abs(p.perturbed - p.clean)


# Conditions on (A, A + B); |difference| of ReLU, of S-ReLU; whether that of S-ReLU is strictly smaller.
SIX_CASES = {
    "case_1_off_to_above": (pair(off, above), a_plus_b, lambda p: p.m, True),
    "case_2_inside_to_above": (pair(at_most, above), b, lambda p: abs(p.clean - p.m), True),
    "case_3_above_to_above": (pair(above, above), b, lambda p: 0.0, None),
    "case_4_above_to_inside": (pair(above, at_most), b, lambda p: abs(p.m - p.perturbed), True),
    "case_5_above_to_off": (pair(above, off), lambda p: abs(p.clean), lambda p: p.m, True),
    "case_6_not_above_to_not_above": (pair(not_above, not_above), None, None, False),
}


def difference(p: Perturbed, m: float) -> float:
    """|act(A) - act(A + B)| of S-ReLU; of ReLU with an infinite m."""
    y = dreluop.capped_relu(torch.tensor([p.clean, p.perturbed]), m)
    return abs((y[0] - y[1]).item())


@pytest.mark.parametrize("name", SIX_CASES)
@given(st.data())
def test_theorem_1(name: str, data: st.DataObject) -> None:
    conditions, of_relu, of_srelu, smaller = SIX_CASES[name]
    p = data.draw(conditions)
    relu, srelu = difference(p, float("inf")), difference(p, p.m)
    assert relu == abs(max(p.clean, 0) - max(p.perturbed, 0))
    assert srelu <= relu
    if of_relu is None:
        assert srelu == relu
    else:
        assert relu == of_relu(p)
        assert srelu == of_srelu(p)
        assert srelu < relu or (not smaller and p.clean == p.perturbed)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIX_CASES)
@given(st.data())
def test_corollary_1(name: str, data: st.DataObject) -> None:
    p = data.draw(SIX_CASES[name][0])
    smaller_m = data.draw(at_most(p.m))
    assert difference(p, smaller_m) <= difference(p, p.m)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@given(st.integers(0, 2**31), st.floats(0, 4, width=16))
def test_theorem_1_of_whole_layers(dtype: torch.dtype, seed: int, m: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(64, generator=generator)
    perturbed = clean + torch.randn(64, generator=generator) * 0.5
    clean, perturbed = clean.to(dtype), perturbed.to(dtype)
    relu = (clean.relu().double() - perturbed.relu().double()).abs()
    layers = [dreluop.SReLU(cap)(torch.stack([clean, perturbed])).double() for cap in (m, m / 2)]
    of_m, of_half = ((layer[0] - layer[1]).abs() for layer in layers)
    assert (of_m <= relu).all()
    assert (of_half <= of_m).all()
